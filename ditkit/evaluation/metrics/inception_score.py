"""Inception Score (Salimans et al. 2016) on the class probabilities of any classifier."""

from __future__ import annotations

import torch
from torch import Tensor

from ditkit.evaluation.metrics.arrays import Array, as_float64


def inception_scores(probs: Array, splits: int | None = 10, split_size: int | None = None) -> Tensor:
    """exp(E_x KL(p(y|x) || p(y))) of each split of probs (N, K), in the given order, float64.

    splits: that many nearly equal parts (torch-fidelity's rule). split_size: consecutive rows, a shorter last part
    included (ADM's rule, 5000). The order of the rows matters: class-sorted rows lower the score of every split.
    """
    p = as_float64(probs, "probs")
    if (p < 0).any() or not torch.allclose(p.sum(1), torch.ones(1, dtype=torch.float64), atol=1e-3):
        raise ValueError("probs: every row must be class probabilities (non-negative, summing to 1)")
    n = len(p)
    if split_size is not None:
        parts = list(p.split(split_size))
    else:
        count = splits or 1
        if not 1 <= count <= n:
            raise ValueError(f"inception_score: {n} rows cannot be cut into {count} splits")
        parts = [p[i * n // count : (i + 1) * n // count] for i in range(count)]
    return torch.stack([_score(part) for part in parts])


def _score(p: Tensor) -> Tensor:
    marginal = p.mean(0, keepdim=True)
    divergence = torch.special.xlogy(p, p) - torch.special.xlogy(p, marginal)  # 0 log 0 = 0
    return divergence.sum(1).mean().exp()


def inception_score(probs: Array, splits: int | None = 10, split_size: int | None = None) -> float:
    """Mean over the splits of `inception_scores`: between 1 and the number of classes, higher is better."""
    return inception_scores(probs, splits, split_size).mean().item()
