"""Normalisation layers by name."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

QKNorm = Literal["none", "layer", "rms"]


def layer_norm(width: int, *, affine: bool = False) -> nn.LayerNorm:
    """LayerNorm with DiT's eps 1e-6; without learned scale and bias where a modulation follows."""
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=affine)


class RMSNorm(nn.Module):
    """weight x / rms(x) over the last axis, computed in float32 (float64 for float64); answers in the dtype of x."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return nn.functional.rms_norm(x.to(wide), x.shape[-1:], self.weight.to(wide), self.eps).to(x.dtype)


def head_norm(kind: QKNorm, head_width: int) -> nn.Module:
    """Norm of queries and keys over a head: "layer" (REPA: LayerNorm, eps 1e-5, affine), "rms" (eps 1e-6) or "none"."""
    if kind == "layer":
        return nn.LayerNorm(head_width, eps=1e-5)
    if kind == "rms":
        return RMSNorm(head_width)
    return nn.Identity()
