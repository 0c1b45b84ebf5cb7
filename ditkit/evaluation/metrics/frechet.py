"""Frechet distance between two Gaussians (Dowson and Landau 1982; Heusel et al. 2017, "FID")."""

from __future__ import annotations

import torch
from torch import Tensor

from ditkit.evaluation.metrics.arrays import Array, as_float64

EXACT = 512  # dimensions up to which singular values are computed as such


def _root(covariance: Tensor) -> Tensor:
    """F (D, R) with F F^T = covariance of rank R, by symmetric eigen-decomposition.

    What rounding puts below zero, or so near that it is nothing else, becomes zero and is left out.
    """
    values, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    kept = values > values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()


def _fast_root(covariance: Tensor) -> Tensor:
    """`_root`, by Cholesky decomposition (a tenth of the time) where the matrix is safely positive definite."""
    lower, failed = torch.linalg.cholesky_ex(covariance)
    pivots = lower.diagonal()
    safe = failed.item() == 0 and pivots.min() ** 2 > 1e-10 * pivots.max() ** 2
    return lower if safe else _root(covariance)


def _trace_of_root(root: Tensor, t: Tensor, exact: int) -> float:
    """tr((S T)^(1/2)) with S = F F^T for F = root (D, R): the sum of the singular values of F^T T^(1/2).

    Beyond `exact` dimensions they are taken as roots of the eigenvalues of F^T T F: several times faster at Inception's
    2,048, at the price of half the digits of the smallest ones (1e-8 of the largest each).
    """
    if root.shape[1] == 0:
        return 0.0
    if len(t) <= exact:
        return torch.linalg.svdvals(root.T @ _root(t)).sum().item()
    product = root.T @ t @ root
    return torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum().item()


def _moments(mu: Array, cov: Array, which: str) -> tuple[Tensor, Tensor]:
    mean, covariance = as_float64(mu, f"mu{which}", 1), as_float64(cov, f"cov{which}")
    if covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"frechet_distance: mean ({len(mean)},) does not fit covariance {tuple(covariance.shape)}")
    return mean, covariance


class FrechetTo:
    """Frechet distances to one Gaussian, of mean (D,) and covariance (D, D), whose root is made once.

    `FrechetTo(mu1, cov1)(mu2, cov2) == frechet_distance(mu1, cov1, mu2, cov2)`.
    """

    def __init__(self, mu: Array, cov: Array):
        self.mean, covariance = _moments(mu, cov, "1")
        self.trace = covariance.trace()
        self.root = _root(covariance) if len(self.mean) <= EXACT else _fast_root(covariance)

    def __call__(self, mu: Array, cov: Array) -> float:
        """The distance of another Gaussian, mu (D,) and cov (D, D). ValueError if its D differs or it is not finite."""
        mean, covariance = _moments(mu, cov, "2")
        if len(mean) != len(self.mean):
            raise ValueError(f"frechet_distance: means ({len(self.mean)},) and ({len(mean)},) do not fit")
        value = (self.mean - mean).square().sum() + self.trace + covariance.trace()
        return max(0.0, value.item() - 2 * _trace_of_root(self.root, covariance, EXACT))


def frechet_distance(mu1: Array, cov1: Array, mu2: Array, cov2: Array) -> float:
    """|mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2)), for means (D,) and covariances (D, D).

    Only symmetric matrices are decomposed, in float64: the result stays real and finite for singular covariances,
    where a square root of S1 S2 fails. It cannot be negative; what rounding puts below zero is returned as 0.
    """
    return FrechetTo(mu1, cov1)(mu2, cov2)
