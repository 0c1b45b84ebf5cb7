"""Scores of each class by itself: which classes a sampler does badly."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ditkit.evaluation.metrics.arrays import Array, Progress, Steps, two_sets
from ditkit.evaluation.metrics.kernel import mmd2

Result = TypeVar("Result")


def by_class(
    score: Callable[[Tensor, Tensor], Result],
    real: Array,
    real_labels: Array,
    fake: Array,
    fake_labels: Array,
    least: int = 2,
    progress: Progress | None = None,
) -> dict[int, Result]:
    """score(real, fake) of each class that both sides have `least` samples of, by class id.

    real (N, D), fake (M, D) are features, labels (N,) and (M,). A Frechet distance is no score for this: its covariance
    needs more samples than features, and a class has a few hundred; take `kernel_by_class`, which has no such bias.
    Precision and recall: `by_class(precision_recall, ..., least=4)`.
    """
    a, b = two_sets(real, fake)
    y, z = (torch.as_tensor(labels).cpu().long() for labels in (real_labels, fake_labels))
    if y.shape != (len(a),) or z.shape != (len(b),):
        shapes = f"labels {tuple(y.shape)} and {tuple(z.shape)}"
        raise ValueError(f"by_class: {len(a)} real and {len(b)} fake samples with {shapes}")
    shared = [k for k in y.unique().tolist() if min(int((y == k).sum()), int((z == k).sum())) >= least]
    steps, found = Steps(progress, len(shared)), {}
    for k in shared:
        found[k] = score(a[y == k], b[z == k])
        steps.step()
    return found


def kernel_by_class(
    real: Array, real_labels: Array, fake: Array, fake_labels: Array, progress: Progress | None = None
) -> dict[int, float]:
    """The unbiased squared kernel distance (KID's) of each class: right at any number of samples, if noisy at few."""
    return by_class(mmd2, real, real_labels, fake, fake_labels, progress=progress)
