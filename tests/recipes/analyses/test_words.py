"""Numbers with as many digits as their standard errors allow, and times."""

import pytest

from ditkit.recipes.analyses.words import check_times, middle, plus_minus


def test_numbers_with_their_errors():
    assert plus_minus(0.21304, 0.00431) == "0.2130 ± 0.0043" and plus_minus(61.87, 0.9) == "61.87 ± 0.90"
    assert plus_minus(0.2134) == "0.213" and plus_minus(1234.0, 56.0) == "1234 ± 56"


def test_times():
    assert middle((0.1, 0.4, 0.9)) == 1
    check_times((0, 1))
    for wrong in ((), (0.5, -0.1)):
        with pytest.raises(ValueError, match="give times from 0"):
            check_times(wrong)
