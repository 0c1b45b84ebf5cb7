"""Numbers as sentences say them: with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ditkit.evaluation.sections import number


def check_times(times: Sequence[float]) -> None:
    """ValueError for no time at all or one outside [0, 1]."""
    if not times or any(not 0 <= t <= 1 for t in times):
        given = ", ".join(f"{t:g}" for t in times) or "none"
        raise ValueError(f"t {given}: give times from 0 (data) to 1 (noise), such as t=0.1,0.5,0.9")


def middle(times: Sequence[float]) -> int:
    """Which of the times is nearest to 0.5: the one that is shown where there is room for one."""
    return min(range(len(times)), key=lambda i: abs(times[i] - 0.5))


def standard_error(values: Tensor) -> float:
    """Of the mean of values (B,); 0 for a single one."""
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def plus_minus(value: float, error: float | None = None) -> str:
    """ "0.2130 ± 0.0043", two digits of the standard error, where one is known."""
    if not error:
        return number(value, 3)
    places = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{places}f} ± {error:.{places}f}" if places < 9 else f"{value:.3g} ± {error:.1g}"


def of(name: str) -> str:
    """How a sentence about a model begins: "SiT: " where there are several."""
    return f"{name}: " if name else ""
