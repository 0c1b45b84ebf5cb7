"""Position tables: where a token sits in the image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]  # cosines and sines, each (N, h / 2), of one angle for each pair of channels
ROPE_SPAN = 16.0  # DDT's grids cover [0, 16] in both directions, whatever their number of tokens


def sincos_table(
    rows: int,
    columns: int,
    width: int,
    *,
    step: float = 1.0,
    first: tuple[float, float] = (0.0, 0.0),
    device: torch.device | None = None,
) -> Tensor:
    """Fixed 2-D sin-cos table (rows * columns, width), float32, its numbers made on the CPU; tokens are row-major.

    As published by MAE and DiT: the FIRST half of the channels encodes the COLUMN, the second half the row; each half
    is [sin | cos] with frequencies 10000^(-i / (width/4)). Row i stands at first[0] + i step, column j at first[1] +
    j step: DiT has the integers from 0, SD3 interpolates and centres (section 5.3.2; `centred`).
    Raises ValueError unless width is a multiple of 4. Source: DiT (arXiv 2212.09748) and its released code.
    """
    if width % 4:
        raise ValueError(f"sincos_table: width must be a multiple of 4, got {width}")
    quarter = width // 4
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter)

    def encode(count: int, start: float) -> Tensor:
        place = start + step * torch.arange(count, dtype=torch.float64, device="cpu")
        angle = place[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=1).to(device, torch.float32)  # (count, width / 2)

    column = encode(columns, first[1])[None, :].expand(rows, -1, -1)
    row = encode(rows, first[0])[:, None].expand(-1, columns, -1)
    return torch.cat([column, row], dim=2).reshape(rows * columns, width)


def table_for(native: Tensor, grid: tuple[int, int], rows: int, columns: int) -> Tensor:
    """The table (rows * columns, D): `native` (of `grid`) where it fits, else one made for the actual grid."""
    if (rows, columns) == grid:
        return native
    return sincos_table(rows, columns, native.shape[-1]).to(native)


def centred(side: int, native: int, step: float) -> float:
    """Where the first of `side` tokens stands, when those of the native grid stand at 0, step, 2 step, ...

    Longer sides reach beyond both ends of the native grid by equal numbers of tokens (SD3 section 5.3.2); where the
    difference is odd, one more at the beginning, as a crop of a stored table with (M - side) // 2 has it.
    """
    return (native - side) // 2 * step


def rope_table(rows: int, columns: int, head_width: int, *, device: torch.device | None = None) -> Rotation:
    """Cosines and sines (rows * columns, head_width / 2) of DDT's 2-D rotary embedding, float32; tokens are row-major.

    Column and row positions are linspace(0, 16) with both ends, so that a finer grid interpolates; pair 2k turns with
    the column, pair 2k + 1 with the row, both at frequency 10000^(-4k / head_width).
    Raises ValueError unless head_width is a multiple of 4. Source: RoPE (arXiv 2104.09864) as DDT (2504.05741) has it.
    """
    if head_width % 4:
        raise ValueError(f"rope_table: head width must be a multiple of 4, got {head_width}")
    k = torch.arange(head_width // 4, dtype=torch.float32, device=device)
    frequency = torch.exp(-math.log(10000.0) * 4 * k / head_width)
    column = torch.linspace(0, ROPE_SPAN, columns, device=device)[None, :, None] * frequency  # (1, columns, h / 4)
    row = torch.linspace(0, ROPE_SPAN, rows, device=device)[:, None, None] * frequency  # (rows, 1, h / 4)
    angle = torch.stack(torch.broadcast_tensors(column, row), dim=-1).reshape(rows * columns, head_width // 2)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn adjacent channel pairs (2j, 2j + 1) of x (..., N, h) by the angles of `rotation`; float32 (or wider) out."""
    cos, sin = rotation
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
