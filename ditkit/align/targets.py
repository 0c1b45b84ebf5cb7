"""Teacher targets for a batch of images, online; a cache that stored the same tensors gives equal losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from ditkit.protocols import Extractor, Features


class GridExtractor(Extractor, Protocol):
    """An Extractor that can be asked for a grid: it scales the image so that its patches fall on it."""

    def __call__(self, images: Tensor, *, grid: tuple[int, int] | None = None) -> Features: ...


def compute_targets(
    teachers: Sequence[GridExtractor],
    images: Tensor,
    grid: tuple[int, int],
    policy: Literal["resize_image", "resize_features"] = "resize_image",
) -> list[Features]:
    """Images (B, C, H, W) uint8 -> Features of each teacher, without gradients.

    grid: (rows, columns) of the model's tokens. Policy resize_image asks each teacher for that grid (REPA's way);
    resize_features takes each teacher's own grid and leaves the resampling to the Aligner.
    """
    with torch.no_grad():
        return [t(images, grid=grid) if policy == "resize_image" else t(images) for t in teachers]
