"""A ratio of sums over samples, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from torch import Tensor


@dataclass(frozen=True)
class Ratio:
    """sum a / sum b over samples (0 where b is), with its standard error by linearisation; None of a single sample."""

    value: float
    error: float | None

    @classmethod
    def of(cls, a: Tensor, b: Tensor) -> Ratio:
        """a, b (B,)."""
        total = float(b.sum())
        value = float(a.sum()) / total if total else 0.0
        error = float((a - value * b).std()) * sqrt(len(a)) / total if len(a) > 1 and total else None
        return cls(value, error)
