"""Rules that turn scores over seeds into a verdict. They are fixed before anything is run, and say what they did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ditkit.analysis.ranking import spearman
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED, Verdict

FEWEST = 3  # seeds that can decide anything
PAIRED = (
    "in every seed, and by more on average than the standard deviation of the difference over seeds (of logarithms); "
    "fewer than 3 seeds decide nothing"
)


@dataclass(frozen=True)
class Paired:
    """Two series of positive numbers, seed by seed, of which smaller is better. ratio: first over second."""

    ratio: np.ndarray

    @classmethod
    def of(cls, first: np.ndarray | Sequence[float], second: np.ndarray | Sequence[float]) -> Paired:
        """Of equally many numbers; a run that diverged has an infinite one."""
        a, b = np.asarray(first, float), np.asarray(second, float)
        both_lost = ~np.isfinite(a) & ~np.isfinite(b)
        with np.errstate(invalid="ignore", divide="ignore"):
            return cls(np.where(both_lost, np.nan, a / b))

    def better(self) -> bool:
        """Whether the first is: PAIRED."""
        return self.verdict() == HOLDS

    def worse(self) -> bool:
        """Whether the second is."""
        return self.verdict() == FAILS

    def verdict(self) -> Verdict:
        """Holds where the first is better, does not hold where the second is, else undecided."""
        with np.errstate(divide="ignore"):
            return gained(-np.log(self.ratio))

    def words(self, first: str, second: str) -> str:
        """A sentence."""
        wins = int((self.ratio < 1).sum())
        return f"{first} over {second}: {percent(self.ratio)}, better in {wins} of {len(self.ratio)} seeds."


def clear(gains: np.ndarray) -> bool:
    """Whether all are above 0, and their mean above their standard deviation. Infinite ones count as above."""
    if np.isnan(gains).any() or (gains <= 0).any():
        return False
    finite = gains[np.isfinite(gains)]
    return len(finite) < 2 or bool(finite.mean() > finite.std(ddof=1))


def gained(gains: np.ndarray | Sequence[float]) -> Verdict:
    """Of differences, seed by seed: holds where they are above 0 as PAIRED says, does not hold where below, likewise.

    nan, of a run that diverged: undecided, as with fewer than 3 seeds.
    """
    found = np.asarray(gains, float)
    if len(found) < FEWEST:
        return UNDECIDED
    return HOLDS if clear(found) else FAILS if clear(-found) else UNDECIDED


def trend(x: Sequence[float], ys: np.ndarray | Sequence[Sequence[float]]) -> list[float]:
    """Spearman's rho of x with y, seed by seed: ys (seeds, len(x))."""
    return [spearman(x, row)[0] for row in np.asarray(ys, float)]


def falling(rhos: Sequence[float], strong: float = 0.7) -> Verdict:
    """Holds: rho <= -strong in every seed. Does not hold: no rho below 0. Undecided: else, or fewer than 3 seeds."""
    if len(rhos) < FEWEST or any(np.isnan(rhos)):
        return UNDECIDED
    return HOLDS if max(rhos) <= -strong else FAILS if min(rhos) >= 0 else UNDECIDED


def together(*verdicts: Verdict) -> Verdict:
    """Of a claim in several parts: holds if all hold, does not if one does not, else undecided."""
    return FAILS if FAILS in verdicts else HOLDS if all(v == HOLDS for v in verdicts) else UNDECIDED


def shown(values: np.ndarray | Sequence[float], digits: int = 3) -> str:
    """Mean and standard deviation over seeds: "1.23 ± 0.04"; "diverged" where one is not finite."""
    v = np.asarray(values, float)
    if not np.isfinite(v).all():
        return f"diverged in {int((~np.isfinite(v)).sum())} of {len(v)}"
    spread = f" ± {v.std(ddof=1):.{digits}g}" if len(v) > 1 else ""
    return f"{v.mean():.{digits}g}{spread}"


def percent(ratio: np.ndarray | Sequence[float]) -> str:
    """A ratio as a change: "-13 % ± 4"."""
    change = 100 * (np.asarray(ratio, float) - 1)
    if not np.isfinite(change).all():
        return "not finite"
    return f"{change.mean():+.0f} %" + (f" ± {change.std(ddof=1):.0f}" if len(change) > 1 else "")
