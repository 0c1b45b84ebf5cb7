"""The statistical dynamic programme: recordings of the released one, brute force, its density, and what is refused."""

import time
from itertools import combinations

import numpy as np
import pytest
import torch

from ditkit.analysis.sharing import (
    cumulative_error,
    optimal_schedule,
    schedule_cost,
    sharing_schedule,
    uniform_schedule,
)
from ditkit.diffusion import Sharing, every_schedule

TAU = np.arange(20) / 19
EARLY = np.exp(-4 * (TAU[:, None] ** 2 - TAU**2) ** 2)
EVEN = np.exp(-4 * (TAU[:, None] - TAU) ** 2)

# DDT, tools/dp.py: the released model's schedule of 50 runs in 250 steps (the matrix behind it is not published)
RELEASED = [
    0, 3, 6, 9, 12, 16, 20, 24, 28, 33, 38, 43, 48, 53, 57, 62, 67, 72, 78, 83, 87, 91, 95, 98, 102, 106, 110, 115, 120,
    125, 130, 135, 141, 146, 152, 158, 164, 171, 179, 185, 191, 197, 203, 209, 216, 223, 229, 234, 240, 245,
]  # fmt: skip


# ------------------------------------------------------------------------------------------------ the released one


def test_recorded_schedules(reference):
    ref = reference("ddt_sharing")
    schedules = [name.removesuffix(".schedule") for name in ref.outputs if name.endswith(".schedule")]
    assert len(schedules) == 11
    for case in schedules:
        want = ref.outputs[f"{case}.schedule"].tolist()
        if case == "share.refresh1":  # no statistics are taken when all is recomputed: the same whatever they were
            assert sharing_schedule(np.eye(10), 10) == uniform_schedule(10, 10) == every_schedule(10, 1) == want
            continue
        similarity = ref.outputs[f"{case}.sim"]
        for given in (similarity, similarity.double(), similarity.numpy(), similarity.tolist()):
            assert sharing_schedule(given, len(want)) == want, case
        if case.startswith("dp."):
            ref.close(f"{case}.cumulative_error", cumulative_error(1 - similarity))


@pytest.mark.parametrize(
    ("similarity", "schedule", "cost"),
    [
        (EARLY, [0, 9, 13, 17], 0.936854),
        (EARLY, [0, 8, 12, 15, 18], 0.569614),
        (EARLY, [0, 5, 8, 10, 12, 14, 16, 17, 18, 19], 0.098822),
        (EVEN, [0, 5, 10, 15], None),
        (EVEN, [0, 4, 8, 12, 16], None),
    ],
)
def test_reference_outputs(similarity, schedule, cost):
    assert sharing_schedule(similarity, len(schedule)) == schedule
    if cost is not None:
        assert schedule_cost(1 - similarity, schedule) == pytest.approx(cost, abs=1e-6)


def test_equal_spacing_is_uniform():
    """Where only the distance counts, the paper's schedule and the uniform one are the same."""
    assert [sharing_schedule(EVEN, k) for k in (4, 5)] == [uniform_schedule(20, k) for k in (4, 5)]


def schedule_of_speed(exponent):
    """50 of 250 for states that move along a line with the speed that RELEASED's gaps tell: gap^-exponent."""
    gaps = np.diff([*RELEASED, 250])
    smooth = np.convolve(np.pad(gaps, 1, mode="edge"), np.ones(3) / 3, "valid")
    speed = np.interp(np.arange(250), RELEASED + gaps / 2, smooth) ** -exponent
    place = 3 * np.cumsum(speed) / speed.sum()
    return sharing_schedule(np.exp(-((place[:, None] - place) ** 2)), 50)


def test_density_of_the_released_schedule_is_plausible():
    """Errors that grow with the square of the way moved cost speed^2 gap^3: the best gaps are as speed^(-2/3).

    So from RELEASED's density follows a speed, and from that speed the same schedule. A rule that accumulates errors
    otherwise than over the whole reuse has another exponent, and is seen: speeds of exponent 1 miss by 8.
    """
    distance = np.abs(np.subtract(schedule_of_speed(1.5), RELEASED))
    assert distance.max() <= 2 and distance.mean() < 1
    assert np.abs(np.subtract(schedule_of_speed(1.0), RELEASED)).max() > 5
    assert np.abs(np.subtract(uniform_schedule(250, 50), RELEASED)).max() > 10


# ------------------------------------------------------------------------------------------------ optimality


