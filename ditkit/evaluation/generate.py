"""From a trained model to N images: in memory, or as PNG files and one npz, resumable, with exact counts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from ditkit.diffusion import AnyPath, Autoguidance, Kind, SampleNoise, SamplerSettings
from ditkit.evaluation.features import Images, Progress
from ditkit.evaluation.folder import SampleFolder, threads_of
from ditkit.evaluation.images import quantise
from ditkit.evaluation.making import helpers, making, weights_fingerprint
from ditkit.evaluation.protocols import Protocol as ScoreProtocol
from ditkit.evaluation.reference import Reference
from ditkit.evaluation.request import Request
from ditkit.protocols import Codec, Condition, Denoiser, TextEncoder
from ditkit.ranks import ALONE, Ranks, RanksError, Stopped


class Sampleable(Protocol):
    """What `generate` needs of a loaded run: its network in our conventions and the codec of its latents."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def path(self) -> AnyPath: ...

    @property
    def prediction(self) -> Kind: ...

    @property
    def codec(self) -> Codec: ...


@dataclass
class ToSample:
    """The plainest Sampleable; `text` serves prompts, `autoguide` is the weaker model of an Autoguidance."""

    model: nn.Module
    path: AnyPath
    prediction: Kind
    codec: Codec
    text: TextEncoder | None = None
    autoguide: Denoiser | None = None


@dataclass
class Generated:
    """Images uint8 (N, C, H, W) (a tensor, or a folder cut like one), their labels (N,) or None, and what it took."""

    images: Images
    labels: Tensor | None
    request: Request
    sampler: SamplerSettings
    evaluations: float  # network evaluations per image
    seconds: float  # of this call; images found on disk cost nothing
    made: int  # images that this call made
    codec: str  # id of the codec that decoded them
    folder: Path | None = None
    text: str = ""  # id of the text encoder that read the prompts
    autoguide: str = ""  # fingerprint of the weaker model of an Autoguidance

    def protocol(self, reference: Reference, *, name: str = "custom", resize: str = "none") -> ScoreProtocol:
        """The protocol of scores of these images against `reference`."""
        return ScoreProtocol(
            name=name,
            evaluations=self.evaluations,
            resize=resize,
            extractor=reference.extractor,
            reference=reference.fingerprint,
            reference_n=reference.moments.count,
            reference_resize=reference.resize,
            size=(self.images[0:1].shape[2], self.images[0:1].shape[3]),
            text=self.text,
            autoguide=self.autoguide,
            **making(self.request, self.sampler, self.codec),
        )


def planned(source: Sampleable, sampler: SamplerSettings, request: Request) -> dict[str, Any]:
    """The part of a Protocol that is known before an image is made."""
    _, height, width = latent_shape(source, request)
    size = (height * source.codec.factor, width * source.codec.factor)
    return {**making(request, sampler, source.codec.id), "size": size, **helpers(source, sampler, request)}


def latent_shape(source: Sampleable, request: Request) -> tuple[int, int, int]:
    """(C, h, w) of the latents: the request's size, or the model's native one."""
    settings = getattr(source.model, "settings", None)
    size = request.size or getattr(settings, "size", None)
    if size is None:
        raise ValueError("generate: the model does not say its native size; give the request a size (latent H, W)")
    return (source.codec.channels, int(size[0]), int(size[1]))


def condition_of(request: Request, indices: Sequence[int], text: TextEncoder | None, device: torch.device) -> Condition:
    """The condition of these images: labels, encoded prompts, or none."""
    if request.prompts:
        if text is None:
            raise ValueError("generate: the request holds prompts, and the model comes without a text encoder")
        # one by one: an encoder rounds differently for other batches, and which prompts are new differs by process
        known = {prompt: text([prompt]) for prompt in dict.fromkeys(request.prompts[i] for i in indices)}
        return Condition.concat([known[request.prompts[i]] for i in indices]).to(device)
    if request.labels:
        return Condition(label=torch.tensor([request.labels[i] for i in indices], device=device))
    return Condition()


