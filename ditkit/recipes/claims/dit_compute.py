"""DiT's claim on training compute: spent on a larger model for fewer steps, it goes further."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ditkit.evaluation import Panel
from ditkit.evaluation.sections import Cell, curves, table
from ditkit.recipes.claims.dit_grid import Point, grid, mean_ratio, neighbours
from ditkit.recipes.claims.dit_recipe import SAME_NETWORK
from ditkit.recipes.reproduce.claim import Finding
from ditkit.recipes.reproduce.comparison import PAPERS, Table, Trial, claim
from ditkit.recipes.reproduce.measures import Quality
from ditkit.recipes.reproduce.rules import PAIRED, Paired, percent, shown
from ditkit.recipes.reproduce.shown import scores, series
from ditkit.recipes.reproduce.testbed import Testbed

BACKWARD = 3  # passes that a training step costs: one forward, about two backward


def trained(bed: Testbed) -> list[Trial]:
    """The twelve, scored at every checkpoint."""
    measures = [Quality(step) for step in bed.budget.checkpoints]
    return [Trial(point.name, point.recipe, measures) for point in grid(bed)]


def at(steps: Sequence[float], curve: np.ndarray, step: float) -> float:
    """A curve at a step between those where it was measured, straight on logarithms; infinite if the run diverged."""
    if not np.isfinite(curve).all():
        return float("inf")
    return float(np.exp(np.interp(np.log(step), np.log(steps), np.log(curve))))


def compared(points: list[Point], steps: list[int], curves_: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Pairs of neighbouring sizes with one size of token: distance of the larger over that of the smaller model.

    Both have spent what the smaller one has at its last step. Pairs whose larger model was not scored early enough are
    left out. curves_: by name of a point, (seeds, steps).
    """
    found = {}
    for small, large in neighbours(points):
        step = steps[-1] * small.gflops / large.gflops
        if step >= steps[0]:
            values = np.array([at(steps, row, step) for row in curves_[large.name]])
            found[f"{large.name} over {small.name}"] = Paired.of(values, curves_[small.name][:, -1]).ratio
    return found


def judge(found: Table) -> Finding:
    """The mean ratio over all pairs that can be compared, seed by seed."""
    bed, points, steps = found.bed, grid(found.bed), found.bed.budget.checkpoints
    curves_ = {p.name: np.array([found.distance(p.name, step) for step in steps]).T for p in points}
    pairs = compared(points, steps, curves_)
    mean = mean_ratio(pairs, len(found.seeds))
    wins = sum(bool(ratio.prod() < 1) for ratio in pairs.values())
    panels = [
        Panel(
            f"Distance, patch {patch}",
            [
                series(p.size, [step * spent(p, bed) for step in steps], [*curves_[p.name].T])
                for p in points
                if p.patch == patch
            ],
            "training Gflops", log_y=True,
        )
        for patch in sorted({p.patch for p in points})
    ]  # fmt: skip
    rows: list[list[Cell]] = [[name, percent(ratio), int((ratio < 1).sum())] for name, ratio in pairs.items()]
    note = "Both have spent what the smaller has at its last step; between checkpoints, straight lines on logarithms."
    ours = {
        "ratio": {name: ratio.tolist() for name, ratio in pairs.items()},
        "mean ratio": mean.ratio.tolist(),
        "steps": steps,
        "distance": {name: rows_.tolist() for name, rows_ in curves_.items()},
    }
    told = f"{percent(mean.ratio)} over {len(pairs)} pairs of neighbouring sizes at equal training compute"
    reason = (
        f"At the training compute that the smaller model of a pair has spent at step {steps[-1]}, the larger one's "
        f"distance is {shown(mean.ratio)} times as large on average; it is smaller in {wins} of {len(pairs)} pairs."
    )
    sections = [
        curves("Distance over training compute", panels, "Gflops of the model x batch x steps x 3, as in the paper."),
        table("Equal compute", ("larger over smaller", "distance", "seeds in which it is smaller"), rows, note),
        scores(found),
    ]
    return Finding(
        {"curves only": "Figure 9"}, ours, mean.verdict(), reason, sections, number=told,
        effect=mean.ratio.tolist(), remarks=[SAME_NETWORK],
    )  # fmt: skip


def spent(point: Point, bed: Testbed) -> float:
    """Gflops of one training step."""
    return BACKWARD * point.gflops * point.recipe.training.batch


COMPUTE = claim(
    "dit-compute",
    (PAPERS["DiT"], "Figure 9"),
    "larger models use training compute better: at equal compute they are ahead of smaller ones that trained longer",
    "Compared are neighbouring sizes with one size of token, at the training compute that the smaller one has spent at "
    "its last step. Holds: the distance of the larger model is smaller than that of the smaller one (geometric mean "
    f"over the pairs), {PAIRED}. Does not hold: it is larger by the same measure. Undecided: else.",
    trials=trained,
    judge=judge,
    number="curves only",
    minutes=12,
)
CLAIMS = (COMPUTE,)
