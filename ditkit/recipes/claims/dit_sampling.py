"""DiT's claim on sampling compute: more sampling steps do not make up for a smaller model."""

from __future__ import annotations

import numpy as np

from ditkit.evaluation import Panel
from ditkit.evaluation.sections import curves, table
from ditkit.recipes.claims.dit_grid import Point, grid, mean_ratio, neighbours
from ditkit.recipes.claims.dit_recipe import SAME_NETWORK
from ditkit.recipes.reproduce.claim import Finding
from ditkit.recipes.reproduce.comparison import PAPERS, Table, Trial, claim
from ditkit.recipes.reproduce.measures import Quality
from ditkit.recipes.reproduce.rules import PAIRED, Paired, percent, shown
from ditkit.recipes.reproduce.shown import series
from ditkit.recipes.reproduce.testbed import Testbed

MORE = 4  # times as many sampling steps for the smaller model
PAPER = {
    "FID-10K at 400K steps, its sampling Tflops": {"L/2, 1000 steps": [25.9, 80.7], "XL/2, 128 steps": [23.7, 15.2]}
}


def qualities(bed: Testbed) -> list[Quality]:
    """At the last step, with half as many, as many, twice and four times as many sampling steps as usual."""
    b = bed.budget
    counts = sorted({max(1, b.sampler_steps // 2), 2 * b.sampler_steps, MORE * b.sampler_steps})
    return [Quality(b.steps), *(Quality(b.steps, n) for n in counts)]


def middle(bed: Testbed) -> list[Point]:
    """The four sizes with the middle size of token."""
    points = grid(bed)
    patch = sorted({point.patch for point in points})[1]
    return [point for point in points if point.patch == patch]


def trained(bed: Testbed) -> list[Trial]:
    """Those four, each sampled with several numbers of steps."""
    return [Trial(point.name, point.recipe, qualities(bed)) for point in middle(bed)]


def bought(points: list[Point], usual: dict[str, np.ndarray], more: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By pair of neighbouring sizes, the larger model's usual distance over the smaller's with more sampling steps.

    Pairs where the smaller model does not spend more on sampling are left out. usual, more: by name, seed by seed.
    """
    return {
        f"{large.name} over {small.name}": Paired.of(usual[large.name], more[small.name]).ratio
        for small, large in neighbours(points)
        if MORE * small.gflops > large.gflops
    }


def judge(found: Table) -> Finding:
    """The mean ratio over pairs, seed by seed."""
    b, points = found.bed.budget, middle(found.bed)
    usual = {p.name: found.distance(p.name, b.steps) for p in points}
    more = {p.name: found.distance(p.name, b.steps, MORE * b.sampler_steps) for p in points}
    pairs = bought(points, usual, more)
    mean = mean_ratio(pairs, len(found.seeds))
    measures = sorted(qualities(found.bed), key=lambda m: counted(m, found.bed))
    every = {
        p.name: [found.distance(p.name, m.step, m.sampler_steps) for m in measures] for p in points
    }  # sampling steps, then seeds
    counts = [counted(m, found.bed) for m in measures]
    lines = [series(p.name, [n * p.gflops for n in counts], every[p.name]) for p in points]
    rows = [[p.name, *(shown(values) for values in every[p.name])] for p in points]
    ours = {
        "ratio": {name: ratio.tolist() for name, ratio in pairs.items()},
        "mean ratio": mean.ratio.tolist(),
        "sampling steps": counts,
        "distance": {name: [values.tolist() for values in each] for name, each in every.items()},
        "Gflops": {p.name: p.gflops for p in points},
    }
    reason = (
        f"With {b.sampler_steps} sampling steps, the larger model of a pair has {percent(mean.ratio)} distance on "
        f"average against the smaller one with {MORE * b.sampler_steps}, which then spends more compute on sampling."
    )
    panel = Panel("Fréchet distance", lines, "Gflops of a sample", log_y=True)
    heads = ("model", *(f"{n} sampling steps" for n in counts))
    return Finding(
        PAPER, ours, mean.verdict(), reason,
        [curves("Distance over sampling compute", [panel]), table("Distance", heads, rows)],
        number=f"{percent(mean.ratio)} over {len(pairs)} pairs of neighbouring sizes, the smaller sampled with {MORE} "
        "times the steps",
        effect=mean.ratio.tolist(), remarks=[SAME_NETWORK],
    )  # fmt: skip


def counted(measure: Quality, bed: Testbed) -> int:
    """Sampling steps of a measure."""
    return measure.sampler_steps or bed.budget.sampler_steps


SAMPLING = claim(
    "dit-sampling",
    (PAPERS["DiT"], "section 5.2, Figure 10"),
    "more compute at sampling does not make up for less compute in the model",
    f"Compared are neighbouring sizes with the middle size of token: the larger with the usual sampling steps, the "
    f"smaller with {MORE} times as many, where that is more compute. Holds: the distance of the larger is smaller "
    f"(geometric mean over the pairs), {PAIRED}. Does not hold: it is larger by the same measure. Undecided: else.",
    trials=trained,
    judge=judge,
    number="FID-10K 23.7 (XL/2, 128 sampling steps, 15.2 Tflops) against 25.9 (L/2, 1000 steps, 80.7 Tflops)",
    minutes=4,
)
CLAIMS = (SAMPLING,)
