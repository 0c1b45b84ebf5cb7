"""Rules over seeds: when one is better, trends, claims in parts, and how numbers are told."""

from __future__ import annotations

import numpy as np
import pytest

from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED
from ditkit.recipes.reproduce.rules import Paired, clear, falling, gained, percent, shown, together, trend

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ([1, 1, 1], [2, 2.2, 1.9], HOLDS),
        ([2, 2.2, 1.9], [1, 1, 1], FAILS),
        ([1, 1], [2, 2], UNDECIDED),  # too few seeds
        ([1, 1, 3], [2, 2, 2], UNDECIDED),  # one seed disagrees
        ([1.0, 1.0, 0.01], [1.001, 1.001, 1], UNDECIDED),  # mean of the logarithm below its deviation
        ([1, 1, 1], [1, 1, 1], UNDECIDED),
        ([1, 1, 1], [2, 2, INF], HOLDS),  # a diverged one is worse
        ([INF, 2, 2], [1, 1, 1], FAILS),
        ([1, 1, INF], [2, 2, INF], UNDECIDED),  # both diverged: nothing is known of that seed
    ],
)
def test_paired(first, second, verdict):
    assert Paired.of(first, second).verdict() == verdict
    turned = {HOLDS: FAILS, FAILS: HOLDS, UNDECIDED: UNDECIDED}[verdict]
    assert Paired.of(second, first).verdict() == turned


def test_clear_is_about_the_spread_of_the_seeds():
    assert clear(np.array([1.0, 1.1, 0.9])) and not clear(np.array([0.1, 0.1, 3.0]))
    assert not clear(np.array([1.0, 0.0, 1.0])) and not clear(np.array([1.0, NAN, 1.0]))
    assert clear(np.array([INF, INF, 1.0]))


def test_trends():
    assert trend([1, 2, 3], [[3, 2, 1], [1, 2, 3]]) == pytest.approx([-1, 1])
    assert falling([-1, -0.8, -0.7]) == HOLDS
    assert falling([-1, -0.8, -0.69]) == UNDECIDED
    assert falling([0.0, 0.5, 0.2]) == FAILS
    assert falling([-1, -1]) == UNDECIDED and falling([-1, -1, NAN]) == UNDECIDED
    assert falling([-0.4, -0.5, -0.4], strong=0.4) == HOLDS


def test_differences():
    assert gained([1.0, 1.2, 0.9]) == HOLDS and gained([-1.0, -1.2, -0.9]) == FAILS
    assert gained([1.0, 1.2]) == gained([1.0, 1.0, NAN]) == gained([1.0, -1.0, 1.0]) == UNDECIDED


def test_a_claim_in_parts():
    assert together(HOLDS, HOLDS) == HOLDS
    assert together(HOLDS, UNDECIDED) == UNDECIDED
    assert together(HOLDS, UNDECIDED, FAILS) == FAILS


def test_how_numbers_are_told():
    assert shown([1.0, 2.0, 3.0]) == "2 ± 1" and shown([1.5]) == "1.5"
    assert shown([1.0, INF, NAN]) == "diverged in 2 of 3"
    assert percent([0.9, 0.8]) == "-15 % ± 7" and percent([1.25]) == "+25 %" and percent([INF]) == "not finite"
    told = Paired.of([1, 1, 3], [2, 2, 2]).words("A", "B")
    assert told == "A over B: -17 % ± 58, better in 2 of 3 seeds."
