"""Scores of a model or of images that are there already, in several feature spaces, with floor and protocol."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ditkit.config import Difference, Settings, diff, dump, override, read_settings
from ditkit.data import DataSettings, ImageSource, open_source
from ditkit.evaluation import (
    Classifier,
    ClassifierSettings,
    FewSamples,
    Generated,
    Protocol,
    ProtocolMismatch,
    Reference,
    Score,
    compare,
    given_protocol,
    make_reference,
    open_generated,
    open_images,
    read_images,
    score_images,
    train_classifier,
)
from ditkit.evaluation.features import Images
from ditkit.evaluation.folder import REQUEST
from ditkit.evaluation.pixels import Pixels
from ditkit.evaluation.protocols import OUTCOMES
from ditkit.files import write_text
from ditkit.pretrained import PretrainedMissing, load_teacher
from ditkit.protocols import Extractor, Features
from ditkit.recipes.load import Loaded
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.registry import RECIPES
from ditkit.recipes.sampling import describe_sampler

SCORES = "scores.json"
LISTED = 5  # unusable real images that are named; all are counted
LOOK = 32  # the classifier looks at images averaged down to this side, so that it trains in a minute on a CPU

Say = Callable[[str], None]
Bar = Callable[..., None]  # bar(stage, done, total)


class Judging(Settings):
    """What samples are held against: real images, and the classifier that is trained on them."""

    data: DataSettings = Field(DataSettings(), description="the real images; read at the samples' size and channels")
    real: int = Field(10_000, ge=2, description="real images at most, spread evenly over the data")
    classifier: ClassifierSettings = Field(ClassifierSettings(), description="trained on the real images")
    protocol: str = Field("custom", description="name stored with the scores")


class SpaceScores(Settings):
    """The scores of one feature space, and what one half of the real images scores against the other."""

    extractor: str
    floor: dict[str, float]
    scores: tuple[Score, ...]


class Scores(Settings):
    """What scores.json holds."""

    what: str = Field(description="what was scored")
    weights: str | None = Field(None, description="averaged or raw, and their step, where a model was scored")
    data: str = Field(description="the real images")
    unusable: int = Field(0, ge=0, description="real images that could not be read and are left out")
    unusable_paths: tuple[str, ...] = Field((), description="the first of them")
    classifier_accuracy: float | None = Field(None, description="of the classifier on held-out real images")
    spaces: dict[str, SpaceScores] = Field(description="feature space -> scores")


@dataclass
class Samples:
    """Images (N, C, H, W) uint8, their labels or None, where scores go, and how they were made, if known."""

    images: Images
    labels: Tensor | None
    scores: Path
    made: Generated | None = None

    def protocol(self, reference: Reference, name: str) -> Protocol:
        """The protocol of their scores against `reference`."""
        if self.made is not None:
            return self.made.protocol(reference, name=name)
        return given_protocol(len(self.images), reference, name)


class Shrunk:
    """A classifier that sees images averaged down to LOOK pixels."""

    def __init__(self, classifier: Classifier, size: tuple[int, int]):
        self.classifier, self.size, self.width = classifier, size, classifier.width
        self.id = f"{classifier.id}-{size[0]}x{size[1]}"

    def __call__(self, images: Tensor) -> Features:
        """uint8 (B, C, H, W) -> Features of the smaller images."""
        return self.classifier(shrink(images, self.size))

    def probabilities(self, images: Tensor, batch: int = 128) -> Tensor:
        """Class probabilities (N, K) of uint8 images (N, C, H, W)."""
        return self.classifier.probabilities(shrink(images, self.size), batch)


def shrink(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (N, C, H, W) averaged down to `size`, uint8."""
    parts = (F.adaptive_avg_pool2d(part.float(), size).round().to(torch.uint8) for part in images.split(256))
    return torch.cat(list(parts))


def is_images(what: Path) -> bool:
    """Whether `what` is images (an .npz, or a folder that is no model) and no model."""
    return what.suffix == ".npz" or (what.is_dir() and not (what / "recipe.json").is_file())


def open_samples(what: Path) -> Samples:
    """The images of an .npz or a folder; FolderError, one line, for anything else."""
    if what.is_dir() and (what / REQUEST).is_file():
        return of_generated(open_generated(what))
    images, labels = open_images(what)
    return Samples(images, labels, what / SCORES if what.is_dir() else what.with_suffix(f".{SCORES}"))


def of_generated(made: Generated) -> Samples:
    """The samples that `generate` wrote to a folder."""
    assert made.folder is not None
    return Samples(made.images, made.labels, made.folder / SCORES, made)


def choose_judging(overrides: Sequence[str], data: str | None, recipe: Recipe | None = None) -> Judging:
    """Real images and classifier: the recipe's own data unless `data` names others, then overrides. One-line errors."""
    if recipe is not None and data in (None, recipe.data.source):
        settings = recipe.data.single()
    elif data is not None:
        settings = DataSettings(source=data)
    else:
        raise ValueError("which real images? give --data digits, a folder of images or a .parquet file")
    judging = override(Judging(data=settings), overrides)
    open_source(judging.data)  # what cannot be read is refused before anything is sampled
    return judging


