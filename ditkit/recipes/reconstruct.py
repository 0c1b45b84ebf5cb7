"""Scores of a codec: real images against what it makes of them (rFID, PSNR, SSIM), in one pass over the images."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from ditkit.config import Settings
from ditkit.data import DataSettings, ImageSource, open_source, to_float
from ditkit.diffusion import SampleNoise
from ditkit.evaluation import FewSamples, Moments, Protocol, Score, frechet, grid, quantise, save_png
from ditkit.evaluation.images import enlarge, rule_name, viewing_factor
from ditkit.evaluation.metrics import frechet_distance, psnr, ssim
from ditkit.evaluation.metrics.reconstruction import WINDOW
from ditkit.evaluation.named import IMAGES, find_protocol
from ditkit.evaluation.uncertainty import Interval, jackknife_interval, mean_interval
from ditkit.pretrained import CodecSettings, load_codec
from ditkit.protocols import BadImage, Codec, Extractor
from ditkit.recipes.score_files import SCORES, Scores, SpaceScores, save_scores
from ditkit.recipes.scoring import arithmetic

BEST = 100.0  # dB; what an image counts as that comes back exactly, whose PSNR is infinite, and the most that counts
STRONGER = 4  # times the difference in the picture
PICTURE = "reconstructions.png"

Say = Callable[[str], None]
Bar = Callable[..., None]  # bar(stage, done, total)


class Reconstruction(Settings):
    """How a codec's reconstructions are made and named."""

    posterior: Literal["mean", "draw"] = Field("mean", description="of the latents: its mean (rFID's use), or a draw")
    seed: int = Field(0, ge=0, description="of the draws")
    uint8: str = Field("round", description="uint8 rule, or the paper whose rule it is: dit, sit, repa, ddt")
    batch: int = Field(16, ge=1, description="images that go through codec and extractors together")
    protocol: str = Field("custom", description="name stored with the scores: rfid-imagenet-val, or your own word")
    what: str = Field("", description="name of the codec in the scores; empty: its id")
    data: str = Field("", description="name of the images in the scores")

    @field_validator("uint8")
    @classmethod
    def _known(cls, rule: str) -> str:
        return rule_name(rule)

    def protocol_of(
        self, codec: Codec, extractor: str, reference: str, n: int, size: tuple[int, int], on: torch.device
    ) -> Protocol:
        """The protocol of scores of n images. SettingsError or ValidationError where its name does not allow them."""
        return Protocol(
            name=self.protocol, size=size, arithmetic=arithmetic(on),
            n=n, labels="none", sampler={"posterior": self.posterior}, evaluations=0,
            codec=codec.id, quantiser=self.uint8, extractor=extractor, reference=reference, reference_n=n,
            seed=self.seed if self.posterior == "draw" else 0,
        )  # fmt: skip


def open_originals(
    codec: str, data: str | DataSettings, device: torch.device, size: int | tuple[int, int] | None = None
) -> tuple[Codec, ImageSource]:
    """(the codec, the images at a size that it can take). PretrainedMissing or DataError, one line.

    size: pixels; None: that of the data, rounded down to a multiple of the codec's factor. Autoencoders see colours.
    """
    settings = DataSettings(source=data) if isinstance(data, str) else data.single()
    settings = settings.model_copy(update={"buckets": None, "size": settings.size if size is None else size})
    named = CodecSettings.parse(codec)
    if named.kind == "pixels":
        source = open_source(settings)
        return load_codec(named, device, channels=source.channels), source
    loaded = load_codec(named, device)
    return loaded, open_source(settings.model_copy(update={"channels": 3}), multiple=loaded.factor)


def remade(codec: Codec, images: Tensor, asked: Reconstruction, indices: list[int], device: torch.device) -> Tensor:
    """uint8 (B, C, H, W) -> uint8 of the same shape, encoded and decoded; draws depend on (seed, index) only."""
    with torch.no_grad():
        moments = codec.encode(to_float(images.to(device)))
        noise = None
        if asked.posterior == "draw" and moments.shape[1] != codec.channels:
            shape = (codec.channels, *moments.shape[2:])
            noise = SampleNoise(asked.seed, indices, shape, device=device).initial().to(moments)
        return quantise(codec.decode(codec.sample(moments, noise)), asked.uint8).cpu()


