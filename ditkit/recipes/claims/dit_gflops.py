"""DiT's claim on scale: the Fréchet distance falls with the model's Gflops, however they are spent."""

from __future__ import annotations

import numpy as np

from ditkit.evaluation import Panel
from ditkit.evaluation.sections import Cell, curves, table
from ditkit.recipes.claims.dit_grid import PAPER, SIZES, Point, correlation, grid
from ditkit.recipes.claims.dit_recipe import SAME_NETWORK
from ditkit.recipes.reproduce.claim import Finding
from ditkit.recipes.reproduce.comparison import PAPERS, Table, Trial, claim
from ditkit.recipes.reproduce.measures import Quality
from ditkit.recipes.reproduce.rules import falling, shown
from ditkit.recipes.reproduce.shown import numbers, scores, series
from ditkit.recipes.reproduce.testbed import Testbed

THEIRS = correlation(*np.array(list(PAPER.values())).T)


def trained(bed: Testbed) -> list[Trial]:
    """The twelve, scored at the usual step."""
    return [Trial(point.name, point.recipe, [Quality(bed.budget.steps)]) for point in grid(bed)]


def correlations(points: list[Point], distances: dict[str, np.ndarray]) -> list[float]:
    """Pearson's correlation of log distance with log Gflops, seed by seed. distances: by name of a point."""
    x = np.array([point.gflops for point in points])
    return [correlation(x, row) for row in np.array([distances[point.name] for point in points]).T]


def judge(found: Table) -> Finding:
    """The correlation over the grid."""
    step, points = found.bed.budget.steps, grid(found.bed)
    distances = {point.name: found.distance(point.name, step) for point in points}
    rs = correlations(points, distances)
    fine = sorted({point.patch for point in points})
    lines = [
        series(f"patch {patch}", [p.gflops for p in mine], [distances[p.name] for p in mine])
        for patch in fine
        for mine in [[p for p in points if p.patch == patch]]
    ]
    theirs = dict(zip([(size, i) for size in SIZES for i in (2, 1, 0)], PAPER.items(), strict=True))
    rows: list[list[Cell]] = []
    for point in points:
        name, (gflops, fid) = theirs[point.size, fine.index(point.patch)]
        rows.append([point.name, f"{point.gflops:.3g}", shown(distances[point.name]), f"{name}: {gflops:g}", fid])
    columns = ("model", "Gflops", f"distance at {step} steps", "the paper's model and Gflops", "its FID")
    panel = Panel("Fréchet distance", lines, "Gflops of the model", log_y=True)
    ours = {
        "correlation": rs,
        "Gflops": {point.name: point.gflops for point in points},
        "distance": {name: values.tolist() for name, values in distances.items()},
        "agreement": numbers(found, [Quality(step)], "agreement"),
    }
    reason = f"The correlation of log distance with log Gflops over the grid is {shown(rs)}."
    return Finding(
        {"Gflops, FID at 400K steps": {name: list(values) for name, values in PAPER.items()}, "correlation": THEIRS},
        ours, falling(rs), reason,
        [curves("Distance over Gflops", [panel]), table("The grid", columns, rows), scores(found, step)],
        number=f"correlation of logarithms {shown(rs)}", remarks=[SAME_NETWORK],
    )  # fmt: skip


GFLOPS = claim(
    "dit-gflops",
    (PAPERS["DiT"], "Table 4, Figure 8"),
    "over twelve models of four sizes with three sizes of token, the Fréchet distance at equal steps falls with the "
    "Gflops of the model",
    "Holds: the correlation of log distance with log Gflops over the twelve models is at most -0.7 in every seed. "
    "Does not hold: it is 0 or above in every seed. Undecided: else, or with fewer than 3 seeds, or where a run "
    "diverged. The distance is the geometric mean of the Fréchet distances in both spaces.",
    trials=trained,
    judge=judge,
    number=f"FID 153.6 (0.36 Gflops) to 19.5 (118.6) at 400K steps; correlation of logarithms {THEIRS:.2f}, of Table 4",
    minutes=8,
)
CLAIMS = (GFLOPS,)
