"""Learned position tables on another grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def resample_positions(
    table: Tensor, grid: tuple[int, int], prefix: int = 0, old_grid: tuple[int, int] | None = None
) -> Tensor:
    """(1, prefix + old rows * columns, D) -> (1, prefix + new rows * columns, D); prefix rows (cls) are kept.

    Bicubic WITH antialias in float32, as timm's resample_abs_pos_embed: what REPA and DDT give their teachers
    (DINOv2 37x37 -> 16x16). The interpolation inside torch.hub's and transformers' DINOv2 has no antialias and gives
    other targets. old_grid None: a square table. The same grid returns the table untouched.
    """
    count = table.shape[1] - prefix
    rows, columns = old_grid or (math.isqrt(count), math.isqrt(count))
    if rows * columns != count:
        raise ValueError(f"position table of {count} places is no {rows}x{columns} grid; give old_grid")
    if (rows, columns) == tuple(grid):
        return table
    kept, places = table[:, :prefix], table[:, prefix:]
    image = places.float().reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=tuple(grid), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat((kept, image.flatten(2).transpose(1, 2).to(table.dtype)), dim=1)
