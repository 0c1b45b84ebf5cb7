"""What every metric asks of its input: arrays or tensors in, finite, of the same width."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray | Tensor
Progress = Callable[[int, int], object]  # called with (done, total)


class Terms(NamedTuple):
    """A score and how much each of its N samples moves it: first-order influences (N,), of mean 0 (von Mises 1947)."""

    value: float
    influence: Tensor


def as_float(values: Array, name: str, dimensions: int = 2, dtype: torch.dtype | None = None) -> Tensor:
    """`values` as a tensor of floats where it lies, in `dtype` (None: its own, float32 at least), not copied in vain.

    ValueError if it has other dimensions, is empty or is not finite.
    """
    tensor = torch.as_tensor(values).detach()
    if dtype is None:
        dtype = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    if tensor.ndim != dimensions or 0 in tensor.shape:
        raise ValueError(f"{name}: expected {dimensions} dimensions and no empty one, got shape {tuple(tensor.shape)}")
    if not all(torch.isfinite(part).all() for part in tensor.split(4096)):
        raise ValueError(f"{name}: holds NaN or infinite values")
    return tensor.to(dtype)


def as_float64(values: Array, name: str, dimensions: int = 2) -> Tensor:
    """`values` as a float64 CPU tensor; ValueError if it has other dimensions, is empty or is not finite."""
    return as_float(torch.as_tensor(values).cpu(), name, dimensions, torch.float64)


def same_space(a: Tensor, b: Tensor, names: tuple[str, str]) -> None:
    """ValueError unless both sets of features (N, D) have the same D."""
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{names[0]} has {a.shape[1]} features a sample and {names[1]} has {b.shape[1]}")


def two_sets(real: Array, fake: Array, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Features real (N, D) and fake (M, D) by `as_float`, on the device of `real`; ValueError if their D differ."""
    a, b = as_float(real, "real", dtype=dtype), as_float(fake, "fake", dtype=dtype)
    same_space(a, b, ("real", "fake"))
    return a, b.to(a.device)


def slices(n: int, size: int) -> list[slice]:
    """Consecutive slices of range(n), `size` long, the last one shorter."""
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]


def pairs(n: int, m: int | None, size: int) -> Iterator[tuple[slice, slice]]:
    """The blocks of an (n, m) matrix, size by size; m None: of a symmetric (n, n) one, on and above the diagonal."""
    rows = slices(n, size)
    for i, left in enumerate(rows):
        for right in rows[i:] if m is None else slices(m, size):
            yield left, right


def count_pairs(n: int, m: int | None, size: int) -> int:
    """How many blocks `pairs` gives."""
    return sum(1 for _ in pairs(n, m, size))


class Steps:
    """Tells `progress` of each of `total` steps as it is done; None is told nothing."""

    def __init__(self, progress: Progress | None, total: int):
        self.progress, self.total, self.done = progress, total, 0

    def step(self) -> None:
        """One more is done."""
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total)
