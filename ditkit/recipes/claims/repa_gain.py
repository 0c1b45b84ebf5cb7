"""REPA's first claim: at equal steps it is better, and it needs fewer steps for equal quality (Table 1, Figure 1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ditkit.recipes.claims.baselines import REPA, SIT, repa, sit
from ditkit.recipes.reproduce.claim import Finding
from ditkit.recipes.reproduce.comparison import PAPERS, Table, Trial, claim
from ditkit.recipes.reproduce.measures import Quality
from ditkit.recipes.reproduce.rules import PAIRED, Paired, percent, shown
from ditkit.recipes.reproduce.shown import numbers, over_training, scores
from ditkit.recipes.reproduce.testbed import Testbed


def measured(bed: Testbed) -> list[Trial]:
    """SiT and SiT + REPA, medium, for the long run, scored at every second checkpoint and at the usual step."""
    b = bed.budget
    steps = sorted({b.steps, b.long, *range(2 * b.every, b.long + 1, 2 * b.every)})
    measures = [Quality(step) for step in steps]
    return [Trial(SIT, sit(bed), measures), Trial(REPA, repa(bed), measures)]


def steps_of(trial: Trial) -> list[int]:
    """The steps at which a trial's quality is measured."""
    return [m.step for m in trial.measures if isinstance(m, Quality)]


def reached(steps: Sequence[int], distances: Sequence[float], target: float) -> float:
    """The first step at which the distance is down to `target`, between measured ones on logarithms; inf if never."""
    if distances[0] <= target:
        return float(steps[0])
    for i in range(1, len(steps)):
        if distances[i] <= target < distances[i - 1]:
            part = np.log(distances[i - 1] / target) / np.log(distances[i - 1] / distances[i])
            return float(steps[i - 1] + part * (steps[i] - steps[i - 1]))
    return float("inf")


def judge(found: Table) -> Finding:
    """Distances at the last step, and the steps that REPA needs for what SiT has at its last."""
    sit, repa = found.trials
    steps = steps_of(sit)
    curve = {t.name: np.array([found.distance(t.name, step) for step in steps]).T for t in (sit, repa)}
    last = Paired.of(curve[REPA][:, -1], curve[SIT][:, -1])
    needed = np.array([reached(steps, row, other[-1]) for row, other in zip(curve[REPA], curve[SIT], strict=True)])
    faster = steps[-1] / needed
    told = f"{percent(last.ratio)} at {steps[-1]} steps; {speed(needed, steps[-1])}"
    ours = {
        "distance": {name: rows.tolist() for name, rows in curve.items()},
        "steps": steps,
        "times fewer": faster.tolist(),
    }
    sections = [over_training(found, {SIT: steps, REPA: steps}), scores(found)]
    reason = f"{last.words('REPA', 'SiT')} SiT's last distance: {speed(needed, steps[-1])}."
    more = {"scores": numbers(found, sit.measures, "agreement")}
    return Finding(
        {"FID": {"SiT-XL/2": 17.2, "REPA": 7.9}, "times fewer": 17.5}, {**ours, **more}, last.verdict(), reason,
        sections, number=told, effect=last.ratio.tolist(),
    )  # fmt: skip


def speed(needed: np.ndarray, last: int) -> str:
    """The steps that REPA needs for what SiT has at its last, in words; seeds where it never gets there are counted."""
    there = needed[np.isfinite(needed)]
    never = f", not reached in {len(needed) - len(there)} of {len(needed)} seeds" if len(there) < len(needed) else ""
    return f"{shown(last / there, 2)} times fewer steps{never}" if len(there) else "reached in no seed"


GAIN = claim(
    "repa-gain",
    (PAPERS["REPA"], "Table 3, Figure 1"),
    "aligned with a self-supervised teacher, SiT is better at equal steps and needs fewer for equal quality",
    f"Holds: at the last step the distance with REPA is smaller than without, {PAIRED}. Does not hold: it is larger by "
    "the same measure. Undecided: else. The distance is the geometric mean of the Fréchet distances in both spaces.",
    trials=measured,
    judge=judge,
    number="FID 17.2 to 7.9 at 400K steps (SiT-XL/2); more than 17.5 times fewer steps",
    minutes=4,
)
CLAIMS = (GAIN,)
