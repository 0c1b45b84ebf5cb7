"""Confidence intervals (95 %) that need no second set of samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

GROUPS = 20
STUDENT = 2.093  # 97.5 % point of Student's t with GROUPS - 1 degrees of freedom

Interval = tuple[float, float]


def jackknife_error(statistic: Callable[[Tensor], float], n: int, seed: int = 0) -> float:
    """Standard error of statistic(rows): the delete-a-group jackknife with 20 random groups (Kott 2001).

    rows: the n - n / 20 kept row numbers, int64. Unlike a bootstrap it never repeats a sample (which would be its own
    nearest neighbour, and breaks kernels and recall), and a bias that depends on the number of samples drops out.
    """
    order = torch.from_numpy(np.random.Generator(np.random.Philox(seed)).permutation(n))
    group = torch.arange(n) % GROUPS
    values = np.array([statistic(order[group != g]) for g in range(GROUPS)])
    return math.sqrt((GROUPS - 1) / GROUPS * np.square(values - values.mean()).sum())


def jackknife_interval(
    value: float, statistic: Callable[[Tensor], float], n: int, low: float = -math.inf, high: float = math.inf
) -> Interval | None:
    """Limits around `value`, kept within [low, high], what the metric can be.

    None for fewer than 100 samples, and where no group changes the value: it measured no spread, which is no certainty.
    """
    if n < 5 * GROUPS:
        return None
    half = STUDENT * jackknife_error(statistic, n)
    return (max(low, value - half), min(high, value + half)) if half > 1e-12 * abs(value) else None


def share_interval(share: float, n: int) -> Interval:
    """Limits of a share of n independent samples (Wilson 1927); also right at 0 and 1."""
    z = 1.96
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
