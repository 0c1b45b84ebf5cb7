"""Shapes: per-sample numbers against (B, C, H, W) tensors."""

from __future__ import annotations

from torch import Tensor


def expand(t: Tensor, x: Tensor) -> Tensor:
    """Per-sample numbers (B,) as (B, 1, 1, 1), ready to multiply x (B, C, H, W), in x's dtype; a scalar stays one."""
    return t.to(x.dtype).reshape(t.shape + (1,) * (x.ndim - 1)) if t.ndim else t.to(x.dtype)


def mean_per_sample(x: Tensor) -> Tensor:
    """Mean over everything but the batch: (B, C, H, W) -> (B,)."""
    return x.flatten(1).mean(1)
