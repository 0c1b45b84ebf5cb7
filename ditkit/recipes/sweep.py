"""Scores over guidance scales, intervals and step counts of one model: which setting is best, and how surely."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

import torch
from pydantic import Field

from ditkit.config import Settings, dump, fingerprint, override
from ditkit.data import ImageSource
from ditkit.diffusion import SamplerSettings
from ditkit.evaluation import Request, open_generated
from ditkit.evaluation.generate import latent_shape, weights_fingerprint
from ditkit.evaluation.protocols import Protocol, Score
from ditkit.evaluation.reference_files import ReferenceFile
from ditkit.evaluation.uncertainty import Interval, seed_spread
from ditkit.files import write_text
from ditkit.protocols import Extractor
from ditkit.ranks import ALONE, Ranks
from ditkit.recipes.load import Loaded
from ditkit.recipes.online import found_at
from ditkit.recipes.place import check_writable
from ditkit.recipes.sampling import (
    Choices,
    check_codec,
    choose_request,
    choose_sampler,
    describe_weights,
    draw,
    folder_for,
    home_of,
    open_model,
    read_choices,
    split,
)
from ditkit.recipes.score_files import Scores, read_scores, save_scores
from ditkit.recipes.scoring import (
    Judging,
    RealSide,
    check_belongs,
    check_request,
    choose_judging,
    judge,
    load_extractors,
    of_generated,
    open_captions,
    open_real_side,
)

RESULT, PAGE, CACHE = "sweep.json", "sweep.html", "scores"
DEFAULT_N, DEFAULT_SCALES = 1000, "1,1.25,1.5,2,3,4"
REAL = ("data", "classifier", "real", "protocol", "reference")  # keys of the real side
OWN = ("guidance", "interval", "steps", "seeds", "n", "out")  # keys of the sweep itself

RANGES = {
    **dict.fromkeys(("precision", "recall", "agreement"), (0.0, 1.0)),
    **dict.fromkeys(("frechet", "spatial_frechet"), (0.0, math.inf)),
    "inception_score": (1.0, math.inf),
}
ONCE = ("classifier", "real images")  # stages of scoring that a sweep goes through once

Bar = Callable[..., None]
Say = Callable[[str], None]


class Value(Settings):
    """One metric at one point: the mean over seeds with its Student limits, or one seed's with those of its samples."""

    better: str
    value: float
    error: float | None = Field(None, description="standard error of the mean over seeds")
    interval: Interval | None = Field(
        None, description="95 % limits, over seeds if there are several, else over samples"
    )
    seeds: tuple[float, ...] = Field(description="the value of each seed")


class SpacePoint(Settings):
    """The scores of one point in one feature space; protocol: of the first seed."""

    protocol: Protocol
    values: dict[str, Value]


class SweepPoint(Settings):
    """One way to sample, and how it scored."""

    guidance: float = Field(description="scale; 1 is none")
    interval: tuple[float, float] | None = Field(None, description="of our time in which guidance acts; None: recipe's")
    steps: int
    evaluations: float = Field(description="of the network, per image")
    folders: tuple[str, ...] = Field(description="the samples of each seed")
    spaces: dict[str, SpacePoint]


class Sweep(Settings):
    """What sweep.json holds."""

    what: str
    weights: str
    data: str
    n: int = Field(description="images of each point and seed")
    seeds: tuple[int, ...]
    classifier_accuracy: float | None = None
    floors: dict[str, dict[str, float]] = Field(
        description="space -> metric -> one half of the real images on the other"
    )
    points: tuple[SweepPoint, ...]


@dataclass(frozen=True)
class Asked:
    """One way to sample, and where its images of each seed are."""

    guidance: float
    interval: tuple[float, float] | None
    sampling: SamplerSettings
    requests: tuple[Request, ...]
    folders: tuple[Path, ...]


@dataclass
class Plan:
    """A sweep that is checked: nothing of it can be refused any more."""

    what: Path
    loaded: Loaded
    judging: Judging
    extractors: dict[str, Extractor]
    real: ImageSource | ReferenceFile
    asked: list[Asked]
    seeds: tuple[int, ...]
    sight: str  # fingerprint of what is judged, by what, but for how it is sampled
    folder: Path
    notes: list[str]

    @cached_property
    def every(self) -> dict[Path, tuple[Asked, Request, str]]:
        """Folder of samples -> how they are made, and the fingerprint of all that decides their scores.

        Settings that sample alike (scale 1 in any interval) stand there once.
        """
        return {
            folder: (asked, request, digest(self.sight, fingerprint(asked.sampling), fingerprint(request.essence)))
            for asked in self.asked
            for request, folder in zip(asked.requests, asked.folders, strict=True)
        }

    def cached(self, samples: Path) -> Path:
        """Where the scores of these samples are kept: other real images, weights or extractors have other files."""
        return self.folder / CACHE / f"{samples.name}-{self.every[samples][2][:8]}.json"

    @property
    def open(self) -> list[tuple[Asked, Request, Path]]:
        """What has no scores yet that were asked for in this way."""
        return [
            (asked, request, folder)
            for folder, (asked, request, told) in self.every.items()
            if (found := found_at(self.cached(folder))) is None or found.asked != told
        ]


