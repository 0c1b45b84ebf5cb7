"""Aspect-ratio buckets: a few sizes of about one area that images are cropped to, and which image has which."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from pydantic import Field, model_validator

from ditkit.config import Settings

LEAST_AREA = 0.9  # of side x side; with multiples of 64 and ratios up to 4 this gives SDXL's sizes around 1024


class BucketSettings(Settings):
    """Sizes (H, W) of nearly side x side pixels in area, so that images keep their aspect ratio (SDXL, SD3)."""

    side: int = Field(256, ge=1, description="pixels: the buckets have the area of a square of this side")
    multiple: int = Field(64, ge=1, description="heights and widths are multiples of this many pixels")
    max_ratio: float = Field(2.0, ge=1, description="the longer side over the shorter one, at most")

    @model_validator(mode="after")
    def _check(self) -> BucketSettings:
        if self.side % self.multiple:
            raise ValueError(f"buckets.side {self.side} must be a multiple of buckets.multiple {self.multiple}")
        return self


class Buckets(NamedTuple):
    """sizes: the (H, W) that are in use; of: (n,) int64, each image's place among them, -1 where its size is unknown.

    bad: (path, reason) of the images in no bucket.
    """

    sizes: tuple[tuple[int, int], ...]
    of: np.ndarray
    bad: tuple[tuple[str, str], ...] = ()


def bucket_sizes(settings: BucketSettings) -> tuple[tuple[int, int], ...]:
    """All (H, W), by rising height / width: multiples of `multiple`, area 0.9 to 1 times side^2, ratio to `max_ratio`.

    Side 1024, multiple 64 and ratio 4 give the list of SDXL (arXiv 2307.01952, appendix I), with landscape and portrait
    alike; it is also what SD3's "H W about S^2" (arXiv 2403.03206, section 5.3.2) leaves open.
    """
    side, step = settings.side, settings.multiple
    found = []
    for height in range(step, int(side * settings.max_ratio) + step, step):
        for width in range(step, side * side // height + 1, step):
            ratio = max(height, width) / min(height, width)
            if height * width >= LEAST_AREA * side * side and ratio <= settings.max_ratio:
                found.append((height, width))
    return tuple(sorted(found, key=lambda size: size[0] / size[1]))


def nearest(shapes: np.ndarray, sizes: tuple[tuple[int, int], ...]) -> np.ndarray:
    """(n,) int64: for shapes (n, 2) of (H, W), the size whose log aspect ratio is nearest; of equal ones the larger."""
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i][0] * sizes[i][1])
    ratios = np.log([sizes[i][0] / sizes[i][1] for i in order])
    distance = np.abs(np.log(shapes[:, :1] / shapes[:, 1:]) - ratios).round(12)
    return np.array(order)[distance.argmin(1)]


def sort_shapes(shapes: np.ndarray, settings: BucketSettings, fewest: int = 1) -> tuple[Buckets, tuple[str, ...]]:
    """(buckets in use, notes) for stored shapes (n, 2) of (H, W); (0, 0) is an image whose size is unknown.

    While a bucket holds fewer than `fewest` images, the smallest is closed and each of its images goes to the nearest
    one left: with fewest = the batch, no image has to wait for several epochs until its bucket fills a batch.
    """
    sizes, known = bucket_sizes(settings), shapes.min(1) > 0
    of = np.full(len(shapes), -1, dtype=np.int64)
    of[known] = nearest(shapes[known], sizes)
    open_ = sorted(set(of[known].tolist()))
    own = of.copy()
    while len(open_) > 1:
        counts = np.bincount(of[known], minlength=len(sizes))
        small = min(open_, key=lambda b: (counts[b], b))
        if counts[small] >= fewest:
            break
        open_.remove(small)
        rows = of == small
        of[rows] = np.array(open_)[nearest(shapes[rows], tuple(sizes[b] for b in open_))]
    moved = int((own != of).sum())
    of[known] = np.searchsorted(open_, of[known])
    buckets = Buckets(tuple(sizes[b] for b in open_), of)
    return buckets, _notes(buckets, settings, fewest, moved)


def _notes(buckets: Buckets, settings: BucketSettings, fewest: int, moved: int) -> tuple[str, ...]:
    counts = np.bincount(buckets.of[buckets.of >= 0], minlength=len(buckets.sizes))
    shown = ", ".join(f"{h}x{w}: {n}" for (h, w), n in zip(buckets.sizes, counts, strict=True))
    notes = [f"buckets of about {settings.side}x{settings.side} pixels (height x width: images): {shown}"]
    if moved:
        notes.append(f"{moved} images are in the next bucket: their own had fewer than {fewest} images")
    return tuple(notes)
