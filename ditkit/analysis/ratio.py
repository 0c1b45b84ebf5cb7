"""A ratio of sums over samples, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import sqrt

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ratio:
    """sum a / sum b over samples (0 where b is), with its standard error by linearisation; None of a single sample.

    each (B,): what every sample has in it, linearised: their mean is the value, and two ratios of the same samples
    are compared by the differences of theirs.
    """

    value: float
    error: float | None
    each: Tensor = field(default_factory=lambda: torch.zeros(0), compare=False)

    @classmethod
    def of(cls, a: Tensor, b: Tensor) -> Ratio:
        """a, b (B,)."""
        total = float(b.sum())
        value = float(a.sum()) / total if total else 0.0
        if not total:
            return cls(value, None, torch.zeros_like(a))
        each = value + (a - value * b) * len(a) / total
        return cls(value, float(each.std()) / sqrt(len(a)) if len(a) > 1 else None, each)