def guided_against(
    sampler: SamplerSettings, request: Request, text: TextEncoder | None, device: torch.device
) -> SamplerSettings:
    """The sampler, its guidance moving away from the encoded negative prompt (none: the empty one) of a text model.

    Training drops texts to zeros, sampling is guided against "" (SD3 appendix B.3 and its released code).
    """
    guidance = sampler.guidance
    if not request.prompts or text is None or guidance is None or isinstance(guidance, Autoguidance):
        return sampler
    negative = text([request.negative or ""]).to(device)
    return sampler.model_copy(update={"guidance": guidance.against(negative)})


@torch.no_grad()
def sample_latents(
    source: Sampleable,
    sampler: SamplerSettings,
    request: Request,
    chunk: int,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, int]:
    """One chunk before its codec: (latents (b, C, H, W) in the sampler's dtype, network evaluations per image)."""
    device, indices = torch.device(device), request.filled(chunk)
    noise = SampleNoise(request.seed, indices, latent_shape(source, request), device=device)
    text = getattr(source, "text", None) if request.prompts else None  # not loaded for nothing
    cond = condition_of(request, indices, text, device)
    latents, evaluations = guided_against(sampler, request, text, device).run(
        cast(Denoiser, source.model),
        noise.initial(),
        cond,
        path=source.path,
        prediction=source.prediction,
        noise_source=noise,
        autoguide=getattr(source, "autoguide", None),
        progress=progress,
    )
    return latents[: len(request.indices(chunk))], evaluations


@torch.no_grad()
def decode_latents(source: Sampleable, request: Request, chunk: int, latents: Tensor) -> Tensor:
    """The latents of one chunk as uint8 images (b, C, H, W) on the CPU. ValueError, naming them, if not finite."""
    indices = request.indices(chunk)
    rows = [i - indices.start for i in request.filled(chunk)]
    starts = range(0, len(indices), request.decode)  # beyond them there are only rows that fill up
    try:
        decoded = (source.codec.decode(latents[rows[i : i + request.decode]].float()) for i in starts)
        return torch.cat([quantise(x, request.quantiser).cpu() for x in decoded])[: len(indices)]
    except ValueError as error:
        raise ValueError(f"images {indices.start}..{indices.stop - 1}: {error}") from None