@dataclass
class Gathered:
    """What one pass over the images leaves: scores per image, pooled features of both sides, a fingerprint."""

    psnr: list[Tensor] = field(default_factory=list)
    ssim: list[Tensor] = field(default_factory=list)
    features: dict[str, tuple[list[Tensor], list[Tensor]]] = field(default_factory=dict)
    digest: Any = field(default_factory=hashlib.sha256)
    count: int = 0
    size: tuple[int, int] = (0, 0)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))  # of codec and extractors

    def add(self, real: Tensor, fake: Tensor, extractors: Mapping[str, Extractor]) -> None:
        """A batch of images and their reconstructions, uint8 (B, C, H, W)."""
        self.psnr.append(psnr(real, fake).cpu())
        if min(real.shape[2:]) >= WINDOW:
            self.ssim.append(ssim(real, fake).cpu())
        for name, extractor in extractors.items():
            for kept, images in zip(self.features.setdefault(name, ([], [])), (real, fake), strict=True):
                with torch.no_grad():
                    kept.append(extractor(images).pooled.float().cpu())
        if not self.count:
            self.digest.update(f"{tuple(real.shape[1:])}".encode())
            self.size = (real.shape[2], real.shape[3])
        self.digest.update(real.contiguous().numpy().tobytes())
        self.count += len(real)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify the images, whatever batches they came in."""
        return self.digest.hexdigest()[:16]


def reconstruct(
    codec: Codec, source: ImageSource, asked: Reconstruction | None = None, *, extractors: Mapping[str, Extractor],
    n: int | None = None, device: torch.device, bar: Bar, say: Say,
) -> Scores:  # fmt: skip
    """Score what `codec` makes of the source's images, or of n of them, spread evenly.

    PSNR and SSIM are means over images; PSNR counts 100 dB at most, which an image gets that comes back exactly.
    Frechet distances (rFID with Inception) are between the pooled features of originals and reconstructions. Images are
    in memory a batch at a time, features as a whole. Limits are over images, of the pair together. ValueError, one
    line, where a named protocol does not allow these images, a codec these sizes, or nothing can be read.
    """
    asked = asked or Reconstruction()
    total = min(n or len(source), len(source))
    named = find_protocol(asked.protocol)
    if wrong := named.unmet_by_images(total, source.size) if named is not None else []:
        raise ValueError(f"protocol {asked.protocol}: {'; '.join(wrong)}")
    for extractor in extractors.values():
        asked.protocol_of(codec, extractor.id, "", total, source.size, device)  # refused before hours are spent
    got, bad = Gathered(device=device), list[str]()
    for indices, images in batches(source, total, asked.batch, bad):
        if bad and named is not None and named.n is not None:
            raise ValueError(f"protocol {asked.protocol} is of {named.n:,} images, and one cannot be used: {bad[0]}")
        got.add(images, remade(codec, images, asked, indices, device), extractors)
        bar("reconstructed", got.count + len(bad), total)
    spaces = {name: in_features(codec, extractor, name, got, asked, bar, say) for name, extractor in extractors.items()}
    spaces[IMAGES] = in_images(codec, got, asked, say)
    return Scores(
        what=asked.what or f"codec {codec.id}", data=asked.data, unusable=len(bad), unusable_paths=tuple(bad[:5]),
        spaces=spaces,
    )  # fmt: skip


def batches(source: ImageSource, total: int, batch: int, bad: list[str]) -> Iterator[tuple[list[int], Tensor]]:
    """(numbers in the source, uint8 images) of `total` images spread evenly; what cannot be used is listed in `bad`.

    ValueError where nothing is left.
    """
    found: list[tuple[int, Tensor]] = []
    missed = 0
    for i in range(total):
        number = i * len(source) // total
        try:
            found.append((number, source[number].image))
        except BadImage as error:
            bad.append(error.path)
            missed += 1
        if found and (len(found) == batch or i == total - 1):
            yield [number for number, _ in found], torch.stack([image for _, image in found])
            found = []
    if missed == total:
        raise ValueError(f"none of the {total} images can be used")


def in_images(codec: Codec, got: Gathered, asked: Reconstruction, say: Say) -> SpaceScores:
    """PSNR and SSIM, means over images with their limits."""
    protocol = asked.protocol_of(codec, IMAGES, got.fingerprint, got.count, got.size, got.device)
    decibels = torch.cat(got.psnr)
    if exact := int(decibels.isinf().sum()):
        say(f"{exact:,} of {got.count:,} images come back exactly; each counts as {BEST:g} dB")
    rows = [("psnr", decibels.clamp(max=BEST), 0.0, BEST)]
    if got.ssim:
        rows.append(("ssim", torch.cat(got.ssim), -1.0, 1.0))
    else:
        say(f"no ssim: its window of {WINDOW} x {WINDOW} does not fit into these images")
    scores = [
        Score(
            metric=metric, value=values.mean().item(), interval=mean_interval(values, low, high), better="higher",
            protocol=protocol,
        )
        for metric, values, low, high in rows
    ]  # fmt: skip
    return SpaceScores(extractor=IMAGES, floor={}, scores=tuple(scores))


def in_features(
    codec: Codec, extractor: Extractor, name: str, got: Gathered, asked: Reconstruction, bar: Bar, say: Say
) -> SpaceScores:
    """The Frechet distance between originals and reconstructions in one extractor's space."""
    real, fake = (torch.cat(parts) for parts in got.features[name])
    for features, which in ((real, "originals"), (fake, "reconstructions")):
        if not torch.isfinite(features).all():
            raise ValueError(f"extractor {extractor.id}: NaN or infinite features of the {which}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FewSamples)
        value = frechet(Moments.of(real), Moments.of(fake))
    if caught:
        say(f"{name}: {extractor.width} features of {len(real)} images: the Frechet distance is biased; take more")
    interval = paired_interval(value, real, fake, lambda done, total: bar(f"limits of {name}", done, total))
    protocol = asked.protocol_of(codec, extractor.id, got.fingerprint, got.count, got.size, got.device)
    score = Score(metric="frechet", value=value, interval=interval, better="lower", protocol=protocol)
    return SpaceScores(extractor=extractor.id, floor={}, scores=(score,))


def paired_interval(
    value: float, real: Tensor, fake: Tensor, progress: Callable[[int, int], object] | None = None
) -> Interval | None:
    """Limits of the Frechet distance between features (N, D) that belong together row by row.

    The delete-a-group jackknife of `jackknife_interval` that takes an image out of both sides at once: what is common
    to both moves no distance. Moments of what is left are those of all less the group's.
    """
    n = len(real)
    totals = Moments.of(real), Moments.of(fake)

    def statistic(rows: Tensor) -> float:
        out = torch.ones(n, dtype=torch.bool)
        out[rows] = False
        a, b = (total.without(Moments.of(x[out])) for total, x in zip(totals, (real, fake), strict=True))
        return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)

    return jackknife_interval(value, statistic, n, 0.0, progress=progress)


def picture(codec: Codec, source: ImageSource, asked: Reconstruction, device: torch.device, count: int = 8) -> Tensor:
    """A sheet (C, H', W'): a row an image, the original, its reconstruction, 4 times their absolute difference."""
    indices, images = next(batches(source, min(count, len(source)), count, []))
    again = remade(codec, images, asked, indices, device)
    apart = ((images.int() - again.int()).abs() * STRONGER).clamp(max=255).to(torch.uint8)
    cells = torch.stack([images, again, apart], dim=1).flatten(0, 1)
    return grid(enlarge(cells, viewing_factor(min(cells.shape[2:]))), columns=3, gap=2)


def write(
    scores: Scores, codec: Codec, source: ImageSource, folder: Path, asked: Reconstruction | None = None, *,
    device: torch.device,
) -> list[Path]:  # fmt: skip
    """Write scores.json and reconstructions.png into `folder`; returns both paths."""
    sheet = picture(codec, source, asked or Reconstruction(), device)
    columns = f"original, reconstruction, {STRONGER} x |difference|"
    return [save_scores(scores, folder / SCORES), save_png(sheet, folder / PICTURE, {"columns": columns})]
