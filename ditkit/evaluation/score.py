"""Generated images against real ones: the scores of one extractor's space, each with its protocol and interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from ditkit.evaluation.features import Images, Moments, Progress, views
from ditkit.evaluation.metrics.agreement import agreement, agreement_by_class
from ditkit.evaluation.metrics.by_class import kernel_by_class
from ditkit.evaluation.metrics.cmmd import cmmd_terms
from ditkit.evaluation.metrics.inception_score import inception_terms
from ditkit.evaluation.metrics.kernel import kernel_distances
from ditkit.evaluation.metrics.mind import mind
from ditkit.evaluation.metrics.precision_recall import PrecisionRecall, precision_recall
from ditkit.evaluation.named import ADM_SUITE, INCEPTION, of_family
from ditkit.evaluation.protocols import Protocol as ScoreProtocol
from ditkit.evaluation.protocols import Rules, Score
from ditkit.evaluation.reference import Reference
from ditkit.evaluation.uncertainty import (
    Interval,
    frechet_interval,
    kernel_interval,
    mind_interval,
    recall_interval,
    share_interval,
    terms_interval,
)
from ditkit.protocols import Extractor, Features, Views

FEATURE_METRICS = ("frechet", "kernel", "mind", "precision", "recall")  # of any extractor
CLASS_METRICS = ("inception_score", "agreement")  # beside them, of a classifier
FAMILIES = {  # of these extractors other ones
    INCEPTION: (*ADM_SUITE, "kernel"),
    "clip-embedding": ("cmmd", "frechet"),
}
NEEDS_FEATURES = ("kernel", "mind", "cmmd", "precision", "recall")
PAIRED = ("psnr", "ssim")  # of images and their reconstructions; not computed here

BETTER: dict[str, Literal["lower", "higher"]] = {
    "frechet": "lower",
    "spatial_frechet": "lower",
    "kernel": "lower",
    "cmmd": "lower",
    "mind": "lower",
    "precision": "higher",
    "recall": "higher",
    "inception_score": "higher",
    "agreement": "higher",
    "psnr": "higher",
    "ssim": "higher",
}

Bar = Callable[..., object]  # bar(stage, done, total)
Value = tuple[float, Interval | None]


@runtime_checkable
class ClassifyingExtractor(Protocol):
    """An Extractor that also names classes: what Inception Score and class agreement need."""

    id: str
    width: int

    def __call__(self, images: Tensor) -> Features: ...

    def probabilities(self, images: Tensor, batch: int = 128) -> Tensor:
        """Class probabilities (N, K) of uint8 images (N, C, H, W)."""
        ...


def metrics_of(extractor: Extractor, labelled: bool) -> tuple[str, ...]:
    """The scores that an extractor's space is asked for. labelled: the images were asked for by class."""
    for family, metrics in FAMILIES.items():
        if of_family(extractor.id, family):
            return metrics
    if not isinstance(extractor, ClassifyingExtractor):
        return FEATURE_METRICS
    return (*FEATURE_METRICS, *(CLASS_METRICS if labelled else CLASS_METRICS[:1]))


