"""Adaptive layer norm: shifts, scales and gates regressed from a conditioning vector."""

from __future__ import annotations

from torch import Tensor, nn


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift for tokens x (B, N, D) and per-sample (B, 1, D) or per-token (B, N, D) modulation."""
    return x * (1 + scale) + shift


class Modulation(nn.Module):
    """c (B, D) -> `parts` vectors of shape (B, 1, D): SiLU, then one Linear D -> parts * D (DiT sec. 3.2).

    channels: the width of the vectors, where it is not that of c.
    """

    def __init__(self, width: int, parts: int, channels: int | None = None):
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(width, parts * (channels or width))

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        return self.linear(nn.functional.silu(c)).unsqueeze(1).chunk(self.parts, dim=-1)


class TokenModulation(nn.Module):
    """s (B, 1 or N, D) -> (B, 1 or N, parts * D): one Linear. DDT takes the SiLU before, once for all blocks."""

    def __init__(self, width: int, parts: int):
        super().__init__()
        self.linear = nn.Linear(width, parts * width)

    def forward(self, s: Tensor) -> Tensor:
        return self.linear(s)
