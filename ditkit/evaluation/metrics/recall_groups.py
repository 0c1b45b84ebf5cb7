"""Recall without each group of fakes in turn, in one pass over the distances: what a jackknife at any size needs."""

from __future__ import annotations

import torch
from torch import Tensor

from ditkit.evaluation.metrics.arrays import Array, Progress, Steps, two_sets
from ditkit.evaluation.metrics.precision_recall import Distances, Rule, precision_of

SPARE = 8  # neighbours kept beyond the k-th, to fall back on when a group is deleted


def _neighbours(among: Distances, group: Tensor, k: int, steps: Steps) -> tuple[Tensor, Tensor]:
    """Squared distances (N, L) of each sample to its nearest, itself among them, sorted, and the groups of these."""
    x = among.a
    keep = min(k + 1 + SPARE, len(x))
    near = x.new_full((len(x), keep), float("inf"))
    owner = torch.full((len(x), keep), -1, device=x.device)
    for left, right, block in among:
        both = torch.cat([near[left], block], 1)
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
    among, across = Distances(b, None, rows, rule, full=True), Distances(a, b, rows, rule)
    steps = Steps(progress, len(among) + len(across))
    near, owner = _neighbours(among, owners, k, steps)
    count = int(owners.max()) + 1
    radii = torch.stack([_radii_without(near, owner, owners, g, k) for g in range(count)])
    covered = torch.zeros(count, len(a), dtype=torch.bool, device=a.device)
    for left, right, block in across:
        for g in range(count):
            covered[g, left] |= (block <= radii[g, right]).any(1)
        steps.step()
    return covered.double().mean(1).tolist()
