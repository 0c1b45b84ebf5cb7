"""Improved precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020), in blocks.

Each holds a sample to be near another set where it lies within the k-nearest-neighbour radius of one of its members. Of
the N x M distances only one block of `rows` x `rows` is in memory at a time, on the device of the features.

Three rules of arithmetic for squared distances:

- float64: |u|^2 - 2 u.v + |v|^2 in double precision.
- float32: the same in single precision, after the mean of the real samples is taken off both sets: half the time, and
  another share only where a sample lies within some 1e-6 of a radius.
- adm: what ADM's evaluator does (Dhariwal and Nichol 2021). Features, their squared norms (squares rounded to float16,
  summed in float32), products (summed in float32), and both additions, from the left, are rounded to float16; a block
  where that is not finite is done again in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ditkit.evaluation.metrics.arrays import Array, Progress, Steps, as_float, count_pairs, pairs, two_sets

Rule = Literal["float64", "float32", "adm"]


class PrecisionRecall(NamedTuple):
    """precision: share of fakes near a real sample. recall: share of reals near a fake one."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """density: real balls around a fake, mean over fakes, over k (may exceed 1). coverage: share of real balls hit."""

    density: float
    coverage: float


def _in_float16(a: Tensor, b: Tensor) -> Tensor:
    u, v = a.half(), b.half()
    left, right = ((x * x).float().sum(1).half() for x in (u, v))
    return (left[:, None] - 2 * (u.float() @ v.float().T).half() + right[None]).clamp(min=0)


def squared_distances(a: Tensor, b: Tensor, rule: Rule = "float64") -> Tensor:
    """Squared Euclidean distances (len(a), len(b)) of features in the rule's own precision, one block."""
    if rule == "adm":
        halves = _in_float16(a, b)
        if torch.isfinite(halves).all():
            return halves.float()
    return (a.square().sum(1)[:, None] - 2 * a @ b.T + b.square().sum(1)[None]).clamp(min=0)


def precision_of(rule: Rule) -> torch.dtype:
    """What the features are held in. ValueError for an unknown rule."""
    if rule not in get_args(Rule):
        raise ValueError(f"precision_recall: unknown rule {rule!r}: choose from {', '.join(get_args(Rule))}")
    return torch.float64 if rule == "float64" else torch.float32


def _centre(x: Tensor, rule: Rule) -> Tensor | float:
    return 0.0 if rule == "adm" else x.mean(0)


def _smallest(kept: Tensor, block: Tensor) -> Tensor:
    """The smallest values of each row of both, sorted, as many as were kept."""
    return torch.cat([kept, block], 1).topk(kept.shape[1], 1, largest=False).values


def _radii(x: Tensor, k: int, rows: int, rule: Rule, steps: Steps) -> Tensor:
    if len(x) <= k:
        raise ValueError(f"precision_recall: {len(x)} samples have no {k}-th nearest neighbour; give more samples")
    if k < 1:
        raise ValueError(f"precision_recall: k is {k}, it must be at least 1")
    symmetric = rule != "adm"  # its additions round in order, so that d(u, v) is not d(v, u)
    centre = _centre(x, rule)
    nearest = x.new_full((len(x), k + 1), float("inf"))  # the sample itself is one of them
    for left, right in pairs(len(x), None if symmetric else len(x), rows):
        block = squared_distances(x[left] - centre, x[right] - centre, rule)
        nearest[left] = _smallest(nearest[left], block)
        if symmetric and left != right:
            nearest[right] = _smallest(nearest[right], block.T)
        steps.step()
    return nearest[:, k]


def radii(
    features: Array, k: int = 3, rows: int = 1024, rule: Rule = "float64", progress: Progress | None = None
) -> Tensor:
    """Squared distance of every sample (N, D) to its k-th nearest other sample, (N,)."""
    x = as_float(features, "features", dtype=precision_of(rule))
    return _radii(x, k, rows, rule, Steps(progress, _own_blocks(len(x), rows, rule)))


def _own_blocks(n: int, rows: int, rule: Rule) -> int:
    return count_pairs(n, n if rule == "adm" else None, rows)


def _across(a: Tensor, b: Tensor, rows: int, rule: Rule, steps: Steps) -> Iterator[tuple[slice, slice, Tensor]]:
    """Every block of the distances from a to b, with the rows and columns that it stands for."""
    centre = _centre(a, rule)
    for left, right in pairs(len(a), len(b), rows):
        yield left, right, squared_distances(a[left] - centre, b[right] - centre, rule)
        steps.step()


def _share(hits: Tensor) -> float:
    return hits.double().mean().item()


def precision_recall(
    real: Array,
    fake: Array,
    k: int = 3,
    rows: int = 1024,
    rule: Rule = "float64",
    progress: Progress | None = None,
) -> PrecisionRecall:
    """(precision, recall) of features real (N, D) and fake (M, D), in this order, with k neighbours.

    rule: the arithmetic of distances, see above. rows: edge of a block. A border counts as inside. ValueError for sets
    of k samples or fewer, other widths, values that are not finite.
    """
    a, b = two_sets(real, fake, precision_of(rule))
    own = sum(_own_blocks(len(x), rows, rule) for x in (a, b))
    steps = Steps(progress, own + count_pairs(len(a), len(b), rows))
    radius_a, radius_b = _radii(a, k, rows, rule, steps), _radii(b, k, rows, rule, steps)
    near_real, near_fake = (torch.zeros(len(x), dtype=torch.bool, device=a.device) for x in (b, a))
    for left, right, block in _across(a, b, rows, rule, steps):
        near_real[right] |= (block <= radius_a[left, None]).any(0)
        near_fake[left] |= (block <= radius_b[None, right]).any(1)
    return PrecisionRecall(precision=_share(near_real), recall=_share(near_fake))


def density_coverage(
    real: Array,
    fake: Array,
    k: int = 5,
    rows: int = 1024,
    rule: Rule = "float64",
    progress: Progress | None = None,
) -> DensityCoverage:
    """(density, coverage) of features real (N, D) and fake (M, D) (Naeem et al. 2020, eq. 4 and 5; their k is 5).

    Only the real samples have balls here, so that one stray fake does not lift the score. Arguments and errors of
    `precision_recall`.
    """
    a, b = two_sets(real, fake, precision_of(rule))
    steps = Steps(progress, _own_blocks(len(a), rows, rule) + count_pairs(len(a), len(b), rows))
    radius = _radii(a, k, rows, rule, steps)
    balls, hit = 0, torch.zeros(len(a), dtype=torch.bool, device=a.device)
    for left, _, block in _across(a, b, rows, rule, steps):
        inside = block <= radius[left, None]
        balls += int(inside.sum())
        hit[left] |= inside.any(1)
    return DensityCoverage(density=balls / (k * len(b)), coverage=_share(hit))
