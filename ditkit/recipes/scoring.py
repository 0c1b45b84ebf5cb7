"""Scores of a model or of images that are there already, in several feature spaces, with floor and protocol."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from ditkit.config import Settings, fingerprint, override
from ditkit.data import DataSettings, ImageSource, open_source
from ditkit.evaluation import (
    ClassifierSettings,
    FewSamples,
    Generated,
    Protocol,
    Reference,
    Request,
    given_protocol,
    make_reference,
    open_generated,
    open_images,
    read_images,
)
from ditkit.evaluation.features import Images, Progress
from ditkit.evaluation.folder import REQUEST
from ditkit.evaluation.generate import latent_shape
from ditkit.evaluation.named import NAMED, find_protocol, of_family
from ditkit.evaluation.pixels import Pixels
from ditkit.evaluation.protocols import Rules
from ditkit.evaluation.reference_files import ReferenceFile, open_reference
from ditkit.evaluation.score import PAIRED, Scorer, metrics_of, score_with, sorted_by_class
from ditkit.pretrained import PretrainedMissing
from ditkit.pretrained.extractors import load_extractor
from ditkit.protocols import BadImage, Extractor
from ditkit.recipes.load import Loaded
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.score_classifier import classify
from ditkit.recipes.score_files import SCORES, Scores, SpaceScores

LISTED = 5  # unusable real images that are named; all are counted

Say = Callable[[str], None]
Bar = Callable[..., None]  # bar(stage, done, total)


class Judging(Settings):
    """What samples are held against: real images and the classifier that is trained on them, or a reference file."""

    data: DataSettings = Field(DataSettings(), description="the real images; read at the samples' size and channels")
    reference: str = Field("", description="an .npz of images and statistics, instead of data")
    real: int = Field(10_000, ge=2, description="real images at most, spread evenly over the data")
    classifier: ClassifierSettings = Field(ClassifierSettings(), description="trained on the real images")
    protocol: str = Field("custom", description=f"name stored with the scores: {', '.join(NAMED)}, or your own word")


@dataclass
class Samples:
    """Images (N, C, H, W) uint8, their labels or None, where scores go, and how they were made, if known."""

    images: Images
    labels: Tensor | None
    scores: Path
    made: Generated | None = None

    def protocol(self, reference: Reference, name: str) -> Protocol:
        """The protocol of their scores against `reference`; a known name also sets how the metrics compute.

        ValueError, naming each, for facts that the name does not allow.
        """
        _, _, height, width = self.images[0:1].shape
        plain = (
            given_protocol(len(self.images), reference, size=(height, width))
            if self.made is None
            else self.made.protocol(reference)
        )
        return plain.with_({"name": name, "rules": rules_of(name)})


def rules_of(name: str) -> Rules:
    """How the metrics compute under a protocol of this name."""
    return Rules(**NAMED[name].rules) if name in NAMED else Rules()


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
    """Real images and classifier: the recipe's own data unless `data` names others, then overrides. One-line errors.

    A reference file among the overrides takes the place of the data.
    """
    if data is None and any(o.startswith("reference=") for o in overrides):
        return override(Judging(), overrides)
    if recipe is not None and data in (None, recipe.data.source):
        settings = recipe.data.single()
    elif data is not None:
        settings = DataSettings(source=data)
    else:
        raise ValueError(
            "which real images? give --data digits, a folder of images or a .parquet file, or --reference FILE.npz"
        )
    judging = override(Judging(data=settings), overrides)
    if judging.reference:
        raise ValueError(f"--data {settings.source} and --reference {judging.reference}: give one of them")
    if (named := find_protocol(judging.protocol)) and named.reference_n and "real" not in judging.model_fields_set:
        judging = judging.with_({"real": named.reference_n[0]})
    open_source(judging.data)  # what cannot be read is refused before anything is sampled
    return judging


def check_belongs(loaded: Loaded, judging: Judging) -> list[str]:
    """Whether these real images can judge this model; what to doubt, a line each.

    ValueError, one line, where another source than the run's own has other classes or channels than the model.
    """
    if judging.reference:
        return []
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
        return {name: load_extractor(name, device) for name in names}
    except PretrainedMissing as error:
        raise PretrainedMissing(error.what.replace("teacher", "extractor", 1), error.reason) from None


def open_real(judging: Judging, images: Images) -> ImageSource:
    """The real images at the samples' size and channels. DataError, one line."""
    channels, height, width = images[0:1].shape[1:]
    update = {"size": (height, width), "channels": channels, "buckets": None}
    return open_source(judging.data.model_copy(update=update))


def open_real_side(judging: Judging, images: Images) -> ImageSource | ReferenceFile:
    """The reference file if one is named, else `open_real`. BadReference or DataError, one line."""
    return open_reference(judging.reference) if judging.reference else open_real(judging, images)


