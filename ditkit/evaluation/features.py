"""Features of images in an extractor's space, and their mean and covariance, gathered in one pass.

N images, D features. Everything that is compared with a stored number is float64.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ditkit.evaluation.metrics.frechet import frechet_distance
from ditkit.protocols import BadImage, Extractor, Item, Source

Progress = Callable[[int, int], object]  # called with (done, total)


class FewSamples(UserWarning):
    """A covariance was estimated from fewer samples than it has dimensions: it is singular, distances are biased."""


class Images(Protocol):
    """Anything that is cut like a uint8 tensor (N, C, H, W): a tensor, or the folder that `generate` wrote."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> Tensor: ...


@dataclass
class Moments:
    """Mean (D,) and scatter (D, D) = sum (x - mean)(x - mean)^T of the features seen so far, in float64.

    Any cut into batches, any order and any merging of parts give the same result up to rounding.
    """

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    scatter: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """The moments of features (N, D)."""
        x = features.detach().to("cpu", torch.float64)
        mean = x.mean(0)
        centred = x - mean
        return cls(len(x), mean, centred.T @ centred)

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets together (Chan, Golub and LeVeque 1979, eq. 2.1); neither is changed."""
        if other.count == 0 or self.count == 0:
            kept = self if other.count == 0 else other
            return Moments(kept.count, kept.mean.clone(), kept.scatter.clone())
        if len(self.mean) != len(other.mean):
            raise ValueError(f"moments of {len(self.mean)} and of {len(other.mean)} features cannot be merged")
        n = self.count + other.count
        step = other.mean - self.mean
        spread = step.outer(step) * (self.count * other.count / n)
        return Moments(n, self.mean + step * (other.count / n), self.scatter + other.scatter + spread)

    def add(self, features: Tensor) -> Moments:
        """These moments after seeing further features (N, D) too; returns the new moments."""
        return self.merge(Moments.of(features)) if len(features) else self

    @property
    def covariance(self) -> Tensor:
        """Covariance (D, D) with divisor N - 1, as np.cov. ValueError below two samples."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, there are {self.count}")
        return self.scatter / (self.count - 1)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify these statistics (count, mean and scatter to 9 digits)."""
        digest = hashlib.sha256(f"{self.count}".encode())
        for values in (self.mean, self.scatter):
            digest.update(" ".join(f"{v:.9g}" for v in values.flatten().tolist()).encode())
        return digest.hexdigest()[:16]


def frechet(a: Moments, b: Moments) -> float:
    """Frechet distance between two sets of features; warns (FewSamples) where N does not exceed D."""
    for moments in (a, b):
        if moments.count <= len(moments.mean):
            warnings.warn(
                f"Frechet distance from {moments.count} samples of {len(moments.mean)} features: the covariance is "
                "singular and the distance biased upwards; use more samples than features",
                FewSamples,
                stacklevel=2,
            )
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def _batches(extractor: Extractor, images: Images, batch: int, progress: Progress | None) -> Iterator[Tensor]:
    """Pooled features (n, D) on the CPU, float32, of consecutive batches, in the extractor's own device and mode."""
    total = len(images)
    with torch.no_grad():
        for start in range(0, total, batch):
            stop = min(start + batch, total)
            features = extractor(images[start:stop]).pooled.detach().float().cpu()
            if not torch.isfinite(features).all():
                raise ValueError(f"extractor {extractor.id}: NaN or infinite features for images {start}..{stop - 1}")
            yield features
            if progress is not None:
                progress(stop, total)


def extract(extractor: Extractor, images: Images, batch: int = 128, progress: Progress | None = None) -> Tensor:
    """Pooled features (N, D) float32 of uint8 images (N, C, H, W), on the CPU."""
    if not len(images):
        raise ValueError("extract: there are no images")
    return torch.cat(list(_batches(extractor, images, batch, progress)))


def moments(extractor: Extractor, images: Images, batch: int = 128, progress: Progress | None = None) -> Moments:
    """Streaming `Moments` of the pooled features: no more than one batch of features is in memory."""
    total = Moments()
    for features in _batches(extractor, images, batch, progress):
        total = total.add(features)
    return total


def read_items(
    source: Source, limit: int | None = None, on_bad: Callable[[BadImage], object] | None = None
) -> list[Item]:
    """The usable examples of a source; unusable ones are left out.

    limit: at most that many, spread evenly over the source. on_bad: is told of each that is left out. ValueError where
    nothing is usable.
    """
    n = len(source)
    chosen = range(n) if limit is None or limit >= n else [i * n // limit for i in range(limit)]
    items = []
    for i in chosen:
        try:
            items.append(source[i])
        except BadImage as bad:
            if on_bad is not None:
                on_bad(bad)
    if not items:
        raise ValueError(f"read_images: none of the {n} images can be used")
    return items


def read_images(
    source: Source, limit: int | None = None, on_bad: Callable[[BadImage], object] | None = None
) -> tuple[Tensor, Tensor]:
    """What `read_items` finds, as uint8 images (N, C, H, W) and their labels (N,)."""
    items = read_items(source, limit, on_bad)
    return torch.stack([item.image for item in items]), torch.tensor([item.label for item in items])
