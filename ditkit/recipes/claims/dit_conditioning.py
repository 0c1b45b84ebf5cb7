"""DiT's claim on conditioning: adaLN-Zero beats adaLN, which beats cross-attention, which beats in-context tokens."""

from __future__ import annotations

import itertools

import numpy as np

from ditkit.analysis.cost import cost
from ditkit.evaluation.sections import Cell, table
from ditkit.recipes.claims.baselines import sit
from ditkit.recipes.claims.dit_recipe import SAME_NETWORK
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED, Finding, Verdict
from ditkit.recipes.reproduce.comparison import PAPERS, Table, Trial, claim
from ditkit.recipes.reproduce.measures import Quality
from ditkit.recipes.reproduce.rules import PAIRED, Paired, percent, shown
from ditkit.recipes.reproduce.shown import numbers, scores
from ditkit.recipes.reproduce.testbed import Testbed

BLOCKS = {
    "adaLN-Zero": "adaln_zero",
    "adaLN": "adaln",
    "cross-attention": "cross_attention",
    "in-context": "in_context",
}  # from the best of the paper to its worst
PAPER = {
    "FID at 400K steps, DiT-XL/2": {"adaLN-Zero": 19.47, "adaLN": 25.21, "cross-attention": 26.14, "in-context": 35.24},
    "Gflops": {"adaLN-Zero": 118.64, "adaLN": 118.56, "cross-attention": 137.62, "in-context": 119.37},
}


def trained(bed: Testbed) -> list[Trial]:
    """The medium network with each of the four blocks, scored at the usual step; all claims share adaLN-Zero."""
    measures, first = [Quality(bed.budget.steps)], sit(bed)
    others = {
        name: bed.sit(changes={"model.conditioning": kind})
        for name, kind in BLOCKS.items()
        if kind != first.model.conditioning  # type: ignore[union-attr]
    }
    return [Trial(name, others.get(name, first), measures) for name in BLOCKS]


def ordered(distances: dict[str, np.ndarray]) -> Verdict:
    """The rule. distances: by block, from the paper's best to its worst, seed by seed."""
    names = list(distances)
    pairs = {(a, b): Paired.of(distances[a], distances[b]) for a, b in itertools.combinations(names, 2)}
    if any(pair.worse() for pair in pairs.values()):
        return FAILS
    means = [float(np.log(distances[name]).mean()) for name in names]
    first = all(pairs[names[0], other].better() for other in names[1:])
    return HOLDS if first and all(a < b for a, b in itertools.pairwise(means)) else UNDECIDED


def judge(found: Table) -> Finding:
    """The order of four distances."""
    step = found.bed.budget.steps
    distances = {name: found.distance(name, step) for name in BLOCKS}
    best, *others = BLOCKS
    ratios = {name: Paired.of(distances[best], distances[name]) for name in others}
    spent = {trial.name: cost(trial.recipe.model) for trial in found.trials}
    rows: list[list[Cell]] = [
        [name, f"{spent[name].gmacs:.3g}", spent[name].trainable, shown(distances[name]), value]
        for name, value in PAPER["FID at 400K steps, DiT-XL/2"].items()
    ]
    ours = {
        "distance": {name: values.tolist() for name, values in distances.items()},
        "Gflops": {name: each.gmacs for name, each in spent.items()},
        "agreement": numbers(found, [Quality(step)], "agreement"),
    }
    columns = ("block", "Gflops", "parameters", f"distance at {step} steps", "the paper's FID")
    return Finding(
        PAPER, ours, ordered(distances), " ".join(pair.words(best, name) for name, pair in ratios.items()),
        [table("Four blocks", columns, rows), scores(found, step)],
        number="; ".join(f"{percent(pair.ratio)} against {name}" for name, pair in ratios.items()),
        effect=ratios["in-context"].ratio.tolist(), remarks=[SAME_NETWORK],
    )  # fmt: skip


CONDITIONING = claim(
    "dit-conditioning",
    (PAPERS["DiT"], "Table 4, Figure 5"),
    "in Fréchet distance at equal steps, adaLN-Zero is better than adaLN, that than cross-attention, that than "
    "in-context tokens",
    f"Holds: the distance of adaLN-Zero is smaller than that of every other block, {PAIRED}; and the four means (of "
    "logarithms, over seeds) stand in the paper's order. Does not hold: a pair of blocks stands the other way round by "
    "the same measure. Undecided: else. The distance is the geometric mean of the Fréchet distances in both spaces.",
    trials=trained,
    judge=judge,
    number="FID 19.47, 25.21, 26.14, 35.24 at 400K steps (DiT-XL/2)",
    minutes=4,
)
CLAIMS = (CONDITIONING,)
