"""Convolutional levels of a U-Net. Shapes: B batch, C channels, h, w rows and columns of the map, D width of c."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, silu

from ditkit.nn.modulation import Modulation, modulate


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of 32 groups, or of as many as divide both 32 and the channels; eps 1e-6."""
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


class ResBlock(nn.Module):
    """x + Conv(SiLU(GN(Conv(SiLU(GN(x)))) (1 + scale) + shift)), 3 x 3; shift and scale are regressed from c.

    DDPM's block with ADM's modulation, as in simple diffusion (arXiv 2301.11093). Where channels change, the first x
    passes a 1 x 1 convolution.
    """

    def __init__(self, channels: int, out: int, width: int):
        super().__init__()
        self.norm1, self.norm2 = group_norm(channels), group_norm(out)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.modulation = Modulation(width, 2, out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.straight = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, channels, h, w), c (B, D) -> (B, out, h, w)."""
        shift, scale = (part.transpose(1, 2)[..., None] for part in self.modulation(c))  # (B, out, 1, 1)
        h = self.conv1(silu(self.norm1(x)))
        return self.straight(x) + self.conv2(silu(modulate(self.norm2(h), shift, scale)))


class Down(nn.Module):
    """Residual blocks of one level, each of whose outputs is kept for the way up; then half the side (mean)."""

    def __init__(self, channels: int, out: int, width: int, blocks: int):
        super().__init__()
        self.blocks = nn.ModuleList(ResBlock(channels, channels, width) for _ in range(blocks))
        self.project = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x (B, channels, h, w) -> (B, out, h / 2, w / 2), and what the blocks made."""
        kept = []
        for block in self.blocks:
            x = block(x, c)
            kept.append(x)
        return self.project(avg_pool2d(x, 2)), kept


class Up(nn.Module):
    """Twice the side (nearest), then residual blocks, each over the last one's map and one that `Down` kept."""

    def __init__(self, channels: int, out: int, width: int, blocks: int):
        super().__init__()
        self.project = nn.Conv2d(channels, out, 1)
        self.blocks = nn.ModuleList(ResBlock(2 * out, out, width) for _ in range(blocks))

    def forward(self, x: Tensor, c: Tensor, kept: list[Tensor]) -> Tensor:
        """x (B, channels, h, w), kept: maps (B, out, 2 h, 2 w), the last first read -> (B, out, 2 h, 2 w)."""
        x = interpolate(self.project(x), scale_factor=2, mode="nearest")
        for block, other in zip(self.blocks, reversed(kept), strict=True):
            x = block(torch.cat([x, other.to(x.dtype)], dim=1), c)
        return x