def check_belongs(loaded: Loaded, judging: Judging) -> list[str]:
    """Whether these real images can judge this model; what to doubt, a line each.

    ValueError, one line, where another source than the run's own has other classes or channels than the model.
    """
    mine, classes = loaded.recipe, loaded.recipe.model.num_classes
    channels = loaded.codec.channels if mine.codec.kind == "pixels" else 3
    side = loaded.codec.factor
    words = mine.text is not None
    source, wrong = open_source(judging.data), []
    if classes and len(source.classes) > 1 and len(source.classes) != classes:
        wrong.append(f"{classes} classes, the data {len(source.classes)}")
    if source.channels != channels:
        wrong.append(f"{channels} channels, the data {source.channels} (data.channels={channels} reads them so)")
    if wrong and judging.data.source != mine.data.source:
        raise ValueError(
            f"data {judging.data.source!r} do not belong to this model: it has {', and '.join(wrong)}; name the data "
            "that it was trained on, or sample first and evaluate the folder of samples"
        )
    size = tuple(length * side for length in mine.model.size)
    update = {"size": size, "channels": channels}
    same = open_source(judging.data.model_copy(update=update), captioned=words, batch=mine.training.batch)
    asked = judging.data.source == mine.data.source and judging.data.split != mine.data.split
    if asked or loaded.images in ("", same.fingerprint):
        return []
    return [f"the real images ({judging.data.source}) are not those that the model was trained on"]


def load_extractors(names: Sequence[str], device: torch.device) -> dict[str, Extractor]:
    """The feature spaces that a user names, by name. PretrainedMissing, one line."""
    try:
        return {name: load_teacher(name, device) for name in names}
    except PretrainedMissing as error:
        raise PretrainedMissing(error.what.replace("teacher", "extractor", 1), error.reason) from None


def open_real(judging: Judging, images: Images) -> ImageSource:
    """The real images at the samples' size and channels. DataError, one line."""
    channels, height, width = images[0:1].shape[1:]
    update = {"size": (height, width), "channels": channels, "buckets": None}
    return open_source(judging.data.model_copy(update=update))


def open_captions(loaded: Loaded, judging: Judging) -> ImageSource | None:
    """The real images with the captions that a text model is asked to draw; None for a class model."""
    if loaded.recipe.text is None:
        return None
    return open_source(judging.data.model_copy(update={"buckets": None}), captioned=True)


def judge(
    samples: Samples, source: ImageSource, judging: Judging, extractors: dict[str, Extractor], device: torch.device, *,
    what: str, weights: str | None, bar: Bar, say: Say,
) -> Scores:  # fmt: skip
    """Score the samples in pixels, in a classifier's features (labelled data), and in each extractor's features."""
    bad: list[str] = []
    real, real_labels = read_images(source, judging.real, lambda image: bad.append(image.path))
    found: dict[str, Extractor] = {"pixels": Pixels(source.channels, source.size), **extractors}
    labels, accuracy = samples.labels, None
    if len(source.classes) > 1:
        found["classifier"], accuracy = classify(real, real_labels, source, judging.classifier, device, bar)
        if labels is not None and int(labels.max()) >= len(source.classes):
            say(f"the samples' classes go up to {int(labels.max())}, the data have {len(source.classes)}: no agreement")
            labels = None
    else:
        say("the data have no classes: no classifier, no class agreement")
    spaces = {}
    for done, (name, extractor) in enumerate(found.items()):
        bar("scores", done, len(found))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", FewSamples)
            reference = make_reference(extractor, real)
            protocol = samples.protocol(reference, judging.protocol)
            scores = score_images(samples.images, labels, extractor, reference, protocol)
            spaces[name] = SpaceScores(extractor=extractor.id, floor=reference.floor(), scores=tuple(scores))
        if any(issubclass(w.category, FewSamples) for w in caught):
            few = (
                f"{extractor.width} features, {len(samples.images)} samples, {len(real)} real images (halved for floor)"
            )
            say(f"{name}: {few}: the Frechet distance is biased upwards; take more images than features")
    bar("scores", len(found), len(found))
    return Scores(
        what=what, weights=weights, data=judging.data.source, unusable=len(bad), unusable_paths=tuple(bad[:LISTED]),
        classifier_accuracy=accuracy, spaces=spaces,
    )  # fmt: skip


def classify(
    images: Tensor, labels: Tensor, source: ImageSource, settings: ClassifierSettings, device: torch.device, bar: Bar
) -> tuple[Extractor, float | None]:
    """(a classifier of the real images, its accuracy on the fifth of them that it did not see)."""
    size = (min(source.size[0], LOOK), min(source.size[1], LOOK))
    small = shrink(images, size)
    trained = train_classifier(
        small, labels, source.classes, settings, device=device,
        progress=lambda done, total: bar("classifier", done, total),
    )  # fmt: skip
    return (trained if size == source.size else Shrunk(trained, size)), trained.accuracy


