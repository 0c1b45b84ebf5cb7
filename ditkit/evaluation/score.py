"""Generated images against real ones: the scores of one extractor's space, each with its protocol and interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from ditkit.evaluation.features import Images, Moments, Progress, extract, frechet
from ditkit.evaluation.metrics.agreement import agreement
from ditkit.evaluation.metrics.inception_score import inception_score
from ditkit.evaluation.metrics.kernel import kernel_distance
from ditkit.evaluation.metrics.precision_recall import precision_recall
from ditkit.evaluation.protocols import Protocol as ScoreProtocol
from ditkit.evaluation.protocols import Score
from ditkit.evaluation.reference import Reference
from ditkit.evaluation.uncertainty import Interval, jackknife_interval, share_interval
from ditkit.protocols import Extractor, Features

FEATURE_METRICS = ("frechet", "kernel", "precision", "recall")  # of any extractor
CLASS_METRICS = ("inception_score", "agreement")  # of a classifier
LARGEST = {"features": 512, "samples": 5000}  # beyond these an interval takes minutes, and is left out

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


@dataclass
class Scorer:
    """Computes each metric on first use from one extraction; images may be a folder that does not fit in memory."""

    images: Images
    labels: Tensor | None
    extractor: Extractor
    reference: Reference
    progress: Progress | None = None

    @cached_property
    def features(self) -> Tensor:
        return extract(self.extractor, self.images, progress=self.progress)

    @cached_property
    def probabilities(self) -> Tensor:
        if not isinstance(self.extractor, ClassifyingExtractor):
            raise ValueError(f"extractor {self.extractor.id} names no classes: no inception_score or agreement from it")
        parts = [self.images[i : i + 128] for i in range(0, len(self.images), 128)]
        return torch.cat([self.extractor.probabilities(part) for part in parts])

    def _interval(self, value: float, statistic, low: float, high: float) -> Value:
        n, cheap = len(self.images), self.features.shape[1] <= LARGEST["features"]
        if n > LARGEST["samples"] or not cheap:
            return value, None
        return value, jackknife_interval(value, statistic, n, low, high)

    def frechet(self) -> Value:
        def statistic(rows: Tensor) -> float:
            return frechet(Moments.of(self.features[rows]), self.reference.moments)

        value = frechet(Moments.of(self.features), self.reference.moments)
        return self._interval(value, statistic, 0.0, float("inf"))

    def kernel(self) -> Value:
        def statistic(rows: Tensor) -> float:
            return kernel_distance(self.reference.features, self.features[rows], subsets=10)

        value = kernel_distance(self.reference.features, self.features)
        return self._interval(value, statistic, -float("inf"), float("inf"))

    def precision(self) -> Value:
        value = precision_recall(self.reference.features, self.features).precision
        return value, share_interval(value, len(self.images))

    def recall(self) -> Value:
        def statistic(rows: Tensor) -> float:
            return precision_recall(self.reference.features, self.features[rows]).recall

        return self._interval(precision_recall(self.reference.features, self.features).recall, statistic, 0.0, 1.0)

    def inception_score(self) -> Value:
        def statistic(rows: Tensor) -> float:
            return inception_score(self.probabilities[rows], split_size=5000)

        value = inception_score(self.probabilities, split_size=5000)
        return self._interval(value, statistic, 1.0, float(self.probabilities.shape[1]))

    def agreement(self) -> Value:
        if self.labels is None:
            raise ValueError("class agreement needs the labels that were asked for; these samples have none")
        value = agreement(self.probabilities, self.labels)
        return value, share_interval(value, len(self.images))


BETTER: dict[str, Literal["lower", "higher"]] = {
    "frechet": "lower",
    "kernel": "lower",
    "precision": "higher",
    "recall": "higher",
    "inception_score": "higher",
    "agreement": "higher",
}


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

    metrics: names in BETTER; by default all that this extractor and these labels allow. ValueError where the protocol
    names another extractor, reference or N than what is scored here: a stored number must not lie about its making.
    """
    stated = (protocol.extractor, protocol.reference, protocol.n)
    actual = (extractor.id, reference.fingerprint, len(images))
    if stated != actual or reference.extractor != extractor.id:
        raise ValueError(
            f"the protocol states (extractor, reference, n) = {stated}, the scored ones are {actual}, "
            f"and the reference was made by {reference.extractor}"
        )
    scorer = Scorer(images, labels, extractor, reference, progress)
    if metrics is None:
        classes = CLASS_METRICS if labels is not None else CLASS_METRICS[:1]
        metrics = (*FEATURE_METRICS, *(classes if isinstance(extractor, ClassifyingExtractor) else ()))
    scores = []
    for metric in metrics:
        if metric not in BETTER:
            raise ValueError(f"unknown metric {metric!r}: choose from {', '.join(BETTER)}")
        value, interval = getattr(scorer, metric)()
        scores.append(Score(metric=metric, value=value, interval=interval, better=BETTER[metric], protocol=protocol))
    return scores
