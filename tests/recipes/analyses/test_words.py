"""Sentences tell apart what standard errors allow, and nothing else."""

import pytest

from ditkit.recipes.analyses.words import apart, check_times, compared, middle, plus_minus, rivals


def test_numbers_with_their_errors():
    assert plus_minus(0.21304, 0.00431) == "0.2130 ± 0.0043" and plus_minus(61.87, 0.9) == "61.87 ± 0.90"
    assert plus_minus(0.2134) == "0.213" and plus_minus(1234.0, 56.0) == "1234 ± 56"


def test_what_is_told_apart():
    assert apart(1.0, 1.5, 0.1, 0.1) and not apart(1.0, 1.2, 0.1, 0.1) and apart(1.0, 1.2, None, None)
    assert rivals([1.0, 0.95, 0.2], [0.1, 0.1, 0.1], 0) == [1]
    assert compared("S", {"": (1.0, 0.1)}) == []
    near = {"a": (0.30, 0.01), "b": (0.29, 0.01), "c": (0.5, 0.01)}
    assert compared("S", near, lowest=True) == [
        "Side by side, S is lowest in b, 0.290 ± 0.010, which is within noise of a."
    ]
    assert compared("S", near) == ["Side by side, S is highest in c, 0.500 ± 0.010, beyond noise."]


def test_times():
    assert middle((0.1, 0.4, 0.9)) == 1
    check_times((0, 1))
    for wrong in ((), (0.5, -0.1)):
        with pytest.raises(ValueError, match="give times from 0"):
            check_times(wrong)
