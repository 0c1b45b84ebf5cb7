"""Numbers as sentences say them: with their standard errors, and told apart only where those allow it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from ditkit.evaluation.sections import number

UNSURE = 2.0  # standard errors of a difference, within which nothing is told apart


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


def apart(a: float, b: float, error_a: float | None, error_b: float | None) -> bool:
    """Whether two values differ by more than UNSURE standard errors of their difference."""
    return abs(a - b) > UNSURE * math.hypot(error_a or 0.0, error_b or 0.0)


def rivals(values: Sequence[float], errors: Sequence[float | None], best: int) -> list[int]:
    """The places whose values cannot be told apart from that of `best`."""
    return [i for i in range(len(values)) if i != best and not apart(values[i], values[best], errors[i], errors[best])]


def of(name: str) -> str:
    """How a sentence about a model begins: "SiT: " where there are several."""
    return f"{name}: " if name else ""


def compared(what: str, seen: Mapping[str, tuple[float, float | None]], lowest: bool = False) -> list[str]:
    """A sentence on which of several models has the highest (or lowest) value, seen: name -> (value, standard error).

    Nothing for a single model.
    """
    if len(seen) < 2:
        return []
    names, values, errors = list(seen), [v for v, _ in seen.values()], [e for _, e in seen.values()]
    best = (min if lowest else max)(range(len(values)), key=values.__getitem__)
    line = f"Side by side, {what} is {'lowest' if lowest else 'highest'} in {names[best]}, "
    close = [names[i] for i in rivals(values, errors, best)]
    told = f", which is within noise of {', '.join(close)}" if close else ", beyond noise"
    return [f"{line}{plus_minus(values[best], errors[best])}{told}."]
