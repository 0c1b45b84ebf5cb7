"""Kernel distance (Binkowski et al. 2018, "KID"): squared maximum mean discrepancy between feature sets."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ditkit.evaluation.metrics.arrays import Array, Progress, Steps, as_float64, same_space, two_sets

KernelName = Literal["polynomial", "rbf"]
Estimator = Literal["unbiased", "biased", "u_statistic"]


def kernel(a: Tensor, b: Tensor, name: KernelName = "polynomial", sigma: float = 10.0) -> Tensor:
    """Kernel matrix (len(a), len(b)): (a.b / D + 1)^3, or exp(-|a - b|^2 / (2 sigma^2))."""
    if name == "polynomial":
        return (a @ b.T / a.shape[1] + 1) ** 3
    if name == "rbf":
        return torch.exp(-torch.cdist(a, b).square() / (2 * sigma**2))
    raise ValueError(f"unknown kernel {name!r}: choose polynomial or rbf")


def mmd2(a: Array, b: Array, name: KernelName = "polynomial", estimator: Estimator = "unbiased", sigma=10.0) -> float:
    """Squared maximum mean discrepancy of features a (N, D) and b (M, D) (Gretton et al. 2012, eq. 3-5).

    unbiased: own-pair terms without the diagonal; it can be negative for equal distributions. biased: with the
    diagonal. u_statistic: the cross term without its diagonal too (needs N = M).
    """
    x, y = as_float64(a, "a"), as_float64(b, "b")
    same_space(x, y, ("a", "b"))
    n, m = len(x), len(y)
    xx, yy, xy = kernel(x, x, name, sigma), kernel(y, y, name, sigma), kernel(x, y, name, sigma)
    if estimator == "biased":
        return (xx.mean() + yy.mean() - 2 * xy.mean()).item()
    if min(n, m) < 2:
        raise ValueError("kernel_distance: an unbiased estimate needs at least two samples on each side")
    own = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    if estimator == "unbiased":
        return (own - 2 * xy.mean()).item()
    if estimator != "u_statistic" or n != m:
        raise ValueError(f"kernel_distance: estimator {estimator!r} with {n} and {m} samples is not defined")
    return (own - 2 * (xy.sum() - xy.trace()) / (n * (n - 1))).item()


def subset_indices(n: int, m: int, subsets: int, size: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """torch-fidelity's draws: RandomState(seed), without replacement, alternating between the two sets."""
    state = np.random.RandomState(seed)
    return [(state.choice(n, size, replace=False), state.choice(m, size, replace=False)) for _ in range(subsets)]


def kernel_distances(
    real: Array,
    fake: Array,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
    name: KernelName = "polynomial",
    sigma: float = 10.0,
    progress: Progress | None = None,
) -> Tensor:
    """The unbiased squared distance on each of `subsets` random subsets, float64 (subsets,).

    Sets that fit into one subset are compared whole, once. Only a subset is ever copied.
    """
    a, b = two_sets(real, fake)
    if max(len(a), len(b)) <= subset_size:
        return torch.tensor([mmd2(a, b, name, sigma=sigma)], dtype=torch.float64)
    size = min(subset_size, len(a), len(b))
    draws = subset_indices(len(a), len(b), subsets, size, seed)
    steps, values = Steps(progress, len(draws)), []
    for i, j in draws:
        values.append(mmd2(a[torch.from_numpy(i)], b[torch.from_numpy(j)], name, sigma=sigma))
        steps.step()
    return torch.tensor(values, dtype=torch.float64)


def kernel_distance(
    real: Array,
    fake: Array,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
    name: KernelName = "polynomial",
    sigma: float = 10.0,
    progress: Progress | None = None,
) -> float:
    """Mean over subsets of the unbiased squared kernel distance of features real (N, D) and fake (M, D)."""
    return kernel_distances(real, fake, subsets, subset_size, seed, name, sigma, progress).mean().item()
