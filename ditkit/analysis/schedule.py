"""At which evaluations a shared encoder should run: the statistical dynamic programme (DDT, section 4.3), pure numbers.

error[l][j] is what it costs at evaluation l to use what the encoder said at evaluation j <= l: 1 - cosine similarity in
the paper, but any measured harm will do, and +infinity means never. A schedule ascends strictly from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from torch import Tensor

from ditkit.diffusion.sharing import check_budget

Matrix = np.ndarray | Tensor | Sequence[Sequence[float]]


def square(matrix: Matrix, name: str, never: bool = False) -> np.ndarray:
    """The matrix as float64 (N, N). ValueError when it is not square, is empty, or holds NaN or infinity.

    never: +infinity is admitted.
    """
    values = matrix.detach().cpu().double().numpy() if isinstance(matrix, Tensor) else matrix
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not array.size:
        raise ValueError(f"{name} must be a square matrix (N, N) with N >= 1, got shape {array.shape}")
    wrong = ~(np.isfinite(array) | (never & np.isposinf(array)))
    if wrong.any():
        raise ValueError(f"{name} holds {int(wrong.sum())} entries that are not finite")
    return array


def cumulative_error(error: Matrix) -> np.ndarray:
    """E (N, N) float64: E[i][j] = sum over l = j ... i of error[l][j], the cost of running at j and reusing through i.

    Above the diagonal (j > i) there is nothing to accumulate: entries stay as they are, and are never used.
    """
    array = square(error, "error", never=True)
    return np.where(np.tri(len(array), dtype=bool), np.tril(array).cumsum(axis=0), array)


def optimal_schedule(error: Matrix, budget: int) -> list[int]:
    """The `budget` evaluations at which to run the encoder so that the summed error (see schedule_cost) is least.

    error: (N, N), only j <= l counts. Exact, by C[k][i] = min over j of C[k - 1][j] + E[i - 1][j], in K N^2 operations;
    of equally good choices the smallest index, from the last run backwards (as released).
    Raises ValueError for a budget below 1 or above N, a matrix that is not square, holds NaN or -infinity, or forbids
    every schedule of this budget.
    """
    cost = cumulative_error(error)
    steps = len(cost)
    check_budget(steps, budget)
    cost[~np.tri(steps, dtype=bool)] = np.inf  # a run at j serves i >= j only
    best = cost[:, 0]  # best[i]: cheapest cover of evaluations 0 ... i with k runs
    choices = np.zeros((budget, steps), dtype=np.int64)  # where the last of k + 1 runs stands
    for k in range(1, budget):
        total = cost[:, k:] + best[k - 1 : -1]  # (i, j): the k-th run at j, all before j served by k - 1 runs
        choices[k] = total.argmin(axis=1) + k
        best = np.take_along_axis(total, choices[k][:, None] - k, axis=1)[:, 0]
    if not np.isfinite(best[-1]):
        raise ValueError(f"sharing: every schedule of {budget} encoder runs reuses s where the error forbids it")
    schedule, last = [], steps - 1
    for k in range(budget - 1, -1, -1):
        schedule.append(int(choices[k, last]))
        last = schedule[-1] - 1
    return schedule[::-1]


def sharing_schedule(similarity: Matrix, budget: int) -> list[int]:
    """DDT's schedule: the `budget` evaluations, 0 first, whose s serves all others with the most cosine similarity.

    similarity: (N, N) array or tensor, similarity[i][j] of s at evaluations i and j (`state_similarity` measures it).
    Raises ValueError as `optimal_schedule` does.
    """
    return optimal_schedule(1.0 - square(similarity, "similarity"), budget)


def check_schedule(schedule: Sequence[int], steps: int) -> tuple[int, ...]:
    """The schedule as integers; ValueError, in one line, unless it ascends strictly from 0 and stays below `steps`."""
    runs = tuple(int(i) for i in schedule)
    if not runs or runs[0] != 0 or runs[-1] >= steps or any(a >= b for a, b in pairwise(runs)):
        raise ValueError(f"sharing: the schedule {list(runs)} must ascend strictly from 0 and stay below {steps}")
    return runs


def schedule_cost(error: Matrix, schedule: Sequence[int]) -> float:
    """Summed error of a schedule: every evaluation l pays error[l][j], j the last scheduled evaluation up to l.

    Raises ValueError as `check_schedule` and `cumulative_error` do.
    """
    array = square(error, "error", never=True)
    runs, rows = np.asarray(check_schedule(schedule, len(array))), np.arange(len(array))
    return float(array[rows, runs[np.searchsorted(runs, rows, side="right") - 1]].sum())
