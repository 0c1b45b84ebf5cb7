"""REPA's claim on size: what alignment gains grows with the model (Table 3)."""

from __future__ import annotations

import numpy as np

from ditkit.evaluation import Panel
from ditkit.evaluation.sections import curves
from ditkit.recipes.claims.baselines import REPA, SIT, repa, sit
from ditkit.recipes.reproduce.claim import Finding
from ditkit.recipes.reproduce.comparison import PAPERS, Table, Trial, claim
from ditkit.recipes.reproduce.measures import Quality
from ditkit.recipes.reproduce.rules import PAIRED, Paired, percent, shown
from ditkit.recipes.reproduce.shown import numbers, scores, series
from ditkit.recipes.reproduce.testbed import Testbed

SIZES = ("small", "medium", "large")
PAPER = {
    "FID at 400K steps without, with REPA": {"B/2": [33.0, 24.4], "L/2": [18.8, 9.7], "XL/2": [17.2, 7.9]},
    "change": {"B/2": -0.26, "L/2": -0.48, "XL/2": -0.54},
}


def named(what: str, size: str) -> str:
    """The name of a trial: "SiT, large"."""
    return f"{what}, {size}"


def trained(bed: Testbed) -> list[Trial]:
    """SiT and SiT + REPA in three sizes, scored at the usual step."""
    measures = [Quality(bed.budget.steps)]
    return [
        Trial(named(what, size), make(bed, size), measures)
        for size in SIZES
        for what, make in ((SIT, sit), (REPA, repa))
    ]


def ratios(found: Table) -> dict[str, np.ndarray]:
    """By size, the distance with REPA over that without, seed by seed; below 1 where REPA helps."""
    step = found.bed.budget.steps
    return {
        size: Paired.of(found.distance(named(REPA, size), step), found.distance(named(SIT, size), step)).ratio
        for size in SIZES
    }


def judge(found: Table) -> Finding:
    """Whether the ratio of the large model is below that of the small one."""
    by, step = ratios(found), found.bed.budget.steps
    across = Paired.of(by["large"], by["small"])
    told = ", ".join(f"{size} {percent(ratio)}" for size, ratio in by.items())
    distances = {t.name: found.distance(t.name, step).tolist() for t in found.trials}
    agreement = numbers(found, [Quality(step)], "agreement")
    ours = {"ratio": {size: ratio.tolist() for size, ratio in by.items()}, "distance": distances}
    blocks = [found.trials[2 * i].recipe.model for i in range(len(SIZES))]
    width = [float(model.width) for model in blocks]
    panel = Panel("distance with REPA over without", [series("ratio", width, [by[size] for size in SIZES])], "width")
    reason = (
        f"REPA changes the distance at {step} steps by: {told}. "
        f"The ratio of the large model over that of the small one is {shown(across.ratio)}."
    )
    return Finding(
        PAPER, {**ours, "agreement": agreement}, across.verdict(), reason,
        [curves("Gain over size", [panel]), scores(found, step)], number=told, effect=across.ratio.tolist(),
    )  # fmt: skip


SIZE = claim(
    "repa-size",
    (PAPERS["REPA"], "Table 3"),
    "what alignment gains grows with the size of the model",
    "Holds: the ratio of the distance with REPA to that without, at equal steps, is smaller for the large model than "
    f"for the small one, {PAIRED}. Does not hold: it is larger by the same measure. Undecided: else.",
    trials=trained,
    judge=judge,
    number="FID 33.0 to 24.4 (B/2, -26 %), 18.8 to 9.7 (L/2, -48 %), 17.2 to 7.9 (XL/2, -54 %) at 400K steps",
    minutes=5,
)
CLAIMS = (SIZE,)
