"""What encoder sharing gains and costs on one model, in one run: time, change of the images, distance to real ones."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from ditkit.analysis.cost import sharing_cost
from ditkit.config import Settings, SettingsError, read_file, read_settings
from ditkit.data import ImageSource
from ditkit.diffusion import SamplerSettings, Sharing
from ditkit.evaluation import FewSamples, Moments, Reference, Request, extract, make_reference, read_images
from ditkit.evaluation.generate import decode_latents, latent_shape, sample_latents
from ditkit.evaluation.pixels import Pixels
from ditkit.evaluation.uncertainty import Interval, jackknife_interval
from ditkit.protocols import Extractor
from ditkit.recipes.load import Loaded
from ditkit.recipes.score_classifier import classify
from ditkit.recipes.scoring import Judging
from ditkit.recipes.stopwatch import seconds_of

ROUNDS = 5  # timed runs of each schedule at least
LARGEST = {"features": 512, "samples": 5000}  # beyond these limits of a distance take minutes, and are left out
Bar = Callable[..., None]


@dataclass(frozen=True)
class Judge:
    """A feature space, and the real images as they appear there."""

    extractor: Extractor
    reference: Reference


class Distance(Settings):
    """Frechet distance to the real images, and how much more it is than without sharing; 95 % limits where known.

    `more` compares the same noise and labels, so its limits (over pairs) are narrower than those of two distances.
    """

    value: float
    interval: Interval | None = None
    more: float = 0.0
    more_interval: Interval | None = None


class Point(Settings):
    """One schedule, measured. seconds: of network and solver for one image, codec not included.

    Times are medians over the rounds of all schedules with as many encoder runs, which do the same work.
    """

    sharing: Sharing | None = Field(description="None: the encoder at every evaluation")
    seconds: float
    speedup: float = Field(1.0, description="seconds without sharing over these, within a round")
    speedup_range: tuple[float, float] = Field((1.0, 1.0), description="lowest and highest ratio of a round")
    predicted: float = Field(1.0, description="the ratio of multiply-accumulates")
    change: float = Field(0.0, description="RMS change of the final latents, relative to their RMS")
    changed: float = Field(0.0, description="share of the images' bytes that changed")
    psnr: float | None = Field(None, description="of the images against those without sharing, dB; None: equal")
    distances: dict[str, Distance] = Field(description="feature space -> distance")


class TradeOff(Settings):
    """What trade-off.json holds."""

    sampler: str = Field(description="in words")
    images: int
    rounds: int = Field(description="timed runs of each schedule, taking turns")
    batch: int
    seed: int
    labels: str
    evaluations: int = Field(description="N: calls of the network a run")
    device: str
    threads: int
    spaces: dict[str, str] = Field(description="feature space -> extractor")
    real: str = Field(description="fingerprint of the real images")
    real_images: int
    biased: tuple[str, ...] = Field((), description="feature spaces with as many features as images, or more")
    classifier_accuracy: float | None
    unshared: Point
    points: tuple[Point, ...]

    def find(self, rule: str) -> Point | None:
        """The point of this rule ("dp:5")."""
        return next((p for p in self.points if p.sharing is not None and p.sharing.rule == rule), None)


def read_trade_off(file: Path) -> TradeOff | None:
    """What an earlier call wrote there; None where there is nothing, or the work of another version."""
    try:
        return read_settings(TradeOff, read_file(file), str(file)) if file.is_file() else None
    except SettingsError:
        return None


@dataclass
class Arm:
    """What one schedule has yielded so far."""

    sampling: SamplerSettings
    seconds: list[float] = field(default_factory=list)
    evaluations: float = 0.0  # network evaluations per image
    moved: float = 0.0  # sums over all numbers of the latents, or bytes of the images
    size: float = 0.0
    bytes: int = 0
    bytes_changed: int = 0
    bytes_squared: float = 0.0
    features: dict[str, list[Tensor]] = field(default_factory=dict)

    def compare(self, latents: Tensor, images: Tensor, base: tuple[Tensor, Tensor]) -> None:
        """Add a chunk, and what became of the same chunk without sharing."""
        self.moved += (latents.double() - base[0].double()).square().sum().item()
        self.size += base[0].double().square().sum().item()
        apart = images.int() - base[1].int()
        self.bytes += apart.numel()
        self.bytes_changed += int((apart != 0).sum())
        self.bytes_squared += apart.double().square().sum().item()


def appoint(
    source: ImageSource, judging: Judging, device: torch.device, bar: Bar
) -> tuple[dict[str, Judge], float | None]:
    """(Feature spaces with the real images in them, accuracy of the classifier): as `ditkit evaluate` has by default.

    Pixels always; a classifier trained on the real images where they have classes. Nothing is downloaded.
    """
    real, labels = read_images(source, judging.real)
    spaces: dict[str, Extractor] = {"pixels": Pixels(source.channels, source.size)}
    accuracy = None
    if len(source.classes) > 1:
        spaces["classifier"], accuracy = classify(real, labels, source, judging.classifier, device, bar)
    return {name: Judge(extractor, make_reference(extractor, real)) for name, extractor in spaces.items()}, accuracy


def run_arms(
    loaded: Loaded, arms: Mapping[object, Arm], request: Request, judges: Mapping[str, Judge], bar: Bar
) -> int:
    """Sample every chunk with every arm, timed; return the rounds. The first arm is the one without sharing.

    Within a round the arms take turns on the same chunk, beginning with another one each time, so that a machine that
    slows down slows all of them; small requests are timed several times.
    """
    everyone = list(arms.values())
    rounds = max(ROUNDS, request.chunks)
    for arm in everyone[:2]:  # warm-up: allocations and kernels of both kinds of pass
        _timed(loaded, arm.sampling, request, 0)
    for turn in range(rounds):
        chunk, made = turn % request.chunks, {}
        for position in range(len(everyone)):
            which = (turn + position) % len(everyone)
            latents, everyone[which].evaluations, seconds = _timed(loaded, everyone[which].sampling, request, chunk)
            everyone[which].seconds.append(seconds)
            if turn < request.chunks:
                made[which] = latents, decode_latents(loaded, request, chunk, latents)
            bar("trade-off", turn * len(everyone) + position + 1, rounds * len(everyone))
        for which, (latents, images) in made.items():
            everyone[which].compare(latents, images, made[0])
            for name, judge in judges.items():
                everyone[which].features.setdefault(name, []).append(extract(judge.extractor, images))
    return rounds


def _timed(loaded: Loaded, sampling: SamplerSettings, request: Request, chunk: int) -> tuple[Tensor, float, float]:
    """(latents, network evaluations per image, seconds per image) of one chunk."""
    device = loaded.device
    seconds, (latents, spent) = seconds_of(lambda: sample_latents(loaded, sampling, request, chunk, device), device)
    return latents, spent, seconds / len(latents)


def distance(features: Tensor, reference: Reference, base: Tensor | None = None) -> Distance:
    """Frechet distance of features (N, D) to the reference; against `base`, the same images without sharing."""

    def far(given: Tensor, rows: Tensor | None = None) -> float:
        return reference.frechet(Moments.of(given if rows is None else given[rows]))

    limited = len(features) <= LARGEST["samples"] and features.shape[1] <= LARGEST["features"]
    value, n = far(features), len(features)
    interval = jackknife_interval(value, lambda rows: far(features, rows), n, low=0.0) if limited else None
    if base is None:
        return Distance(value=value, interval=interval)
    more = value - far(base)
    pairs = jackknife_interval(more, lambda rows: far(features, rows) - far(base, rows), n) if limited else None
    return Distance(value=value, interval=interval, more=more, more_interval=pairs)


def predict(loaded: Loaded, arm: Arm, unshared: Arm, size: tuple[int, int]) -> float:
    """The ratio of multiply-accumulates, no sharing over this arm.

    Both branches are evaluated at every evaluation while sharing; without it, guidance may skip one of them.
    """
    costs, sharing = sharing_cost(loaded.recipe.model, size), arm.sampling.sharing
    if sharing is None:
        return 1.0
    branches = arm.evaluations / sharing.evaluations
    shared = branches * costs.run(sharing.evaluations, sharing.budget, sharing.keep)
    return unshared.evaluations * costs.full / shared


def point(
    loaded: Loaded, arm: Arm, unshared: Arm, peers: Sequence[Arm], judges: Mapping[str, Judge], size: tuple[int, int]
) -> Point:
    """What an arm has measured, beside the arm without sharing. peers: arms of equal work, itself among them."""
    ratios = [a / b for peer in peers for a, b in zip(unshared.seconds, peer.seconds, strict=True)]
    distances = {}
    for name, judge in judges.items():
        features = torch.cat(arm.features[name])
        base = None if arm is unshared else torch.cat(unshared.features[name])
        distances[name] = distance(features, judge.reference, base)
    error = arm.bytes_squared / max(1, arm.bytes)
    return Point(
        sharing=arm.sampling.sharing,
        seconds=statistics.median(s for peer in peers for s in peer.seconds),
        speedup=statistics.median(ratios),
        speedup_range=(min(ratios), max(ratios)),
        predicted=predict(loaded, arm, unshared, size),
        change=math.sqrt(arm.moved / arm.size) if arm.size else 0.0,
        changed=arm.bytes_changed / max(1, arm.bytes),
        psnr=10 * math.log10(255**2 / error) if error else None,
        distances=distances,
    )


def work(arm: Arm) -> tuple[int, bool]:
    """What an arm's time depends on: encoder runs (0: no sharing), and whether modulations are kept."""
    sharing = arm.sampling.sharing
    return (sharing.budget, sharing.keep) if sharing is not None else (0, False)