def by_force(error, budget):
    """The cheapest schedule of all, in plain Python; ties: the smallest index, from the last run backwards."""
    n = len(error)
    best = None
    for rest in combinations(range(1, n), budget - 1):
        runs = (0, *rest)
        cost = sum(error[l][max(j for j in runs if j <= l)] for l in range(n))
        if best is None or (cost, runs[::-1]) < best:
            best = cost, runs[::-1]
    return best[0], list(best[1][::-1])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", ["real", "negative", "ties"])
@pytest.mark.parametrize("n", range(1, 11))
def test_optimal_by_brute_force(n, kind, symmetric):
    generator = np.random.default_rng(100 * n + len(kind))
    for budget in range(1, n + 1):
        error = generator.random((n, n)) - (0.5 if kind == "negative" else 0)
        if kind == "ties":
            error = np.floor(3 * error)  # whole numbers: many schedules cost the same, exactly
        if symmetric:
            error = (error + error.T) * 2
        cost, schedule = by_force(error.tolist(), budget)
        assert optimal_schedule(error, budget) == schedule
        assert schedule_cost(error, schedule) == pytest.approx(cost, abs=1e-12)


def test_similarity_is_one_minus_error():
    similarity = np.random.default_rng(0).random((9, 9))
    assert sharing_schedule(similarity, 4) == optimal_schedule(1 - similarity, 4)
    assert sharing_schedule(np.ones((5, 5)), 3) == [0, 1, 2]  # nothing to choose: the smallest


def test_all_runs_and_one():
    error = np.random.default_rng(1).random((12, 12))
    assert optimal_schedule(error, 12) == list(range(12)) and optimal_schedule(error, 1) == [0]
    assert optimal_schedule([[0.5]], 1) == [0]


def test_cumulative_error_is_the_sum_over_a_reuse():
    error = np.random.default_rng(2).random((7, 7))
    cumulative = cumulative_error(torch.tensor(error))
    for i in range(7):
        for j in range(i + 1):
            assert cumulative[i][j] == pytest.approx(sum(error[l][j] for l in range(j, i + 1)), abs=1e-12)
    assert cumulative.dtype == np.float64 and cumulative.shape == (7, 7)


def test_an_infinite_error_is_never_paid():
    error = np.ones((8, 8))
    rows = np.arange(8)
    error[rows[:, None] - rows > 2] = np.inf  # no s serves longer than three evaluations
    for budget in (3, 4, 5):
        schedule = optimal_schedule(error, budget)
        assert max(np.diff([*schedule, 8])) <= 3
    with pytest.raises(ValueError, match=r"^sharing: every schedule of 2 encoder runs [^\n]*$"):
        optimal_schedule(error, 2)
    assert schedule_cost(error, [0, 4]) == np.inf


def test_results_fit_the_settings():
    schedule = sharing_schedule(EARLY, 5)
    assert all(type(i) is int for i in schedule)
    assert Sharing(rule="dp:5", evaluations=20, encode=tuple(schedule)).budget == 5


def test_it_is_fast():
    generator = np.random.default_rng(0)
    for n, budget, seconds in ((250, 50, 0.5), (1000, 500, 10)):
        error = generator.random((n, n))
        start = time.process_time()
        assert len(optimal_schedule(error, budget)) == budget
        assert time.process_time() - start < seconds


# ------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("solve", [sharing_schedule, optimal_schedule])
@pytest.mark.parametrize("budget", [0, -1, 21])
def test_budgets_that_do_not_fit(solve, budget):
    with pytest.raises(ValueError, match=rf"^sharing: a budget of {budget} [^\n]*20[^\n]*$"):
        solve(EARLY, budget)


def spoilt(value):
    matrix = EARLY.copy()
    matrix[3, 1] = value
    return matrix


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((3, 4)), "square"),
        (np.zeros(9), "square"),
        (np.zeros((2, 2, 2)), "square"),
        (np.zeros((0, 0)), "square"),
        (spoilt(np.nan), "1 entries that are not finite"),
        (spoilt(-np.inf), "1 entries that are not finite"),
    ],
)
def test_matrices_that_are_none(matrix, message):
    for call in (sharing_schedule, optimal_schedule):
        with pytest.raises(ValueError, match=rf"^[^\n]*{message}[^\n]*$"):
            call(matrix, 1)


def test_an_infinite_similarity_is_no_ban():
    for value in (np.inf, -np.inf):
        with pytest.raises(ValueError, match="similarity holds 1 entries"):
            sharing_schedule(spoilt(value), 4)


@pytest.mark.parametrize("schedule", [[], [1, 2], [0, 3, 3], [0, 5, 2], [0, 20]])
def test_schedules_that_are_none(schedule):
    with pytest.raises(ValueError, match=r"^sharing: the schedule [^\n]*ascend strictly from 0 and stay below 20$"):
        schedule_cost(EARLY, schedule)
