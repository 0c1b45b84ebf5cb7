"""Kernel distance (Binkowski et al. 2018, "KID"): squared maximum mean discrepancy between feature sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ditkit.evaluation.metrics.arrays import Array, Progress, Steps, as_float, count_pairs, pairs, same_space, two_sets

KernelName = Literal["polynomial", "rbf"]
Estimator = Literal["unbiased", "biased", "u_statistic"]


def kernel(a: Tensor, b: Tensor, name: KernelName = "polynomial", sigma: float = 10.0) -> Tensor:
    """Kernel matrix (len(a), len(b)): (a.b / D + 1)^3, or exp(-|a - b|^2 / (2 sigma^2))."""
    if name == "polynomial":
        return (a @ b.T / a.shape[1] + 1) ** 3
    if name == "rbf":
        return torch.exp(-torch.cdist(a, b).square() / (2 * sigma**2))
    raise ValueError(f"unknown kernel {name!r}: choose polynomial or rbf")


def _diagonal(a: Tensor, b: Tensor, name: KernelName, sigma: float) -> Tensor:
    """Kernel values (N,) of each row of a with the same row of b."""
    if name == "polynomial":
        return ((a * b).sum(1) / a.shape[1] + 1) ** 3
    return torch.exp(-(a - b).square().sum(1) / (2 * sigma**2))


def row_sums(
    a: Tensor, b: Tensor | None, block: Callable[[Tensor, Tensor], Tensor], rows: int, steps: Steps | None = None
) -> Tensor:
    """Sum of block(a, b) (len(a), len(b)) over b (None: over a), float64 (len(a),); `rows` x `rows` of it at a time."""
    total = torch.zeros(len(a), dtype=torch.float64, device=a.device)
    other = a if b is None else b
    for left, right in pairs(len(a), None if b is None else len(b), rows):
        values = block(a[left], other[right]).double()
        total[left] += values.sum(1)
        if b is None and left != right:
            total[right] += values.sum(0)
        if steps is not None:
            steps.step()
    return total


def mmd2(
    a: Array,
    b: Array,
    name: KernelName = "polynomial",
    estimator: Estimator = "unbiased",
    sigma: float = 10.0,
    rows: int = 1024,
) -> float:
    """Squared maximum mean discrepancy of features a (N, D) and b (M, D) (Gretton et al. 2012, eq. 3-5), in float64.

    unbiased: own-pair terms without the diagonal; it can be negative for equal distributions. biased: with the
    diagonal. u_statistic: the cross term without its diagonal too (needs N = M). One block of `rows` x `rows` kernel
    values is in memory at a time.
    """
    x, y = as_float(torch.as_tensor(a).cpu(), "a"), as_float(torch.as_tensor(b).cpu(), "b")
    same_space(x, y, ("a", "b"))
    n, m = len(x), len(y)

    def total(u: Tensor, v: Tensor | None) -> Tensor:
        return row_sums(u, v, lambda p, q: kernel(p.double(), q.double(), name, sigma), rows).sum()

    def trace(u: Tensor, v: Tensor) -> Tensor:
        parts = zip(u.split(rows), v.split(rows), strict=True)
        return torch.stack([_diagonal(p.double(), q.double(), name, sigma).sum() for p, q in parts]).sum()

    xx, yy, xy = total(x, None), total(y, None), total(x, y)
    if estimator == "biased":
        return (xx / n**2 + yy / m**2 - 2 * xy / (n * m)).item()
    if min(n, m) < 2:
        raise ValueError("kernel_distance: an unbiased estimate needs at least two samples on each side")
    own = (xx - trace(x, x)) / (n * (n - 1)) + (yy - trace(y, y)) / (m * (m - 1))
    if estimator == "unbiased":
        return (own - 2 * xy / (n * m)).item()
    if estimator != "u_statistic" or n != m:
        raise ValueError(f"kernel_distance: estimator {estimator!r} with {n} and {m} samples is not defined")
    return (own - 2 * (xy - trace(x, y)) / (n * (n - 1))).item()


def kernel_influences(
    real: Array,
    fake: Array,
    name: KernelName = "polynomial",
    sigma: float = 10.0,
    rows: int = 1024,
    progress: Progress | None = None,
) -> Tensor:
    """How much each fake moves the unbiased squared distance of real (N, D) and fake (M, D): (M,) float64, of mean 0.

    2 (mean of k(y, other fakes) - mean of k(y, real)), less its mean (Hoeffding 1948): with the reals taken as given,
    the distance varies as the mean of M such numbers does, and so does a mean over subsets, but for their draw.
    """
    a, b = two_sets(real, fake)
    n, m = len(a), len(b)
    if m < 2:
        raise ValueError("kernel_influences: at least two fakes are needed")
    steps = Steps(progress, count_pairs(m, None, rows) + count_pairs(m, n, rows))

    def values(u: Tensor, v: Tensor) -> Tensor:
        return kernel(u, v, name, sigma)

    among = (row_sums(b, None, values, rows, steps) - _diagonal(b, b, name, sigma).double()) / (m - 1)
    witness = 2 * (among - row_sums(b, a, values, rows, steps) / n)
    return (witness - witness.mean()).cpu()


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
