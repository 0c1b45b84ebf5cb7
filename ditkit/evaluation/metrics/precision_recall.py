"""Improved precision and recall (Kynkaanniemi et al. 2019), with ADM's rules."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ditkit.evaluation.metrics.arrays import Array, as_float64, same_space


class PrecisionRecall(NamedTuple):
    """precision: share of fakes near a real sample. recall: share of reals near a fake one."""

    precision: float
    recall: float


def _squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances (len(a), len(b))."""
    return (a.square().sum(1)[:, None] - 2 * a @ b.T + b.square().sum(1)[None]).clamp(min=0)


def radii(features: Array, k: int = 3, rows: int = 1024) -> Tensor:
    """Squared distance of every sample (N, D) to its k-th nearest other sample, (N,), `rows` samples at a time."""
    x = as_float64(features, "features")
    if len(x) <= k:
        raise ValueError(f"precision_recall: {len(x)} samples have no {k}-th nearest neighbour; give more samples")
    # position k of the sorted row, because the row holds the sample itself
    return torch.cat([_squared(part, x).kthvalue(k + 1, dim=1).values for part in x.split(rows)])


def _covered(x: Tensor, centres: Tensor, radius: Tensor, rows: int) -> float:
    """Share of x within the radius of at least one centre (the border counts)."""
    inside = [(_squared(part, centres) <= radius[None]).any(1) for part in x.split(rows)]
    return torch.cat(inside).double().mean().item()


def precision_recall(real: Array, fake: Array, k: int = 3, rows: int = 1024) -> PrecisionRecall:
    """(precision, recall) of features real (N, D) and fake (M, D), in this order, with k neighbours.

    Distances are float64; ADM's evaluator takes float16 where that is finite, which moves a few samples. `rows`
    rows of the distance matrix are in memory at a time.
    """
    a, b = as_float64(real, "real"), as_float64(fake, "fake")
    same_space(a, b, ("real", "fake"))
    return PrecisionRecall(
        precision=_covered(b, a, radii(a, k, rows), rows), recall=_covered(a, b, radii(b, k, rows), rows)
    )
