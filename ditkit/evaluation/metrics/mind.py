"""MIND, the Monge Inception Distance (Berthet et al. 2026, arXiv 2605.06797): a sliced Wasserstein distance."""

from __future__ import annotations

import torch
from torch import Tensor

from ditkit.evaluation.metrics.arrays import Array, Progress, Steps, slices, two_sets

PROJECTIONS = 1000


def _matched(a: Tensor, b: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Both sets at the size of the smaller one; of the larger, a random part."""
    n = min(len(a), len(b))
    a, b = (x if len(x) == n else x[torch.randperm(len(x), generator=draws)[:n]] for x in (a, b))
    return a, b


def _directions(count: int, width: int, draws: torch.Generator) -> Tensor:
    drawn = torch.randn(count, width, generator=draws)
    return drawn / drawn.norm(dim=1, keepdim=True)


def mind(
    real: Array,
    fake: Array,
    projections: int = PROJECTIONS,
    seed: int = 2020,
    block: int = 64,
    progress: Progress | None = None,
) -> float:
    """3 D times the mean, over random directions, of the squared 2-Wasserstein distance of the projected features.

    real (N, D), fake (M, D): on a line, optimal transport pairs the sorted values. Equal sizes are compared, so of the
    larger set a random part is taken. No covariance is estimated: the paper finds 5,000 samples as telling as 50,000
    for the Frechet distance. It shrinks with more samples (finite sets of one distribution are not 0 apart), so compare
    equal sizes only. Directions and part are drawn as torch-fidelity does (seed 2020), so that its numbers come out.
    `block` directions are in memory at a time.
    """
    _, a, b, directions = _setting(real, fake, projections, seed)
    parts = slices(projections, block)
    steps, total = Steps(progress, len(parts)), 0.0
    for part in parts:
        x, y = (_line(features, directions[part])[0] for features in (a, b))
        total += _cost(x, y)
        steps.step()
    return 3 * a.shape[1] * total / projections


def mind_without_groups(
    real: Array,
    fake: Array,
    groups: int = 20,
    projections: int = 256,
    seed: int = 2020,
    block: int = 64,
    progress: Progress | None = None,
) -> list[float]:
    """`mind` of what is left when each of `groups` random groups is deleted in turn from both sets, for a jackknife.

    Every line is sorted once. Both sets lose a group, so that they stay of equal size: limits from these values count
    the real set as a sample too.
    """
    draws, a, b, directions = _setting(real, fake, projections, seed)
    label = [(torch.randperm(len(a), generator=draws) % groups).to(a.device) for _ in range(2)]
    parts = slices(projections, block)
    steps, totals = Steps(progress, len(parts)), [0.0] * groups
    for part in parts:
        lines = [_line(features, directions[part]) for features in (a, b)]
        owned = [(values.T, of[order].T) for of, (values, order) in zip(label, lines, strict=True)]
        for g in range(groups):
            x, y = (values[of != g].view(len(values), -1).T for values, of in owned)
            totals[g] += _cost(x, y)
        steps.step()
    return [3 * a.shape[1] * total / projections for total in totals]


def _setting(real: Array, fake: Array, projections: int, seed: int) -> tuple[torch.Generator, Tensor, Tensor, Tensor]:
    a, b = two_sets(real, fake)
    draws = torch.Generator().manual_seed(seed)
    a, b = _matched(a, b, draws)
    return draws, a, b, _directions(projections, a.shape[1], draws).to(a.device)


def _line(features: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, D) along directions (P, D): values (N, P), sorted by each, and whose they are."""
    values, order = (features @ directions.T.to(features)).sort(0)
    return values, order


def _cost(x: Tensor, y: Tensor) -> float:
    """Sum over lines of the mean squared distance of sorted values, (N, P) both."""
    return (x.double() - y.double()).square().mean(0).sum().item()
