"""Inception Score (Salimans et al. 2016) on the class probabilities of any classifier."""

from __future__ import annotations

import torch
from torch import Tensor

from ditkit.evaluation.metrics.arrays import Array, Terms, as_float


def _parts(probs: Array, splits: int | None, split_size: int | None) -> list[Tensor]:
    p = as_float(torch.as_tensor(probs).cpu(), "probs")
    if (p < 0).any() or (p.sum(1) - 1).abs().max() > 1e-3:
        raise ValueError("probs: every row must be class probabilities (non-negative, summing to 1)")
    n = len(p)
    if split_size is not None:
        return list(p.split(split_size))
    count = splits or 1
    if not 1 <= count <= n:
        raise ValueError(f"inception_score: {n} rows cannot be cut into {count} splits")
    return [p[i * n // count : (i + 1) * n // count] for i in range(count)]


def inception_scores(probs: Array, splits: int | None = 10, split_size: int | None = None) -> Tensor:
    """exp(E_x KL(p(y|x) || p(y))) of each split of probs (N, K), in the given order, float64.

    splits: that many nearly equal parts (torch-fidelity's rule). split_size: consecutive rows, a shorter last part
    included (ADM's rule, 5000). The order of the rows matters: class-sorted rows lower the score of every split.
    """
    return torch.stack([_divergences(part).mean().exp() for part in _parts(probs, splits, split_size)])


def _divergences(part: Tensor) -> Tensor:
    """KL(p(y|x) || p(y)) of each row of a split, float64 (n,)."""
    p = part.double()
    marginal = p.mean(0, keepdim=True)
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, marginal)).sum(1)  # 0 log 0 = 0


def inception_score(probs: Array, splits: int | None = 10, split_size: int | None = None) -> float:
    """Mean over the splits of `inception_scores`: between 1 and the number of classes, higher is better."""
    return inception_scores(probs, splits, split_size).mean().item()


def inception_terms(probs: Array, splits: int | None = 10, split_size: int | None = None) -> Terms:
    """`inception_score`, with the influence of each of its N rows on it, from which `terms_interval` takes its limits.

    The derivative of a split's log score by the weight of a row is that row's divergence less their mean: what the row
    does to the marginal cancels.
    """
    parts = _parts(probs, splits, split_size)
    terms = [_divergences(part) for part in parts]
    n, scores = sum(map(len, parts)), [d.mean().exp() for d in terms]
    influence = [score * (d - d.mean()) * n / (len(d) * len(parts)) for score, d in zip(scores, terms, strict=True)]
    return Terms(torch.stack(scores).mean().item(), torch.cat(influence))