def make_plan(
    what: Path, words: Sequence[str], device: torch.device, *, source: str | None = None, names: Sequence[str] = ()
) -> Plan:
    """Read and check everything that a sweep needs. words: key=value of OWN, of the real side and of `ditkit sample`.

    ValueError, SettingsError, PretrainedMissing or DataError, one line each.
    """
    pairs = [(w.partition("=")[0], w) for w in words]
    mine = [(key, w.partition("=")[2]) for key, w in pairs if key in OWN]
    real = [w for key, w in pairs if key.partition(".")[0] in REAL and key != "data"]
    rest, sampler_keys = split([w for key, w in pairs if key not in OWN and key.partition(".")[0] not in REAL])
    data = next((w.partition("=")[2] for key, w in pairs if key == "data"), None)
    given = {key: value for key, value in mine if key != "interval"}
    choices = read_choices(rest).with_({"n": whole("n", given.get("n", str(DEFAULT_N)))})
    if out := given.get("out"):
        check_writable(Path(out))
    scales = numbers("guidance", given.get("guidance", DEFAULT_SCALES))
    steps = [whole("steps", s) for s in given["steps"].split(",")] if "steps" in given else [None]
    intervals = [override(Choices(), [f"interval={text}"]).interval for key, text in mine if key == "interval"]
    seeds = tuple(range(choices.seed, choices.seed + whole("seeds", given.get("seeds", "1"))))
    loaded = open_model(what, source, choices, device)
    judging = choose_judging(real, data, loaded.recipe)
    extractors, asked, notes = load_extractors(names, device), [], []
    captions = open_captions(loaded, judging)
    for count, interval, scale in product(steps, intervals or [None], scales):
        chosen = choices.model_copy(update={"guidance": scale, "interval": interval})
        keys = sampler_keys if count is None else [*sampler_keys, f"sampling.steps={count}"]
        sampling, said = choose_sampler(loaded, chosen, keys, what)
        notes += said
        requests = tuple(
            choose_request(loaded, chosen.model_copy(update={"seed": s}), DEFAULT_N, captions) for s in seeds
        )
        folders = tuple(folder_for(what, loaded, sampling, request) for request in requests)
        asked.append(Asked(scale, interval, sampling, requests, folders))
    check_codec(loaded)
    for one in asked:
        check_request(judging, loaded, one.requests[0])
    side = open_side(loaded, judging, asked[0].requests[0])
    notes += [] if judging.reference else check_belongs(loaded, judging)
    sight = sight_of(loaded, judging, extractors, side)
    folder = Path(out) if out else place_for(what, loaded, sight)
    return Plan(what, loaded, judging, extractors, side, asked, seeds, sight, folder, list(dict.fromkeys(notes)))


def numbers(key: str, text: str) -> list[float]:
    """ "1,1.5,2" -> [1.0, 1.5, 2.0], each once, rising. ValueError, one line."""
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 0 or not found[-1] < float("inf"):
        raise ValueError(f"{key} {text!r}: give numbers with commas, not below 0: 1,1.5,2,4")
    return found


def whole(key: str, text: str) -> int:
    """A whole number above 0. ValueError, one line."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise ValueError(f"{key} {text!r}: give a whole number above 0")
    return int(text)


def open_side(loaded: Loaded, judging: Judging, request: Request) -> ImageSource | ReferenceFile:
    """The real images or the reference file at the size of images that are not made yet."""
    _, height, width = latent_shape(loaded, request)
    channels = loaded.codec.channels if loaded.recipe.codec.kind == "pixels" else 3
    size = height * loaded.codec.factor, width * loaded.codec.factor
    return open_real_side(judging, torch.empty((1, channels, *size), dtype=torch.uint8))


def digest(*told: str) -> str:
    """16 hex digits of the SHA-256 of these lines."""
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def sight_of(
    loaded: Loaded, judging: Judging, extractors: dict[str, Extractor], side: ImageSource | ReferenceFile
) -> str:
    """Fingerprint of weights, codec, text encoder, real side and feature spaces; a reference file by its content."""
    spaces = [f"{name} {extractor.id}" for name, extractor in extractors.items()]
    judged = fingerprint(judging.model_copy(update={"reference": ""}))
    text = getattr(loaded.text, "id", "")
    return digest(weights_fingerprint(loaded.model), loaded.codec.id, text, judged, side.fingerprint, *spaces)


def place_for(what: Path, loaded: Loaded, sight: str) -> Path:
    """RUN/sweeps/...: one folder for all sweeps of these weights against these real images in these spaces."""
    first = f"{loaded.step:07d}" if loaded.step is not None else what.stem
    return home_of(what) / "sweeps" / f"{first}-{loaded.weights.replace(':', '-')}-{sight[:8]}"


@dataclass(frozen=True)
class Part:
    """Progress of one point's images as progress of all: point number `i` of `points`, each of n images."""

    bar: Bar
    i: int
    points: int
    n: int

    def __call__(self, done: int, total: int) -> None:
        """done of the total images that this point still lacks."""
        self.bar("images", self.i * self.n + self.n - total + done, self.points * self.n)


