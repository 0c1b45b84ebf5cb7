"""Power-function averages and the making of any width afterwards (EDM2, arXiv 2312.02696, section 3 and appendix C).

The average of width sigma_rel at time t (updates so far) weighs the weights of time s by its profile

    p(s) = (gamma + 1) s^gamma / t^(gamma + 1)    for 0 <= s <= t,

whose standard deviation is sigma_rel t. The weights stand still between updates, so that the profile of update s is the
integral of p from s - 1 to s, and the running average that multiplies itself by (1 - 1/s)^(gamma + 1) at update s has
exactly this profile. A profile of another width is approximated by a sum of stored profiles, in least squares; the same
sum of the stored averages is then the average of that width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WIDEST = 12**-0.5  # gamma = 0: all weights so far count alike
ROUNDING = 1e-12  # relative: profiles closer than this are one


class Profile(NamedTuple):
    """The profile of width `width` (sigma_rel) at `time` (updates so far)."""

    width: float
    time: float


class Fit(NamedTuple):
    """A profile as a sum of others: one weight each, sum 1; missed: the distance left, relative to its norm."""

    weights: np.ndarray
    missed: float


def gamma_of(width: float) -> float:
    """The exponent gamma >= 0 of a width: the largest root of width^2 (gamma + 2)^2 (gamma + 3) = gamma + 1.

    ValueError for a width that no such profile has: those above 12^-0.5.
    """
    if not 0 < width <= WIDEST:
        raise ValueError(f"a width of {width:g}: power-function averages have those above 0 and up to {WIDEST:.3f}")
    square = width**2
    u = max(root.real for root in np.roots([square, square, -1.0, 1.0]))  # u = gamma + 2
    return max(0.0, u - 2)


def width_of(gamma: float) -> float:
    """sigma_rel of an exponent: the profile's standard deviation at time 1."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def inner(a: Sequence[Profile], b: Sequence[Profile]) -> np.ndarray:
    """(len(a), len(b)) float64: integrals of the products of two profiles.

    Both are powers up to the earlier time m, where one ends: (g + 1)(h + 1) m^(g + h + 1) / ((g + h + 1) t^(g + 1)
    u^(h + 1)), which is (g + 1)(h + 1) / (g + h + 1) (m / M)^(exponent of the later) / M with M the later time.
    """
    g, h = (np.array([gamma_of(p.width) for p in side], np.float64) for side in (a, b))
    t, u = (np.array([p.time for p in side], np.float64) for side in (a, b))
    g, t = g[:, None], t[:, None]
    early, late = np.minimum(t, u), np.maximum(t, u)
    later = np.where(t > u, g, h)
    return (g + 1) * (h + 1) / (g + h + 1) * (early / late) ** later / late


def fit(stored: Sequence[Profile], wanted: Profile) -> Fit:
    """The weights, of sum 1, with which the stored profiles come nearest to `wanted` (L2 over time).

    The sum is ours: weights that never moved are then found again exactly. A stored profile that is the wanted one
    gets all the weight. ValueError without any, or for one of time 0, before the first averaging.
    """
    return fits(stored, [wanted])[0]


def fits(stored: Sequence[Profile], wanted: Sequence[Profile]) -> list[Fit]:
    """`fit` for several profiles."""
    if not stored:
        raise ValueError("no stored profile to make another one of")
    if none := [p for p in (*stored, *wanted) if not 0 < p.time < math.inf]:
        raise ValueError(f"a profile at time {none[0].time:g}: averages begin with the first averaging, at time 1")
    gram = inner(stored, stored)
    norms = np.sqrt(np.diag(gram))
    gram = gram / norms / norms[:, None]  # of profiles of norm 1
    values, vectors = np.linalg.eigh(gram)
    kept = values > ROUNDING * values[-1] * len(values)  # the directions that rounding leaves
    inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T
    ones = 1 / norms
    along = inverse @ ones / (ones @ inverse @ ones)
    found = []
    for profile in wanted:
        if (same := _index(stored, profile)) is not None:
            found.append(Fit(np.eye(len(stored))[same], 0.0))
            continue
        size = math.sqrt(inner([profile], [profile])[0, 0])
        aim = inner(stored, [profile])[:, 0] / norms / size
        x = inverse @ aim  # minimises x G x / 2 - x aim; now under sum(x / norms) = 1 / size
        x += along * (1 / size - ones @ x)
        weights = x * size / norms
        weights /= weights.sum()
        if not np.isfinite(weights).all():
            raise ValueError(f"the stored profiles give no finite weights for width {profile.width:g}")
        found.append(Fit(weights, math.sqrt(max(0.0, 1 - 2 * x @ aim + x @ gram @ x))))
    return found


def reach(stored: Sequence[Profile], time: float, most: float) -> tuple[float, float] | None:
    """The narrowest and the widest average at `time` that miss no more than `most`; None if there is none."""
    widths = np.geomspace(0.002, WIDEST * 0.999, 120).tolist()
    tried = fits(stored, [Profile(width, time) for width in widths])
    good = [width for width, one in zip(widths, tried, strict=True) if one.missed <= most]
    return (good[0], good[-1]) if good else None


def _index(stored: Sequence[Profile], wanted: Profile) -> int | None:
    same = (i for i, p in enumerate(stored) if p.time == wanted.time and math.isclose(p.width, wanted.width))
    return next(same, None)
