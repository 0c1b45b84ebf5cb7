"""The classifier that judges samples: trained on the real images, averaged down so that it trains in a minute."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ditkit.data import ImageSource
from ditkit.evaluation import Classifier, ClassifierSettings, train_classifier
from ditkit.protocols import Extractor, Features

LOOK = 32  # the classifier looks at images averaged down to this side

Bar = Callable[..., None]  # bar(stage, done, total)


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