def quiet(bar: Bar) -> Bar:
    """The bar of scoring without the stages that come again for every point."""
    return lambda stage, done, total: bar(stage, done, total) if stage in ONCE else None


def run_sweep(plan: Plan, bar: Bar, say: Say, ranks: Ranks = ALONE) -> Sweep | None:
    """Sample what is missing (all processes), score it (the first one; None in the others) and write sweep.json.

    Samples and scores that are there are kept: a sweep that was killed goes on, and one that asks for more points makes
    those alone. Real images are looked at, and the classifier is trained, once.
    """
    todo = plan.open
    if ranks.tell(len(todo)) != len(todo):
        raise ValueError(f"{plan.folder}: the processes do not see the same scores there; use a folder that all see")
    for i, (asked, request, folder) in enumerate(todo):
        draw(plan.loaded, asked.sampling, request, folder, Part(bar, i, len(todo), request.n), ranks)
    if not ranks.first:
        return None
    side, heard = RealSide(plan.real), set[str]()
    for i, (_, _, folder) in enumerate(todo):
        bar("points", i, len(todo))
        told: list[str] = []
        scores = judge(
            of_generated(open_generated(folder)), side, plan.judging, plan.extractors, plan.loaded.device,
            what=str(folder), weights=describe_weights(plan.loaded), bar=quiet(bar), say=told.append,
        )  # fmt: skip
        save_scores(scores.model_copy(update={"asked": plan.every[folder][2]}), plan.cached(folder))
        for line in dict.fromkeys(told):  # of every point the same
            if line not in heard:
                say(line)
        heard |= set(told)
    bar("points", len(todo), len(todo))
    found = gather(plan)
    write_text(plan.folder / RESULT, dump(found, "json"))
    return found


def gather(plan: Plan) -> Sweep:
    """The stored scores of everything asked for, as one result."""
    scores = {f: read_scores(plan.cached(f)) for asked in plan.asked for f in asked.folders}
    first = next(iter(scores.values()))
    return Sweep(
        what=str(plan.what), weights=describe_weights(plan.loaded), data=first.data, n=plan.asked[0].requests[0].n,
        seeds=plan.seeds, classifier_accuracy=first.classifier_accuracy,
        floors={name: space.floor for name, space in first.spaces.items()},
        points=tuple(point_of(asked, [scores[f] for f in asked.folders]) for asked in plan.asked),
    )  # fmt: skip


def point_of(asked: Asked, scores: Sequence[Scores]) -> SweepPoint:
    """One point from the scores of its seeds."""
    spaces, spent = {}, 0.0
    for name, space in scores[0].spaces.items():
        of_seeds = [{s.metric: s for s in found.spaces[name].scores} for found in scores]
        spent = space.scores[0].protocol.evaluations
        spaces[name] = SpacePoint(
            protocol=space.scores[0].protocol,
            values={metric: value_of([seed[metric] for seed in of_seeds]) for metric in of_seeds[0]},
        )
    return SweepPoint(
        guidance=asked.guidance, interval=asked.interval, steps=asked.sampling.steps, evaluations=spent,
        folders=tuple(map(str, asked.folders)), spaces=spaces,
    )  # fmt: skip


def value_of(scores: Sequence[Score]) -> Value:
    """The scores of all seeds as one value with limits, which stay within what the metric can be.

    No limits where no seed differs: no spread that was seen is no certainty.
    """
    values, better = tuple(score.value for score in scores), scores[0].better
    if len(values) == 1:
        return Value(better=better, value=values[0], interval=scores[0].interval, seeds=values)
    mean, error, interval = seed_spread(values)
    low, high = RANGES.get(scores[0].metric, (-math.inf, math.inf))
    if interval is not None:
        interval = (max(low, interval[0]), min(high, interval[1])) if error > 0 else None
    return Value(better=better, value=mean, error=error, interval=interval, seeds=values)