def sample_chunk(
    source: Sampleable,
    sampler: SamplerSettings,
    request: Request,
    chunk: int,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, int]:
    """One chunk: (uint8 images (b, C, H, W) on the CPU, network evaluations per image).

    The result depends on the weights, `sampler`, `request` and the chunk's number, on nothing that ran before.
    """
    latents, evaluations = sample_latents(source, sampler, request, chunk, device, progress)
    return decode_latents(source, request, chunk, latents), evaluations


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the network into eval mode for the duration, and back."""
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)


@dataclass
class Counter:
    """Progress in images over all chunks, fed by the steps inside the current one."""

    total: int
    report: Progress | None
    done: int = 0
    size: int = field(default=0)

    def step(self, step: int, steps: int) -> None:
        """Called by the sampler when a step begins."""
        if self.report is not None:
            self.report(self.done + self.size * step // max(1, steps), self.total)

    def finish(self) -> None:
        """The current chunk is complete."""
        self.done += self.size
        if self.report is not None:
            self.report(self.done, self.total)


@dataclass
class Whole:
    """Progress of all processes that fill a folder, told by the files that are there."""

    place: SampleFolder
    before: int  # images that were there
    total: int
    report: Progress | None
    looked: float = 0.0

    def __call__(self, *_: int) -> None:
        """Look, at most once a second, and report."""
        if self.report is not None and time.monotonic() - self.looked > 1:
            self.looked = time.monotonic()
            self.report(min(self.place.count() - self.before, self.total), self.total)

    def finish(self) -> None:
        """All is there."""
        if self.report is not None:
            self.report(self.total, self.total)


def fill(
    folder: SampleFolder,
    source: Sampleable,
    sampler: SamplerSettings,
    request: Request,
    *,
    chunks: Sequence[int] | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> int:
    """Make the missing images of these chunks (None: all) in the folder; returns how many were made.

    Several processes may fill one folder, each its own chunks: rank r of W takes range(r, request.chunks, W). A chunk
    with a missing image is sampled whole, so that its images are the ones an unbroken run would have made.
    """
    mine = [c for c in (range(request.chunks) if chunks is None else chunks) if folder.missing(request.indices(c))]
    counter = Counter(sum(len(request.indices(c)) for c in mine), progress)
    made = 0
    with evaluating(source.model):
        for chunk in mine:
            counter.size = len(request.indices(chunk))
            images, evaluations = sample_chunk(source, sampler, request, chunk, device, counter.step)
            made += folder.write(request, chunk, images, evaluations)
            counter.finish()
    return made


def generate(
    source: Sampleable,
    sampler: SamplerSettings,
    request: Request,
    *,
    folder: str | Path | None = None,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> Generated:
    """Make the requested images: exactly request.n of them, each drawn from (seed, index) only.

    folder: 000000.png ... and samples.npz (arr_0 as ADM's evaluator reads it, label) are written there, each file
    atomically; called again after a kill, it makes what is missing. A folder made with other weights or settings is
    refused, and so is one with other files in it. Without a folder the images are kept in memory.
    ranks: processes (inside `together`) that share the folder; each makes its part, all return when all is there.
    """
    start = time.perf_counter()
    labels = torch.tensor(request.labels) if request.labels else None
    by = helpers(source, sampler, request)
    if folder is not None:
        place = SampleFolder(Path(folder), request.n)
        made = fill_together(place, source, sampler, request, device=device, progress=progress, ranks=ranks)
        spent = place.evaluations(request)
        seconds = time.perf_counter() - start
        return Generated(place, labels, request, sampler, spent, seconds, made, source.codec.id, Path(folder), **by)
    if ranks.world > 1:
        raise ValueError("generate: several processes share images through a folder only: give one")
    counter, parts, spent_on = Counter(request.n, progress), [], 0.0
    with evaluating(source.model):
        for chunk in range(request.chunks):
            counter.size = len(request.indices(chunk))
            images, evaluations = sample_chunk(source, sampler, request, chunk, device, counter.step)
            parts.append(images)
            spent_on += evaluations * len(images)
            counter.finish()
    seconds = time.perf_counter() - start
    spent, images = spent_on / request.n, torch.cat(parts)
    return Generated(images, labels, request, sampler, spent, seconds, request.n, source.codec.id, None, **by)


def fill_together(
    place: SampleFolder,
    source: Sampleable,
    sampler: SamplerSettings,
    request: Request,
    *,
    device: str | torch.device,
    progress: Progress | None,
    ranks: Ranks,
) -> int:
    """Claim the folder, make what is missing and collect the archive; returns how many images all processes made.

    Rank r of W makes every W-th chunk of those with a missing image, from the r-th on, all with the threads that the
    folder was begun with. Only the first reports progress, of the whole. What a process raises ends the others with
    RanksError; all that was made stays.
    """
    what = describe(source, sampler, request)
    with ranks.agreed():
        if ranks.first:
            place.claim(what, torch.get_num_threads() if torch.device(device).type == "cpu" else None)
    with ranks.agreed():
        if not ranks.first:
            place.claim(what)  # must be of the same weights and settings
    gone = ranks.tell(place.missing(range(request.n)))
    todo, before = sorted({i // request.batch for i in gone}), request.n - len(gone)
    whole = Whole(place, before, sum(len(request.indices(c)) for c in todo), progress if ranks.first else None)
    told = progress if ranks.world == 1 else whole
    try:
        with threads_of(place, device):
            fill(place, source, sampler, request, chunks=ranks.share(todo), device=device, progress=told)
        ranks.wait(whole)
        if ranks.world > 1:
            whole.finish()
        if ranks.first and (before < request.n or not place.archive.exists()):
            place.collect(torch.tensor(request.labels) if request.labels else None)
        ranks.wait()
    except (RanksError, Stopped) as error:
        there = f"{place.count()} of {request.n} images are in {place.path}; the same command makes the others"
        raise type(error)(f"{error}: {there}") from None
    return request.n - before


def describe(source: Sampleable, sampler: SamplerSettings, request: Request) -> dict:
    """Everything that decides the bytes of the images, as JSON: kept in the folder, compared on resumption."""
    by = helpers(source, sampler, request)
    return {
        "request": request.essence.model_dump(mode="json"),
        "sampler": sampler.model_dump(mode="json"),
        "path": source.path.model_dump(mode="json"),
        "prediction": source.prediction,
        "codec": source.codec.id,
        "text": by["text"] or None,
        "weights": weights_fingerprint(source.model),
        **({"autoguide": by["autoguide"]} if by["autoguide"] else {}),
    }