def save_scores(scores: Scores, path: Path) -> Path:
    """Write scores.json, atomically."""
    return write_text(path, dump(scores, "json"))


def read_scores(path: Path) -> Scores:
    """Read a scores.json, or the one in a folder. ValueError, one line."""
    file = path / SCORES if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{path}: no {SCORES} there; `ditkit evaluate` writes it beside the samples")
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        tree = None
    if not isinstance(tree, dict):
        raise ValueError(f"{file}: not a {SCORES} of `ditkit evaluate`")
    return read_settings(Scores, tree, str(file))


def check_comparable(other: Scores, planned: dict) -> None:
    """ValueError, one line, where samples that will be made as `planned` (keys of a Protocol) cannot be compared."""
    theirs = next(iter(other.spaces.values())).scores[0].protocol
    if found := diff(theirs, theirs.model_copy(update=planned), OUTCOMES):
        raise _apart(other, map(_told, found))


def _told(d: Difference) -> str:
    return f"{d.key} {d.a!r} there, {d.b!r} here"


def _apart(other: Scores, differences: Iterable[str]) -> ValueError:
    listed = "; ".join(differences)
    return ValueError(f"not compared with {other.what}, the protocols differ: {listed} (--force compares)")


def describe_protocols(scores: Scores) -> list[str]:
    """The protocol of the first space in full, and of every other one what differs from it, a line each."""
    found = {name: space.scores[0].protocol for name, space in scores.spaces.items()}
    first, *others = found
    lines = [f"{first}: {found[first].sentence()}"]
    for name in others:
        apart = [f"{d.key} {d.b}" for d in diff(found[first], found[name], OUTCOMES)]
        lines.append(f"{name}: the same, but {', '.join(apart)}" if apart else f"{name}: the same")
    return lines


def compare_scores(mine: Scores, other: Scores, force: bool) -> list[tuple[str, str, float, float, str]]:
    """(space, metric, other, mine, verdict) for every score that both have.

    ValueError, one line, naming every difference between the protocols, unless forced; and where nothing is shared.
    """
    lines: list[tuple[str, str, float, float, str]] = []
    wrong: dict[str, dict[str, None]] = {}  # difference -> the spaces that have it; ordered, each once
    for name, theirs in other.spaces.items():
        scores = {score.metric: score for score in (mine.spaces[name].scores if name in mine.spaces else ())}
        for score in theirs.scores:
            if score.metric not in scores:
                continue
            try:
                found = compare(score, scores[score.metric], force)
            except ProtocolMismatch as error:
                for d in error.differences:
                    wrong.setdefault(_told(d), {})[name] = None
                continue
            verdict = found.verdict + (" (protocols differ)" if found.forced else "")
            lines.append((name, score.metric, score.value, scores[score.metric].value, verdict))
    if wrong:
        shared = len({name for names in wrong.values() for name in names})
        told = (text if len(names) == shared else f"{', '.join(names)}: {text}" for text, names in wrong.items())
        raise _apart(other, told)
    if not lines:
        raise ValueError(f"not compared with {other.what}: it has no feature space in common with this evaluation")
    return lines


def published_lines(recipe: Recipe, protocol: Protocol) -> list[str]:
    """The recipe's published scores, each with the ways in which it came about differently.

    Rows of the sampler in use where there are any, else all; none where the network is not the published row's.
    """
    row_of = RECIPES.get(recipe.name)
    if row_of is not None and row_of().model != recipe.model:
        return []
    rows = [p for p in recipe.published if p.sampling.model_dump(exclude={"guidance"}) == protocol.sampler]
    lines = []
    for row in rows or recipe.published:
        numbers = {"FID": row.fid, "sFID": row.sfid, "IS": row.inception_score, "P": row.precision, "R": row.recall}
        told = ", ".join(f"{name} {value:g}" for name, value in numbers.items() if value is not None)
        guidance = None if row.sampling.guidance is None else row.sampling.guidance.model_dump(mode="json")
        facts = (
            ("features and reference", row.reference, f"{protocol.extractor} and {protocol.reference_n:,} images"),
            ("images", f"{row.images:,}", f"{protocol.n:,}"),
            ("labels", row.labels, protocol.labels),
            ("guidance", guidance and guidance["scale"], protocol.guidance and protocol.guidance["scale"]),
            ("uint8", row.quantise, protocol.quantiser),
        )
        apart = "; ".join(f"{key} {there}, here {here}" for key, there, here in facts if there != here)
        lines.append(
            f"{row.table}, {row.steps:,} steps, {describe_sampler(row.sampling)}: {told} (not comparable: {apart})"
        )
    return lines
