"""Normalisation layers by name."""

from __future__ import annotations

from typing import Literal

from torch import nn

QKNorm = Literal["none", "layer", "rms"]


def layer_norm(width: int, *, affine: bool = False) -> nn.LayerNorm:
    """LayerNorm with DiT's eps 1e-6; without learned scale and bias where a modulation follows."""
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=affine)


def head_norm(kind: QKNorm, head_width: int) -> nn.Module:
    """Norm of queries and keys over one head: REPA's "layer" (LayerNorm, eps 1e-5, affine), "rms" (eps 1e-6), "none"."""
    if kind == "layer":
        return nn.LayerNorm(head_width, eps=1e-5)
    if kind == "rms":
        return nn.RMSNorm(head_width, eps=1e-6)
    return nn.Identity()
