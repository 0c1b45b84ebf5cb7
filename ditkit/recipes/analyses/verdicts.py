"""Which of several numbers is ahead, and whether surely: one way to say it for all analyses.

Numbers of the same images are compared image by image, which is far surer than to see whether their limits overlap.
What is best of several is chosen on one half of the images and measured on the other: the highest of many is lucky.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ditkit.evaluation.uncertainty import Interval, mean_interval

Form = Callable[[float], str]
Word = Literal["equal", "within", "beyond", "unknown"]
FEW = 5  # images that differ all by the same number, from which on that is no chance
ONE_EACH = "One training each: what another seed would change is not counted."
HALVES = "What is best is chosen on every second image and measured on the others"


def halves(n: int) -> tuple[Tensor, Tensor]:
    """Row numbers of n images: those that choose, and those on which what they chose is measured."""
    rows = torch.arange(n)
    return rows[::2], rows[1::2]


@dataclass(frozen=True)
class Standing:
    """A number. each: what every image has, whose mean it is, where that is known; limits: 95 %, where they are.

    where: words behind it, such as " after block 3".
    """

    value: float
    limits: Interval | None = None
    each: Sequence[float] = ()
    where: str = ""


class Gap(NamedTuple):
    """How far one number is above another, 95 % limits of that, and what it comes to."""

    difference: float
    limits: Interval | None
    word: Word


def judged(difference: float, limits: Interval | None) -> Gap:
    """A difference with its limits: beyond noise where they leave 0 out."""
    if difference == 0:
        return Gap(difference, limits, "equal")
    if limits is None:
        return Gap(difference, None, "unknown")
    return Gap(difference, limits, "within" if limits[0] <= 0 <= limits[1] else "beyond")


def paired(differences: Tensor) -> Gap:
    """From the differences (N,) of N images, by Student's t. Without spread: certain from FEW images on."""
    d = differences.double()
    mean, limits = float(d.mean()), mean_interval(d)
    if mean != 0 and limits is None and len(d) >= FEW:
        return Gap(mean, None, "beyond")
    return judged(mean, limits)


def gap(a: Standing, b: Standing) -> Gap:
    """a less b: image by image where both have as many, else from their limits, as if they were independent."""
    if len(a.each) == len(b.each) > 1:
        return paired(torch.tensor(a.each, dtype=torch.float64) - torch.tensor(b.each, dtype=torch.float64))
    difference = a.value - b.value
    if a.limits is None or b.limits is None:
        return judged(difference, None)
    half = math.hypot(*((high - low) / 2 for low, high in (a.limits, b.limits)))
    return judged(difference, (difference - half, difference + half))


def above(differences: Tensor) -> bool:
    """Whether a mean difference (N,) of N images is above 0 beyond noise."""
    g = paired(differences)
    return g.word == "beyond" and g.difference > 0


def listed(words: Sequence[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def between(limits: Interval | None, form: Form) -> str:
    """ " (limits 88.0 % to 94.0 %)"; nothing where they are unknown."""
    return f" (limits {form(limits[0])} to {form(limits[1])})" if limits is not None else ""


def ranked(what: str, seen: Mapping[str, Standing], form: Form, lowest: bool = False) -> list[str]:
    """One sentence that puts models in order, and says of which of them the first is not surely ahead.

    what: how it begins, "In CKNNA with dinov2". lowest: the first is the lowest. Nothing for a single model.
    """
    if len(seen) < 2:
        return []
    order = sorted(seen.items(), key=lambda pair: pair[1].value if lowest else -pair[1].value)
    (leader, best), *others = order
    gaps = {name: gap(best, s) for name, s in others}
    kinds = {word: [name for name, g in gaps.items() if g.word == word] for word in ("equal", "within", "unknown")}
    if len(kinds["equal"]) == len(others):
        return [f"{what} {listed([leader, *kinds['equal']])} are equal: {form(best.value)}."]
    told = [f"{name} with {form(s.value)}{s.where}" for name, s in order]
    then = f"then {listed(told[1:])}"
    if not any(kinds.values()):
        second = others[0][0]
        by = f"by {form(abs(gaps[second].difference))}{between(_upwards(gaps[second]), form)}"
        return [f"{what} {told[0]} is ahead; {then}. It is ahead of {second} {by}, beyond noise."]
    parts = [f"within noise of {listed(kinds['within'])}"] if kinds["within"] else []
    parts += [f"equal to {listed(kinds['equal'])}"] if kinds["equal"] else []
    parts += [f"at a distance from {listed(kinds['unknown'])} whose limits are not known"] if kinds["unknown"] else []
    return [f"{what} the {'lowest' if lowest else 'highest'} is {told[0]}; {then}. It is {listed(parts)}."]


def _upwards(g: Gap) -> Interval | None:
    """Limits of the size of a difference that is beyond noise."""
    return g.limits if g.limits is None or g.difference > 0 else (-g.limits[1], -g.limits[0])


def side_by_side(lines: Sequence[str]) -> list[str]:
    """Verdicts on several models, the first of which says what they leave out."""
    return [f"{line} {ONE_EACH}" if i == 0 else line for i, line in enumerate(lines)]


def changed(g: Gap) -> str:
    """The end of a sentence on how something changed."""
    return {
        "equal": "it did not change",
        "within": "the change is within noise",
        "beyond": "beyond noise",
        "unknown": "limits of this change are not known",
    }[g.word]
