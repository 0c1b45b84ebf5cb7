"""Class agreement: does a classifier see the class that was asked for?"""

from __future__ import annotations

import torch

from ditkit.evaluation.metrics.arrays import Array, as_float64


def agreement(probs: Array, labels: Array) -> float:
    """Share of samples whose most probable class, of probs (N, K), is the requested one of labels (N,)."""
    p, y = as_float64(probs, "probs"), torch.as_tensor(labels).cpu().long()
    if y.shape != (len(p),):
        raise ValueError(f"agreement: {len(p)} rows of probabilities and labels of shape {tuple(y.shape)}")
    return (p.argmax(1) == y).double().mean().item()


def agreement_by_class(probs: Array, labels: Array) -> dict[int, float]:
    """`agreement` of every requested class by itself."""
    y = torch.as_tensor(labels).cpu().long()
    p = as_float64(probs, "probs")
    return {int(k): agreement(p[y == k], y[y == k]) for k in y.unique()}