@dataclass
class Scorer:
    """Computes each metric on first use from one pass; images may be a folder that does not fit in memory."""

    images: Images
    labels: Tensor | None
    extractor: Extractor
    reference: Reference
    rules: Rules
    bar: Bar | None = None

    def _told(self, stage: str) -> Progress | None:
        bar = self.bar
        return None if bar is None else lambda done, total: bar(stage, done, total)

    @cached_property
    def seen(self) -> Views:
        return views(self.extractor, self.images, progress=self._told("samples seen"))

    @property
    def features(self) -> Tensor:
        return self.seen.pooled

    @property
    def probabilities(self) -> Tensor:
        if self.seen.probabilities is None:
            raise ValueError(f"extractor {self.extractor.id} names no classes: no inception_score or agreement from it")
        return self.seen.probabilities

    @cached_property
    def covered(self) -> PrecisionRecall:
        rules, told = self.rules, self._told("neighbours")
        return precision_recall(
            self.reference.features, self.features, rules.neighbours, rule=rules.distances, progress=told
        )

    def missing(self, metric: str) -> str:
        """Why the reference cannot serve this metric; "" where it can."""
        if metric in NEEDS_FEATURES and not len(self.reference.features):
            return "the reference holds statistics and no images"
        if metric == "spatial_frechet" and self.reference.spatial is None:
            return "the reference holds no spatial moments (mu_s, sigma_s)"
        return ""

    def frechet(self) -> Value:
        value, told = self.reference.frechet(Moments.of(self.features)), self._told("limits of frechet")
        return value, frechet_interval(value, self.features, self.reference.real_moments, progress=told)

    def spatial_frechet(self) -> Value:
        spatial, told = self.seen.spatial, self._told("limits of spatial_frechet")
        if spatial is None:
            raise ValueError(f"extractor {self.extractor.id} has no spatial features: no sFID from it")
        value = self.reference.spatial_frechet(Moments.of(spatial))
        return value, frechet_interval(value, spatial, self.reference.real_spatial, progress=told)

    def kernel(self) -> Value:
        real, size = self.reference.features, self.rules.subset_size
        values = kernel_distances(real, self.features, self.rules.subsets, size, progress=self._told("kernel"))
        told = self._told("limits of kernel")
        return values.mean().item(), kernel_interval(values, real, self.features, progress=told)

    def mind(self) -> Value:
        real, told = self.reference.features, self._told("mind")
        value = mind(real, self.features, progress=told)
        return value, mind_interval(value, real, self.features, told)

    def cmmd(self) -> Value:
        found = cmmd_terms(self.reference.features, self.features, progress=self._told("cmmd"))
        return found.value, terms_interval(found.value, found.influence, 0.0)

    def precision(self) -> Value:
        return self.covered.precision, share_interval(self.covered.precision, len(self.features))

    def recall(self) -> Value:
        value, rules, told = self.covered.recall, self.rules, self._told("limits of recall")
        real = self.reference.features
        return value, recall_interval(value, real, self.features, rules.neighbours, rules.distances, told)

    def inception_score(self) -> Value:
        found = inception_terms(self.probabilities, None, self.rules.split)
        return found.value, terms_interval(found.value, found.influence, 1.0, float(self.probabilities.shape[1]))

    def agreement(self) -> Value:
        if self.labels is None:
            raise ValueError("class agreement needs the labels that were asked for; these samples have none")
        value = agreement(self.probabilities, self.labels)
        return value, share_interval(value, len(self.images))

    def by_class(self, real_labels: Tensor, metrics: Sequence[str]) -> dict[str, dict[int, float]]:
        """Of each class by itself: the unbiased kernel distance, and agreement where it is among the metrics.

        real_labels (N,): of the reference's features, in their order. Empty without labels of the samples.
        """
        if self.labels is None or len(real_labels) != len(self.reference.features):
            return {}
        found = {"kernel": kernel_by_class(self.reference.features, real_labels, self.features, self.labels)}
        if "agreement" in metrics:
            found["agreement"] = agreement_by_class(self.probabilities, self.labels)
        return found


def score_images(
    images: Images,
    labels: Tensor | None,
    extractor: Extractor,
    reference: Reference,
    protocol: ScoreProtocol,
    *,
    metrics: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> list[Score]:
    """The named scores of uint8 images (N, C, H, W), asked for as `labels` (N,) or None, each with `protocol`.

    metrics: names in BETTER; by default all that this extractor, these labels and the reference allow. ValueError where
    the protocol names another extractor, reference or N than what is scored here: a stored number must not lie about
    its making. The metrics follow the protocol's rules.
    """
    bar = None if progress is None else lambda stage, done, total: progress(done, total)
    scorer = Scorer(images, labels, extractor, reference, protocol.rules, bar)
    if metrics is None:
        metrics = [m for m in metrics_of(extractor, labels is not None) if not scorer.missing(m)]
    return score_with(scorer, protocol, metrics)


def score_with(scorer: Scorer, protocol: ScoreProtocol, metrics: Sequence[str]) -> list[Score]:
    """The named scores of a scorer; ValueErrors of `score_images`."""
    extractor, reference = scorer.extractor, scorer.reference
    stated = (protocol.extractor, protocol.reference, protocol.n, protocol.rules)
    actual = (extractor.id, reference.fingerprint, len(scorer.images), scorer.rules)
    if stated != actual or reference.extractor != extractor.id:
        raise ValueError(
            f"the protocol states (extractor, reference, n, rules) = {stated}, the scored ones are {actual}, "
            f"and the reference was made by {reference.extractor}"
        )
    scores = []
    for metric in metrics:
        if not hasattr(Scorer, metric) or metric not in BETTER:
            raise ValueError(f"unknown metric {metric!r}: choose from {', '.join(BETTER)}")
        if why := scorer.missing(metric):
            raise ValueError(f"{metric}: {why}")
        value, interval = getattr(scorer, metric)()
        scores.append(Score(metric=metric, value=value, interval=interval, better=BETTER[metric], protocol=protocol))
    return scores


def sorted_by_class(labels: Tensor, split: int = 5000) -> str:
    """What to say of classes (N,) so sorted that the splits of the Inception Score hold few of them; "" else."""
    every = len(labels.unique())
    parts = [part for part in labels.split(split) if len(part) == split]
    if len(labels) <= split:
        return ""
    shuffled = every * (1 - (1 - 1 / every) ** split)  # what a split of a shuffled file would hold
    most = max(len(part.unique()) for part in parts)
    if most > 0.7 * shuffled:
        return ""
    return (
        f"the images are sorted by class: no split of {split:,} holds more than {most} of {every} classes, which "
        "lowers the Inception Score; shuffle them to compare with papers"
    )