def open_captions(loaded: Loaded, judging: Judging) -> ImageSource | None:
    """The real images with the captions that a text model is asked to draw; None for a class model."""
    if loaded.recipe.text is None or judging.reference:
        return None
    return open_source(judging.data.model_copy(update={"buckets": None}), captioned=True)


def check_protocol(judging: Judging, n: int, size: tuple[int, ...], real: ImageSource | ReferenceFile) -> None:
    """ValueError, one line, where the named protocol does not allow n images of size (H, W) or this real side."""
    if (named := find_protocol(judging.protocol)) is None:
        return
    wrong = named.unmet_by_images(n, size)
    if named.made == "reconstructions":
        wrong.append("it is of what a codec makes of real images: give --reconstruct CODEC and --data")
    if isinstance(real, ReferenceFile):
        if named.against == "file":
            real.check(named)
        elif named.against == "images":
            wrong.append(f"its reference is {named.reference}: give the folder by --data")
    elif named.against == "file":
        wrong.append(f"its reference is a file: give --reference {named.reference} ({named.origin})")
    else:
        wrong += named.unmet_by_reals(min(len(real), judging.real))
    if wrong:
        raise ValueError(f"protocol {named.name}: {'; '.join(wrong)}")


def check_request(judging: Judging, loaded: Loaded, request: Request) -> None:
    """`check_protocol` before anything is sampled, its labels too."""
    channels, height, width = latent_shape(loaded, request)
    size = (height * loaded.codec.factor, width * loaded.codec.factor)
    blank = torch.empty((1, channels if loaded.recipe.codec.kind == "pixels" else 3, *size), dtype=torch.uint8)
    check_protocol(judging, request.n, size, open_real_side(judging, blank))
    named = find_protocol(judging.protocol)
    if named is not None and named.labels and request.mode not in named.labels:
        raise ValueError(f"protocol {named.name}: labels must be {' or '.join(named.labels)}, not {request.mode}")


def judge(
    samples: Samples, source: ImageSource | ReferenceFile | RealSide, judging: Judging,
    extractors: dict[str, Extractor], device: torch.device, *, what: str, weights: str | None, bar: Bar, say: Say,
) -> Scores:  # fmt: skip
    """Score the samples in each extractor's features; against images also in pixels and, where these have labels, in a
    classifier's features.

    A named protocol is judged in the features of its own extractor; only the named extractors are looked at then.
    """
    side = source if isinstance(source, RealSide) else RealSide(source)
    check_protocol(judging, len(samples.images), tuple(samples.images[0:1].shape[2:]), side.source)
    named = find_protocol(judging.protocol)
    if isinstance(side.source, ReferenceFile) and named is not None and named.against == "file":
        say(side.source.unverified(named))
    real, spaces = side.looked_at(judging, extractors, device, bar)
    found = score_spaces(samples, real, judging, spaces, device, bar, say)
    if not found:
        raise ValueError("nothing to score by: name a network with --extractor, such as inception or dinov2-vit-b")
    return Scores(
        what=what, weights=weights, data=real.name, unusable=len(real.unusable),
        unusable_paths=tuple(real.unusable[:LISTED]), classifier_accuracy=real.accuracy, spaces=found,
    )  # fmt: skip


@dataclass
class Real:
    """The real side: how an extractor sees it, and what is known of its classes."""

    name: str
    look: Callable[[Extractor, Progress | None], Reference]
    labels: Tensor | None = None  # of the images behind every reference's features
    classes: Sequence[str] = ()
    accuracy: float | None = None
    unusable: Sequence[str] = ()
    seen: dict[str, tuple[Reference, dict[str, float]]] = field(default_factory=dict)

    def seen_by(
        self, extractor: Extractor, rules: Rules, progress: Progress | None
    ) -> tuple[Reference, dict[str, float]]:
        """(the reference in this extractor's space, its floor by these rules); an extractor looks once."""
        if extractor.id not in self.seen:
            reference = self.look(extractor, progress)
            self.seen[extractor.id] = reference, reference.floor(rules=rules)
        return self.seen[extractor.id]


class RealSide:
    """Real images or a reference file that many sets of samples are judged by: looked at once for them all."""

    def __init__(self, source: ImageSource | ReferenceFile):
        self.source = source
        self.looks: dict[str, tuple[Real, dict[str, Extractor]]] = {}

    def looked_at(
        self, judging: Judging, extractors: dict[str, Extractor], device: torch.device, bar: Bar
    ) -> tuple[Real, dict[str, Extractor]]:
        """(the real side, the spaces to judge in): against images pixels and a classifier too."""
        key = " ".join([fingerprint(judging), *(f"{name}={e.id}" for name, e in extractors.items())])
        if key not in self.looks:
            if isinstance(self.source, ReferenceFile):
                self.looks[key] = Real(self.source.path.name, self.source.seen_by), extractors
            else:
                self.looks[key] = _look_at_images(self.source, judging, extractors, device, bar)
        return self.looks[key]