def measure_trade_off(
    loaded: Loaded, sampling: SamplerSettings, schedules: Sequence[Sharing], request: Request,
    appointed: tuple[Mapping[str, Judge], float | None], bar: Bar, *, told: str,
) -> TradeOff:  # fmt: skip
    """Sample the request without sharing and with every schedule, and compare time, images and distances.

    sampling: without sharing; told: the same in words. Equal schedules are sampled once.
    """
    judges, accuracy = appointed
    arms: dict[object, Arm] = {None: Arm(sampling)}
    for sharing in schedules:
        arms.setdefault(sharing.encode, Arm(sampling.model_copy(update={"sharing": sharing})))
    rounds = run_arms(loaded, arms, request, judges, bar)
    size = latent_shape(loaded, request)[1:]
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewSamples)  # `biased` says it once
        for key, arm in arms.items():
            peers = [other for other in arms.values() if work(other) == work(arm)]
            found[key] = point(loaded, arm, arms[None], peers, judges, size)
            bar("distances", len(found), len(arms))
    reference = next(iter(judges.values())).reference
    fewest = min(request.n, reference.moments.count)
    return TradeOff(
        sampler=told,
        images=request.n,
        rounds=rounds,
        batch=min(request.n, request.chunk),
        seed=request.seed,
        labels=request.mode,
        evaluations=schedules[0].evaluations,
        device=torch.cuda.get_device_name(loaded.device) if loaded.device.type == "cuda" else loaded.device.type,
        threads=torch.get_num_threads(),
        spaces={name: judge.extractor.id for name, judge in judges.items()},
        real=reference.fingerprint,
        real_images=reference.moments.count,
        biased=tuple(name for name, judge in judges.items() if fewest <= judge.extractor.width),
        classifier_accuracy=accuracy,
        unshared=found[None],
        points=tuple(found[s.encode].model_copy(update={"sharing": s}) for s in schedules),
    )
