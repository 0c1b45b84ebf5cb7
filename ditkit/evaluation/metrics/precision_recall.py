"""Improved precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020), in blocks.

Each holds a sample to be near another set where it lies within the k-nearest-neighbour radius of one of its members. Of
the N x M distances only one block of `rows` x `rows` is in memory at a time, on the device of the features.

Three rules of arithmetic for squared distances:

- float64: |u|^2 - 2 u.v + |v|^2 in double precision.
- float32: the same in single precision, after a mean is taken off: that of the set for distances within one, that of
  the real samples for those across. Half the time, and another share only where a sample lies within some 1e-6 of a
  radius.
- adm: what ADM's evaluator does (Dhariwal and Nichol 2021). Features, their squared norms (squares rounded to float16,
  summed in float32), products (summed in float32), and both additions, from the left, are rounded to float16; where
  that is not finite somewhere in a block of 10,000 x 10,000 samples, all of that block is in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ditkit.evaluation.metrics.arrays import Array, Progress, Steps, as_float, count_pairs, pairs, two_sets

Rule = Literal["float64", "float32", "adm"]

WHOLE = 10_000  # edge of the blocks for which ADM's evaluator chooses a precision


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


def _in_float(a: Tensor, b: Tensor) -> Tensor:
    return (a.square().sum(1)[:, None] - 2 * a @ b.T + b.square().sum(1)[None]).clamp(min=0)


def _fits_float16(a: Tensor, b: Tensor, rows: int) -> bool:
    """Whether ADM's arithmetic is finite on all of a block; every value is looked at only where norms leave doubt."""
    norms = [torch.cat([(x.half() * x.half()).float().sum(1).half() for x in side.split(rows)]) for side in (a, b)]
    if not all(torch.isfinite(x).all() for x in norms):
        return False
    if 2 * sum(x.max().item() for x in norms) < 60_000:  # |u|^2 + 2 |u||v| + |v|^2 is no more
        return True
    return all(torch.isfinite(_in_float16(a[i], b[j])).all() for i, j in pairs(len(a), len(b), rows))


class Distances:
    """Squared Euclidean distances from a (N, D) to b (M, D) by a rule, handed out block by block.

    b None: among a; then, but for adm, whose additions round in order so that d(u, v) is not d(v, u), the blocks on and
    above the diagonal alone, unless `full`. But for adm the mean of a is taken off both sides.
    """

    def __init__(self, a: Tensor, b: Tensor | None, rows: int, rule: Rule, full: bool = False):
        self.a, self.b, self.rule = a, a if b is None else b, rule
        self.rows = max(d for d in range(1, min(rows, WHOLE) + 1) if WHOLE % d == 0) if rule == "adm" else rows
        self.symmetric = b is None and rule != "adm" and not full
        self.centre = 0.0 if rule == "adm" else a.mean(0)
        self.fitting: dict[tuple[int, int], bool] = {}

    def __len__(self) -> int:
        return count_pairs(len(self.a), None if self.symmetric else len(self.b), self.rows)

    def __iter__(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """(rows, columns, block) of all blocks."""
        for left, right in pairs(len(self.a), None if self.symmetric else len(self.b), self.rows):
            u, v = self.a[left] - self.centre, self.b[right] - self.centre
            halves = self.rule == "adm" and self._fits(left.start // WHOLE, right.start // WHOLE)
            yield left, right, _in_float16(u, v).float() if halves else _in_float(u, v)

    def _fits(self, i: int, j: int) -> bool:
        if (i, j) not in self.fitting:
            u, v = self.a[i * WHOLE : (i + 1) * WHOLE], self.b[j * WHOLE : (j + 1) * WHOLE]
            self.fitting[i, j] = _fits_float16(u, v, self.rows)
        return self.fitting[i, j]


def precision_of(rule: Rule) -> torch.dtype:
    """What the features are held in. ValueError for an unknown rule."""
    if rule not in get_args(Rule):
        raise ValueError(f"precision_recall: unknown rule {rule!r}: choose from {', '.join(get_args(Rule))}")
    return torch.float64 if rule == "float64" else torch.float32


def _smallest(kept: Tensor, block: Tensor) -> Tensor:
    """The smallest values of each row of both, sorted, as many as were kept."""
    return torch.cat([kept, block], 1).topk(kept.shape[1], 1, largest=False).values


def _radii(among: Distances, k: int, steps: Steps) -> Tensor:
    x = among.a
    if len(x) <= k:
        raise ValueError(f"precision_recall: {len(x)} samples have no {k}-th nearest neighbour; give more samples")
    if k < 1:
        raise ValueError(f"precision_recall: k is {k}, it must be at least 1")
    nearest = x.new_full((len(x), k + 1), float("inf"))  # the sample itself is one of them
    for left, right, block in among:
        nearest[left] = _smallest(nearest[left], block)
        if among.symmetric and left != right:
            nearest[right] = _smallest(nearest[right], block.T)
        steps.step()
    return nearest[:, k]


def radii(
    features: Array, k: int = 3, rows: int = 1024, rule: Rule = "float64", progress: Progress | None = None
) -> Tensor:
    """Squared distance of every sample (N, D) to its k-th nearest other sample, (N,)."""
    among = Distances(as_float(features, "features", dtype=precision_of(rule)), None, rows, rule)
    return _radii(among, k, Steps(progress, len(among)))


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

    rule: the arithmetic of distances, see above. rows: edge of a block (adm: the next divisor of 10,000). A border
    counts as inside. ValueError for sets of k samples or fewer, other widths, values that are not finite.
    """
    a, b = two_sets(real, fake, precision_of(rule))
    among_real, among_fake, across = (Distances(x, y, rows, rule) for x, y in ((a, None), (b, None), (a, b)))
    steps = Steps(progress, len(among_real) + len(among_fake) + len(across))
    radius_a, radius_b = _radii(among_real, k, steps), _radii(among_fake, k, steps)
    near_real, near_fake = (torch.zeros(len(x), dtype=torch.bool, device=a.device) for x in (b, a))
    for left, right, block in across:
        near_real[right] |= (block <= radius_a[left, None]).any(0)
        near_fake[left] |= (block <= radius_b[None, right]).any(1)
        steps.step()
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
    among, across = Distances(a, None, rows, rule), Distances(a, b, rows, rule)
    steps = Steps(progress, len(among) + len(across))
    radius = _radii(among, k, steps)
    balls, hit = 0, torch.zeros(len(a), dtype=torch.bool, device=a.device)
    for left, _, block in across:
        inside = block <= radius[left, None]
        balls += int(inside.sum())
        hit[left] |= inside.any(1)
        steps.step()
    return DensityCoverage(density=balls / (k * len(b)), coverage=_share(hit))
