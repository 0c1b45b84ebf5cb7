"""What every metric asks of its input: arrays or tensors in, float64 on the CPU, finite."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray | Tensor


def as_float64(values: Array, name: str, dimensions: int = 2) -> Tensor:
    """`values` as a float64 CPU tensor; ValueError if it has other dimensions, is empty or is not finite."""
    tensor = torch.as_tensor(values).detach().to("cpu", torch.float64)
    if tensor.ndim != dimensions or 0 in tensor.shape:
        raise ValueError(f"{name}: expected {dimensions} dimensions and no empty one, got shape {tuple(tensor.shape)}")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name}: holds NaN or infinite values")
    return tensor


def same_space(a: Tensor, b: Tensor, names: tuple[str, str]) -> None:
    """ValueError unless both sets of features (N, D) have the same D."""
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{names[0]} has {a.shape[1]} features a sample and {names[1]} has {b.shape[1]}")
