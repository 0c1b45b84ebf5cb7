"""Embeddings of the time and of the class label."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoid(t: Tensor, width: int = 256, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal features (B, width) of times t (B,), always float32: [cos | sin], a zero column when width is odd.

    Frequencies max_period^(-i / half), i = 0 .. half - 1, half = width // 2 (divided by half, not by half - 1).
    Source: DiT (arXiv 2212.09748) and its released code; DDT uses max_period 10.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    angle = t.float()[:, None] * torch.exp(-math.log(max_period) * steps / half)
    features = torch.cat([angle.cos(), angle.sin()], dim=1)
    return nn.functional.pad(features, (0, width % 2))


class TimeEmbed(nn.Module):
    """Network time (B,) -> (B, width): sinusoid, Linear, SiLU, Linear; the sinusoid is float32 under any policy."""

    def __init__(self, width: int, *, features: int = 256, max_period: float = 10000.0):
        super().__init__()
        self.features, self.max_period = features, max_period
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        waves = sinusoid(t, self.features, self.max_period)  # (B, features)
        return self.mlp(waves.to(next(self.mlp.parameters()).dtype))


class LabelEmbed(nn.Module):
    """Class id (B,) -> (B, width). With `null` the table has one more row, id = num_classes, for "no label"."""

    def __init__(self, num_classes: int, width: int, *, null: bool = True):
        super().__init__()
        self.table = nn.Embedding(num_classes + null, width)

    def forward(self, label: Tensor) -> Tensor:
        return self.table(label)


class PooledEmbed(nn.Sequential):
    """The pooled text vector (B, pooled_width) -> (B, width): Linear, SiLU, Linear (SD3)."""

    def __init__(self, pooled_width: int, width: int):
        super().__init__(nn.Linear(pooled_width, width), nn.SiLU(), nn.Linear(width, width))