def _look_at_images(
    source: ImageSource, judging: Judging, extractors: dict[str, Extractor], device: torch.device, bar: Bar
) -> tuple[Real, dict[str, Extractor]]:
    bad: list[str] = []
    images, labels = read_images(source, judging.real, lambda image: bad.append(image.path))

    def look(extractor: Extractor, progress: Progress | None) -> Reference:
        made = make_reference(extractor, images, progress)
        made.resize = how_sized(source)
        return made

    real = Real(judging.data.source, look, unusable=bad)
    named = find_protocol(judging.protocol)
    if named is not None and named.extractor:
        return real, extractors
    spaces: dict[str, Extractor] = {"pixels": Pixels(source.channels, source.size), **extractors}
    if len(source.classes) > 1:
        real.labels, real.classes = labels, source.classes
        spaces["classifier"], real.accuracy = classify(images, labels, source, judging.classifier, device, bar)
    return real, spaces


def how_sized(source: ImageSource) -> str:
    """How real images came to the size at which they are compared, by those that are looked at for their size."""
    stored = set()
    for index in source.probes():
        with contextlib.suppress(BadImage):
            stored.add(tuple(source.shape(index)))
    if stored <= {tuple(source.size)}:
        return "of their stored size"
    return f"cut to {source.size[0]}x{source.size[1]} from other sizes by ADM's crop"


def arithmetic(device: torch.device) -> str:
    """The kind of device, and which float32 products are TF32 there: told with a score, and not compared."""
    if device.type != "cuda":
        return device.type
    quick = {
        "products": torch.get_float32_matmul_precision() != "highest",
        "convolutions": torch.backends.cudnn.allow_tf32,
    }
    return f"cuda, TF32 in {' and '.join(k for k, on in quick.items() if on) or 'nothing'}"


def score_spaces(
    samples: Samples, real: Real, judging: Judging, spaces: dict[str, Extractor], device: torch.device, bar: Bar,
    say: Say,
) -> dict[str, SpaceScores]:  # fmt: skip
    """The scores of every space. say gets what to doubt of them, a line each."""
    labels = samples.labels
    if labels is not None and real.classes and int(labels.max()) >= len(real.classes):
        say(f"the samples' classes go up to {int(labels.max())}, the data have {len(real.classes)}: no agreement")
        labels = None
    elif not real.classes and "pixels" in spaces:
        say("the data have no classes: no classifier, no class agreement")
    found = {}
    for done, (name, extractor) in enumerate(spaces.items()):
        bar("scores", done, len(spaces))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", FewSamples)
            found[name] = score_space(samples, labels, real, judging, extractor, device, bar, say)
        if any(issubclass(w.category, FewSamples) for w in caught):
            n = found[name].scores[0].protocol.reference_n
            few = f"{extractor.width} features, {len(samples.images)} samples, {n} real images (halved for floor)"
            say(f"{name}: {few}: the Frechet distance is biased upwards; take more images than features")
    bar("scores", len(spaces), len(spaces))
    return found


def score_space(
    samples: Samples, labels: Tensor | None, real: Real, judging: Judging, extractor: Extractor, device: torch.device,
    bar: Bar, say: Say,
) -> SpaceScores:  # fmt: skip
    """The scores of one space, with floor, and by class where both sides have labels."""
    named = find_protocol(judging.protocol)
    mine = named is None or not named.extractor or of_family(extractor.id, named.extractor)
    name = judging.protocol if mine else "custom"
    reference, floor = real.seen_by(extractor, rules_of(name), lambda done, total: bar("real images", done, total))
    protocol = samples.protocol(reference, name).with_({"arithmetic": arithmetic(device)})
    scorer = Scorer(samples.images, labels, extractor, reference, protocol.rules, bar)
    wanted = named.metrics if mine and named is not None else ()
    metrics = [m for m in wanted or metrics_of(extractor, labels is not None) if m not in PAIRED]
    for note in reference.notes:
        say(note)
    for metric in metrics:
        if why := scorer.missing(metric):
            say(f"no {metric} in {extractor.id}: {why}")
    metrics = [m for m in metrics if not scorer.missing(m)]
    asked = samples.labels if "inception_score" in metrics else None
    if asked is not None and (told := sorted_by_class(asked, protocol.rules.split)):
        say(told)
    scores = score_with(scorer, protocol, metrics)
    classes = {} if real.labels is None else scorer.by_class(real.labels, metrics)
    floor = {metric: value for metric, value in floor.items() if metric in metrics}
    return SpaceScores(
        extractor=extractor.id, floor=floor, scores=tuple(scores),
        classes={m: {real.classes[k]: v for k, v in values.items()} for m, values in classes.items()},
    )  # fmt: skip
