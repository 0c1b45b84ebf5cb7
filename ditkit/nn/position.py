"""Position tables: where a token sits in the image."""

from __future__ import annotations

import torch
from torch import Tensor


def sincos_table(rows: int, columns: int, width: int) -> Tensor:
    """Fixed 2-D sin-cos table (rows * columns, width), float32 on the CPU; tokens are row-major.

    As published by MAE and DiT: the FIRST half of the channels encodes the COLUMN, the second half the row; each half
    is [sin | cos] with frequencies 10000^(-i / (width/4)) at integer positions, not centred, not interpolated.
    Raises ValueError unless width is a multiple of 4. Source: DiT (arXiv 2212.09748) and its released code.
    """
    if width % 4:
        raise ValueError(f"sincos_table: width must be a multiple of 4, got {width}")
    quarter = width // 4
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter)

    def encode(count: int) -> Tensor:
        angle = torch.arange(count, dtype=torch.float64, device="cpu")[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=1)  # (count, width / 2)

    column = encode(columns)[None, :].expand(rows, -1, -1)
    row = encode(rows)[:, None].expand(-1, columns, -1)
    return torch.cat([column, row], dim=2).reshape(rows * columns, width).float()
