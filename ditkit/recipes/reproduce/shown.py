"""Sections that the pages of most claims have: scores by trial, curves over training, samples side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ditkit.evaluation import Panel, Section, Series
from ditkit.evaluation.sections import Cell, curves, table
from ditkit.recipes.reproduce.comparison import Table
from ditkit.recipes.reproduce.measures import Measure, Quality
from ditkit.recipes.reproduce.rules import shown

COLUMNS = {
    "classifier": "FD, classifier", "random": "FD, random network", "agreement": "class agreement",
    "validation_loss": "validation loss",
}  # fmt: skip


def scores(found: Table, step: int | None = None, title: str = "Scores") -> Section:
    """Every trial's quality at a step (none: at its last one): both distances, agreement, validation loss."""
    rows: list[list[Cell]] = []
    for trial in found.trials:
        measure = Quality(step or trial.recipe.training.steps)
        cells = [shown(found.values(trial.name, measure, key)) for key in COLUMNS]
        rows.append([trial.name, measure.step, *cells])
    n = found.bed.budget.images
    note = f"{n} samples without guidance; ± standard deviation over {len(found.seeds)} seeds. FD: Fréchet distance."
    return table(title, ("", "step", *COLUMNS.values()), rows, note)


def over_training(
    found: Table, steps: Mapping[str, Sequence[int]], title: str = "Over training", note: str = ""
) -> Section:
    """Distances and agreement over training steps, bars from the least to the most over seeds. steps: by trial."""

    def line(name: str, key: str) -> Series:
        each = [found.values(name, Quality(step), key) for step in steps[name]]
        return series(name, steps[name], each)

    panels = [
        Panel(COLUMNS[key], [line(name, key) for name in steps], "training step", log_y=key != "agreement")
        for key in ("classifier", "random", "agreement")
    ]
    return curves(title, panels, note)


def series(name: str, x: Sequence[float], each: Sequence[np.ndarray]) -> Series:
    """A line through means over seeds, with bars from the least to the most."""
    kept = [i for i, values in enumerate(each) if np.isfinite(values).all()]
    return Series(
        name, [x[i] for i in kept], [float(each[i].mean()) for i in kept],
        limits=[(float(each[i].min()), float(each[i].max())) for i in kept] if each and len(each[0]) > 1 else (),
    )  # fmt: skip


def numbers(found: Table, measures: Sequence[Measure], key: str) -> dict[str, dict[str, list[float]]]:
    """trial -> measure -> one number of it, seed by seed, for `ours`; trials that lack a measure lack it here."""
    return {
        trial.name: {m.name: found.values(trial.name, m, key).tolist() for m in measures if m in trial.measures}
        for trial in found.trials
    }  # fmt: skip
