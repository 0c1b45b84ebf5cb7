"""Ranking of candidates by several scores at once: repeated non-dominated sorting, and how alike two rankings are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

Better = Literal["higher", "lower"]
PERMUTATIONS = 20_000
ALL_ORDERS = 8  # candidates up to which every order is tried


def front_ranks(scores: np.ndarray | Sequence[Sequence[float]], better: Sequence[Better]) -> np.ndarray:
    """The number of the front that each candidate is in, int (N,), 1 the best: Pareto peeling (SD3 section 5.1).

    scores: (N, M), a row for each candidate; better: for each of the M scores whether higher or lower is better.
    Front 1 are the candidates that none dominates (at least as good in every score, better in one); front k + 1 those
    of the rest once the fronts up to k are taken away. Equal candidates share a front. A candidate with a score that
    is not finite (or missing) comes after all that have none. ValueError where the shapes do not fit.
    """
    table = np.asarray(scores, dtype=float)
    if table.ndim != 2 or table.shape[1] != len(better) or not len(better):
        raise ValueError(f"front_ranks: scores {table.shape} for {len(better)} directions; give (N, {len(better)})")
    if wrong := [word for word in better if word not in ("higher", "lower")]:
        raise ValueError(f"front_ranks: better is 'higher' or 'lower', not {wrong[0]!r}")
    gains = table * [1.0 if word == "higher" else -1.0 for word in better]
    ranks, front = np.zeros(len(table), dtype=int), 0
    left = np.flatnonzero(np.isfinite(table).all(1))
    while len(left):
        front += 1
        mine = gains[left]
        no_worse = (mine[:, None] >= mine[None]).all(2)
        best = ~(no_worse & ~no_worse.T).any(0)  # a dominates b: nowhere worse, and b is not as good as a
        ranks[left[best]] = front
        left = left[~best]
    ranks[ranks == 0] = front + 1
    return ranks


def average_ranks(tables: np.ndarray | Sequence[Sequence[Sequence[float]]], better: Sequence[Better]) -> np.ndarray:
    """`front_ranks` in each of S settings, averaged over them: (S, N, M) -> (N,). ValueError without a setting."""
    if not len(tables):
        raise ValueError("average_ranks: there are no settings to average over")
    return np.mean([front_ranks(table, better) for table in tables], axis=0)


def places(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Places 1 ... N of N numbers in ascending order; equal ones share the mean of theirs."""
    x = np.asarray(values, dtype=float)
    return 1 + (x[None] < x[:, None]).sum(1) + ((x[None] == x[:, None]).sum(1) - 1) / 2


def spearman(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Spearman's rank correlation and its two-sided p under the hypothesis that all orders are alike.

    p is exact up to 8 pairs; beyond, from 20,000 random orders, (1 + as extreme) / (1 + all), so never 0. Where one
    side is constant there is no correlation: (nan, 1). ValueError for fewer than 3 pairs, or for NaN and infinity.
    """
    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 3 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(
            f"spearman: needs two equally long rows of at least 3 finite numbers, got {x.shape}, {y.shape}"
        )
    x, y = places(x) - (len(x) + 1) / 2, places(y) - (len(y) + 1) / 2
    size = math.sqrt((x @ x) * (y @ y))
    if size == 0:
        return math.nan, 1.0
    rho = float(x @ y) / size
    exact = len(x) <= ALL_ORDERS
    orders = _all_orders(len(x)) if exact else _random_orders(len(x), seed)
    extreme = int((np.abs(y[orders] @ x) / size >= abs(rho) - 1e-12).sum())
    return rho, extreme / len(orders) if exact else (1 + extreme) / (1 + len(orders))


def _all_orders(n: int) -> np.ndarray:
    """Every order of 0 ... n - 1, (n!, n)."""
    orders = np.zeros((1, 0), dtype=int)
    for k in range(n):  # k goes into every place of every order of 0 ... k - 1
        orders = np.concatenate([np.insert(orders, place, k, axis=1) for place in range(k + 1)])
    return orders


def _random_orders(n: int, seed: int) -> np.ndarray:
    """PERMUTATIONS random orders of 0 ... n - 1."""
    draws = np.random.Generator(np.random.Philox(seed)).random((PERMUTATIONS, n))
    return draws.argsort(1)
