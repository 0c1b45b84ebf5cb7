"""Features of images in an extractor's space, and their mean and covariance, gathered in one pass.

N images, D features. Everything that is compared with a stored number is float64.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ditkit.evaluation.metrics.arrays import Progress, slices
from ditkit.evaluation.metrics.frechet import frechet_distance
from ditkit.protocols import BadImage, Extractor, Item, Source, ViewingExtractor, Views

AT_ONCE = 4096  # rows of features that are held in float64 at a time


Look = Callable[[Tensor], Views]  # uint8 images (B, C, H, W) -> what is seen of them


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
        """The moments of features (N, D), of which a few thousand rows at a time are held in float64."""
        if len(features) > AT_ONCE:
            total = cls()
            for part in features.split(AT_ONCE):
                total = total.merge(cls.of(part))
            return total
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

    def without(self, part: Moments) -> Moments:
        """The moments of the samples that remain when those of `part`, which are among these, are taken out."""
        if part.count == 0:
            return Moments(self.count, self.mean.clone(), self.scatter.clone())
        n = self.count - part.count
        if n < 1 or len(self.mean) != len(part.mean):
            raise ValueError(f"moments of {part.count} samples cannot be taken out of those of {self.count}")
        step = (part.mean - self.mean) * (self.count / n)
        spread = step.outer(step) * (n * part.count / self.count)
        return Moments(n, self.mean - step * (part.count / self.count), self.scatter - part.scatter - spread)

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


def _pooled(extractor: Extractor) -> Look:
    return lambda images: Views(extractor(images).pooled)


def _everything(extractor: Extractor) -> Look:
    """`views` where the extractor has it, else its pooled features and, where it names classes, their probabilities."""
    if isinstance(extractor, ViewingExtractor):
        return extractor.views
    classify = getattr(extractor, "probabilities", None)
    return lambda images: Views(extractor(images).pooled, None, classify(images) if classify is not None else None)


def _looks(
    look: Look, extractor: Extractor, images: Images, batch: int, progress: Progress | None
) -> Iterator[tuple[slice, Views]]:
    """Consecutive batches, and what is seen of each: features float32, on the CPU, checked to be finite."""
    total = len(images)
    with torch.no_grad():
        for rows in slices(total, batch):
            seen = look(images[rows])
            pooled = seen.pooled.detach().float().cpu()
            spatial = None if seen.spatial is None else seen.spatial.detach().float().cpu()
            if not all(torch.isfinite(x).all() for x in (pooled, spatial) if x is not None):
                where = f"images {rows.start}..{rows.stop - 1}"
                raise ValueError(f"extractor {extractor.id}: NaN or infinite features for {where}")
            yield (
                rows,
                Views(pooled, spatial, None if seen.probabilities is None else seen.probabilities.detach().cpu()),
            )
            if progress is not None:
                progress(rows.stop, total)


def _joined(looks: Iterator[tuple[slice, Views]], total: int) -> Views:
    """All batches in one tensor each, which is filled as they come: they are never in memory twice."""
    whole: dict[str, Tensor] = {}
    for rows, seen in looks:
        for name, part in seen._asdict().items():
            if part is not None:
                if name not in whole:
                    whole[name] = torch.empty(total, *part.shape[1:], dtype=part.dtype)
                whole[name][rows] = part
    return Views(whole["pooled"], whole.get("spatial"), whole.get("probabilities"))


def extract(extractor: Extractor, images: Images, batch: int = 128, progress: Progress | None = None) -> Tensor:
    """Pooled features (N, D) float32 of uint8 images (N, C, H, W), on the CPU."""
    if not len(images):
        raise ValueError("extract: there are no images")
    return _joined(_looks(_pooled(extractor), extractor, images, batch, progress), len(images)).pooled


def views(extractor: Extractor, images: Images, batch: int = 128, progress: Progress | None = None) -> Views:
    """All that scores ask of uint8 images (N, C, H, W), in one pass, on the CPU.

    pooled (N, D) and spatial (N, S) float32, probabilities (N, K); the last two are None where the extractor has
    none. ValueError for no images, or features that are not finite.
    """
    if not len(images):
        raise ValueError("views: there are no images")
    return _joined(_looks(_everything(extractor), extractor, images, batch, progress), len(images))


def spread(n: int, limit: int | None) -> Sequence[int]:
    """`limit` of the indices 0, ..., n - 1, spread evenly; all of them where there are no more, or limit is None."""
    return range(n) if limit is None or limit >= n else [i * n // limit for i in range(limit)]


def _usable(source: Source, chosen: Sequence[int], on_bad: Callable[[BadImage], object] | None) -> Iterator[Item]:
    """The usable examples among the chosen ones, read as they are asked for. ValueError where there are none."""
    found = False
    for i in chosen:
        try:
            item = source[i]
        except BadImage as bad:
            if on_bad is not None:
                on_bad(bad)
            continue
        found = True
        yield item
    if not found:
        raise ValueError(f"read_images: none of the {len(source)} images can be used")


def read_items(
    source: Source, limit: int | None = None, on_bad: Callable[[BadImage], object] | None = None
) -> list[Item]:
    """The usable examples of a source; unusable ones are left out.

    limit: at most that many, spread evenly over the source. on_bad: is told of each that is left out. ValueError where
    nothing is usable.
    """
    return list(_usable(source, spread(len(source), limit), on_bad))


def read_images(
    source: Source, limit: int | None = None, on_bad: Callable[[BadImage], object] | None = None
) -> tuple[Tensor, Tensor]:
    """What `read_items` finds, as uint8 images (N, C, H, W) and their labels (N,), each image in memory once.

    ValueError also where images differ in size.
    """
    chosen = spread(len(source), limit)
    labels: list[int] = []
    images = torch.zeros(0, dtype=torch.uint8)
    for item in _usable(source, chosen, on_bad):
        if not labels:
            images = item.image.new_empty(len(chosen), *item.image.shape)
        if item.image.shape != images.shape[1:]:
            sizes = " and ".join("x".join(map(str, shape)) for shape in (images.shape[1:], item.image.shape))
            raise ValueError(f"read_images: {item.path} has another size than the first image ({sizes})")
        images[len(labels)] = item.image
        labels.append(item.label)
    return images[: len(labels)], torch.tensor(labels)
