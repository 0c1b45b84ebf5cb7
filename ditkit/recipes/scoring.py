"""Scores of a model or of images that are there already, in several feature spaces, with floor and protocol."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from ditkit.config import Settings, override
from ditkit.data import DataSettings, ImageSource, open_source
from ditkit.evaluation import (
    ClassifierSettings,
    FewSamples,
    Generated,
    Protocol,
    Reference,
    given_protocol,
    make_reference,
    open_generated,
    open_images,
    read_images,
    score_images,
)
from ditkit.evaluation.features import Images
from ditkit.evaluation.folder import REQUEST
from ditkit.evaluation.pixels import Pixels
from ditkit.pretrained import PretrainedMissing, load_teacher
from ditkit.protocols import Extractor
from ditkit.recipes.load import Loaded
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.score_classifier import classify
from ditkit.recipes.score_files import SCORES, Scores, SpaceScores

LISTED = 5  # unusable real images that are named; all are counted

Say = Callable[[str], None]
Bar = Callable[..., None]  # bar(stage, done, total)


class Judging(Settings):
    """What samples are held against: real images, and the classifier that is trained on them."""

    data: DataSettings = Field(DataSettings(), description="the real images; read at the samples' size and channels")
    real: int = Field(10_000, ge=2, description="real images at most, spread evenly over the data")
    classifier: ClassifierSettings = Field(ClassifierSettings(), description="trained on the real images")
    protocol: str = Field("custom", description="name stored with the scores")


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
