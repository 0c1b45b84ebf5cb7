"""Frechet distance between two Gaussians (Dowson and Landau 1982; Heusel et al. 2017, "FID")."""

from __future__ import annotations

import torch
from torch import Tensor

from ditkit.evaluation.metrics.arrays import Array, as_float64


def _root(covariance: Tensor) -> Tensor:
    """F (D, D) with F F^T = covariance, by symmetric eigen-decomposition; rounding below zero becomes zero."""
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    return vectors * values.clamp(min=0).sqrt()


def frechet_distance(mu1: Array, cov1: Array, mu2: Array, cov2: Array) -> float:
    """|mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2)), for means (D,) and covariances (D, D).

    With S = F F^T, tr((S1 S2)^(1/2)) is the sum of the singular values of F1^T F2. This needs no square root of a
    non-symmetric matrix: it stays real and finite for singular covariances, and is exact to float64 rounding. The
    distance cannot be negative; what rounding puts below zero is returned as 0.
    """
    a, b = as_float64(mu1, "mu1", 1), as_float64(mu2, "mu2", 1)
    s, t = as_float64(cov1, "cov1"), as_float64(cov2, "cov2")
    d = len(a)
    if len(b) != d or s.shape != (d, d) or t.shape != (d, d):
        raise ValueError(
            f"frechet_distance: means ({len(a)},) and ({len(b)},) do not fit covariances "
            f"{tuple(s.shape)} and {tuple(t.shape)}"
        )
    cross = torch.linalg.svdvals(_root(s).T @ _root(t)).sum()
    value = (a - b).square().sum() + s.trace() + t.trace() - 2 * cross
    return max(0.0, value.item())
