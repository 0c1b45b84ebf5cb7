"""Recall without each group of fakes in turn, in one pass over the distances: what a jackknife at any size needs."""

from __future__ import annotations

import torch
from torch import Tensor

from ditkit.evaluation.metrics.arrays import Array, Progress, Steps, count_pairs, pairs, two_sets
from ditkit.evaluation.metrics.precision_recall import Rule, precision_of, squared_distances

SPARE = 8  # neighbours kept beyond the k-th, to fall back on when a group is deleted


def _neighbours(x: Tensor, group: Tensor, k: int, rows: int, rule: Rule, steps: Steps) -> tuple[Tensor, Tensor]:
    """Squared distances (N, L) of each sample to its nearest, itself among them, sorted, and the groups of these."""
    keep = min(k + 1 + SPARE, len(x))
    near = x.new_full((len(x), keep), float("inf"))
    owner = torch.full((len(x), keep), -1, device=x.device)
    for left, right in pairs(len(x), len(x), rows):
        both = torch.cat([near[left], squared_distances(x[left], x[right], rule)], 1)
        near[left], chosen = both.topk(keep, 1, largest=False)
        owner[left] = torch.cat([owner[left], group[right].expand(both.shape[0], -1)], 1).gather(1, chosen)
        steps.step()
    return near, owner


def _radii_without(near: Tensor, owner: Tensor, group: Tensor, deleted: int, k: int) -> Tensor:
    """Radii (N,) once a group is deleted; -1, which holds nothing, for its own members."""
    gone = owner == deleted
    left = near.masked_fill(gone, float("inf")).sort(1).values[:, k]
    left = torch.where(left.isinf(), near[:, -1], left)  # more than the spare ones are of that group: hardly ever
    return torch.where(group == deleted, -1.0, left)


def recall_without_groups(
    real: Array,
    fake: Array,
    group: Array,
    k: int = 3,
    rows: int = 1024,
    rule: Rule = "float64",
    progress: Progress | None = None,
) -> list[float]:
    """`precision_recall(real, fake[group != g]).recall` for each group g, of features real (N, D) and fake (M, D).

    group (M,): 0, 1, ... up to G - 1. The distances are computed once for all; a sample without its group's neighbours
    takes its radius from the next ones.
    """
    a, b = two_sets(real, fake, precision_of(rule))
    owners = torch.as_tensor(group).to(b.device).long()
    if owners.shape != (len(b),) or len(b) <= k:
        raise ValueError(f"recall_without_groups: {len(b)} fakes, groups of shape {tuple(owners.shape)}, k {k}")
    if rule != "adm":
        centre = a.mean(0)
        a, b = a - centre, b - centre
    steps = Steps(progress, count_pairs(len(b), len(b), rows) + count_pairs(len(a), len(b), rows))
    near, owner = _neighbours(b, owners, k, rows, rule, steps)
    count = int(owners.max()) + 1
    radii = torch.stack([_radii_without(near, owner, owners, g, k) for g in range(count)])
    covered = torch.zeros(count, len(a), dtype=torch.bool, device=a.device)
    for left, right in pairs(len(a), len(b), rows):
        block = squared_distances(a[left], b[right], rule)
        for g in range(count):
            covered[g, left] |= (block <= radii[g, right]).any(1)
        steps.step()
    return covered.double().mean(1).tolist()
