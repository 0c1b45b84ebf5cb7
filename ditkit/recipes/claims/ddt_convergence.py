"""DDT's first claim: split into encoder and decoder, it converges faster at equal parameters (Table 2)."""

from __future__ import annotations

import numpy as np

from ditkit.evaluation.sections import Cell, table
from ditkit.recipes.claims.baselines import REPA, SIT, repa, sit
from ditkit.recipes.claims.ddt_arms import DDT, IMPROVED, IMPROVED_REPA, check_equal, ddt, improved, with_repa
from ditkit.recipes.claims.repa_gain import reached
from ditkit.recipes.reproduce.claim import Finding
from ditkit.recipes.reproduce.comparison import PAPERS, Table, Trial, claim
from ditkit.recipes.reproduce.measures import Quality
from ditkit.recipes.reproduce.rules import PAIRED, Paired, percent, shown, together
from ditkit.recipes.reproduce.shown import numbers, over_training, scores
from ditkit.recipes.reproduce.testbed import Testbed

OTHERS = (SIT, REPA, IMPROVED, IMPROVED_REPA)
PAPER = {
    "FID at 400K steps": {
        SIT: {"B": 34.84, "L": 20.01, "XL": 18.04}, REPA: {"B": 22.2}, IMPROVED: {"B": 25.1, "L": 12.7, "XL": 10.9},
        IMPROVED_REPA: {"B": 19.1, "L": 9.3, "XL": 8.14}, DDT: {"B": 16.32, "L": 7.98, "XL": 6.62},
    }
}  # fmt: skip


def compared(bed: Testbed) -> list[Trial]:
    """SiT and its improved form, each with and without REPA, and DDT; all of one depth and width."""
    recipes = [sit(bed), repa(bed), improved(bed), with_repa(bed, improved(bed)), ddt(bed)]
    check_equal(recipes)
    measures = [Quality(step) for step in bed.budget.checkpoints]
    return [Trial(name, recipe, measures) for name, recipe in zip((*OTHERS, DDT), recipes, strict=True)]


def judge(found: Table) -> Finding:
    """Distances at the last step, pair by pair, and the steps in which DDT has what another has at its last."""
    steps = found.bed.budget.checkpoints
    curve = {t.name: np.array([found.distance(t.name, step) for step in steps]).T for t in found.trials}
    pairs = {name: Paired.of(curve[DDT][:, -1], curve[name][:, -1]) for name in OTHERS}
    faster = {
        name: np.array(
            [steps[-1] / reached(steps, row, other[-1]) for row, other in zip(curve[DDT], curve[name], strict=True)]
        )
        for name in OTHERS
    }
    counts = check_equal([trial.recipe for trial in found.trials])
    rows: list[list[Cell]] = [
        [t.name, count, shown(curve[t.name][:, -1]), *versus(t.name, pairs, faster)]
        for t, count in zip(found.trials, counts, strict=True)
    ]
    head = ("", "parameters", f"distance at {steps[-1]} steps", "DDT's against it", "fewer steps of DDT, times")
    ours = {
        "steps": steps,
        "parameters": dict(zip(curve, counts, strict=True)),
        "distance": {name: values.tolist() for name, values in curve.items()},
        "times fewer steps": {name: values.tolist() for name, values in faster.items()},
        "agreement": numbers(found, [Quality(steps[-1])], "agreement"),
    }
    reason = " ".join(pair.words(DDT, name) for name, pair in pairs.items())
    told = ", ".join(f"{percent(pairs[name].ratio)} against {name}" for name in OTHERS)
    sections = [
        over_training(found, {t.name: steps for t in found.trials}),
        table("DDT against the others", head, rows, "0 times: it did not get there. Distance: mean of both spaces."),
        scores(found, steps[-1]),
    ]
    return Finding(
        PAPER, ours, together(*(pair.verdict() for pair in pairs.values())), reason, sections,
        number=f"distance at {steps[-1]} steps {told}", effect=pairs[IMPROVED_REPA].ratio.tolist(),
    )  # fmt: skip


def versus(name: str, pairs: dict[str, Paired], faster: dict[str, np.ndarray]) -> list[str]:
    """The cells that compare DDT with another."""
    return [percent(pairs[name].ratio), shown(faster[name], 2)] if name in pairs else ["", ""]


CONVERGENCE = claim(
    "ddt-convergence",
    (PAPERS["DDT"], "Table 2"),
    "at equal parameters and steps, DDT is better than SiT, SiT with REPA, and both with its own improved blocks",
    "Holds: at the last common step DDT's distance is smaller than that of each of the four others, "
    f"{PAIRED}. Does not hold: it is larger than that of one of them by the same measure. Undecided: else. The "
    "distance is the geometric mean of the Fréchet distances in both spaces; parameters are equal within 5 %.",
    trials=compared,
    judge=judge,
    number="FID at 400K steps, B/2: DDT 16.3; SiT 34.8, with REPA 22.2, improved 25.1, improved with REPA 19.1",
    minutes=6,
)
CLAIMS = (CONVERGENCE,)
