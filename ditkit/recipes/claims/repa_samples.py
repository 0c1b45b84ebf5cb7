"""Samples of the same noise over training, without and with REPA, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ditkit.evaluation import Panel, Section
from ditkit.evaluation.sections import class_grids, curves
from ditkit.recipes.claims.baselines import REPA, SIT, repa, sit
from ditkit.recipes.reproduce.claim import Finding
from ditkit.recipes.reproduce.comparison import PAPERS, Table, Trial, claim
from ditkit.recipes.reproduce.rules import PAIRED, gained, percent, shown
from ditkit.recipes.reproduce.shown import series
from ditkit.recipes.reproduce.testbed import Testbed

MOST = 1000  # samples that are followed
SHOWN = 10  # of them that the page has


@dataclass(frozen=True)
class Progression:
    """The same noise sampled with the averaged weights of several checkpoints, in order.

    The score: "right", a word for each checkpoint with 1 for every sample that the classifier takes for what was asked;
    "moved", root mean squared change of the samples from a checkpoint to the next, over the spread of those of the last
    one, whose own mean is taken away (1: as large as the differences between samples).
    """

    checkpoints: tuple[int, ...]

    @property
    def name(self) -> str:
        """progression@STEP,STEP,..."""
        return f"progression@{','.join(map(str, self.checkpoints))}"

    def samples(self, bed: Testbed) -> int:
        """How many are followed."""
        return min(MOST, bed.budget.images)

    def cost(self, bed: Testbed) -> float:
        """All samples at all checkpoints."""
        return self.samples(bed) * bed.budget.sampler_steps * len(self.checkpoints)

    def __call__(self, bed: Testbed, folder: Path, seed: int) -> dict[str, list]:
        """Noise and labels depend on the run's seed alone, so they are those of every other run of this seed."""
        words, images = [], []
        for step in self.checkpoints:
            made, labels = bed.sample(bed.load(folder, step), n=self.samples(bed), seed=seed)
            named = bed.classifier.probabilities(made).argmax(1).cpu() == labels.cpu()
            words.append("".join(map(str, named.long().tolist())))
            images.append(made)
        return {"right": words, "moved": moved(images)}


def moved(images: Sequence[Tensor]) -> list[float]:
    """See `Progression`; uint8 images (N, C, H, W) of one noise at successive checkpoints."""
    flat = [part.double().flatten(1) for part in images]
    spread = (flat[-1] - flat[-1].mean(0)).square().mean().sqrt().clamp(min=1e-12)
    return [float((b - a).square().mean().sqrt() / spread) for a, b in pairwise(flat)]


def shares(rows: Sequence[dict | None], count: int) -> np.ndarray:
    """(seeds, checkpoints): share of samples that are recognised; nan where a run diverged."""
    return np.array([[w.count("1") / len(w) for w in row["right"]] if row else [np.nan] * count for row in rows])


def measured(bed: Testbed) -> list[Trial]:
    """SiT and SiT + REPA, medium: every checkpoint up to the usual step, and the last."""
    b = bed.budget
    steps = sorted({*b.checkpoints, b.long})
    measures = [Progression(tuple(steps))]
    return [Trial(SIT, sit(bed), measures), Trial(REPA, repa(bed), measures)]


def picture(found: Table, steps: Sequence[int]) -> list[Section]:
    """Some of the first seed's samples, drawn again; nothing where its runs are gone."""
    seed, bed = found.seeds[0], found.bed
    folders = {trial.name: found.folders.get((trial.name, seed)) for trial in found.trials}
    there = {name: folder for name, folder in folders.items() if folder is not None and folder.is_dir()}
    if len(there) < len(folders) or any(found.scores[name, seed].get(_of(found).name) is None for name in there):
        return []
    rows = {}
    for step in steps:
        for name, folder in there.items():
            images, labels = bed.sample(bed.load(folder, step), n=SHOWN, seed=seed)
            rows[f"{name}, {step} steps"] = images.cpu(), torch.arange(len(images))  # a column for each noise
    names = [bed.source.classes[label] for label in labels.tolist()]
    note = f"A column is one noise and one label in all rows. Seed {seed}, {SHOWN} of the samples."
    return [class_grids("The same noise over training", rows, names, each=1, most=SHOWN, note=note)]


def _of(found: Table) -> Progression:
    measure = found.trials[0].measures[0]
    assert isinstance(measure, Progression)
    return measure


def judge(found: Table) -> Finding:
    """Shares of recognised samples at the checkpoints up to the usual step."""
    measure = _of(found)
    early = [step <= found.bed.budget.steps for step in measure.checkpoints]
    share = {t.name: shares(found.of(t.name, measure), len(measure.checkpoints)) for t in found.trials}
    mean = {name: rows[:, early].mean(1) for name, rows in share.items()}
    wrong = (1 - mean[REPA]) / np.maximum(1 - mean[SIT], 1e-6)
    calm = {
        t.name: [(row or {}).get("moved", [np.nan] * (len(early) - 1)) for row in found.of(t.name, measure)]
        for t in found.trials
    }
    steps = measure.checkpoints
    panels = [
        Panel("samples recognised", [series(name, steps, list(rows.T)) for name, rows in share.items()], "step"),
        Panel("change since the checkpoint before", [
            series(name, steps[1:], list(np.array(rows, float).T)) for name, rows in calm.items()
        ], "step"),
    ]  # fmt: skip
    note = "Share of the samples that the classifier takes for what was asked. Change: over the samples' own spread."
    first = {name: rows[:, 0] for name, rows in share.items()}
    reason = (
        f"Of the samples at the checkpoints up to step {found.bed.budget.steps}, {shown(100 * mean[REPA])} % are "
        f"recognised with REPA and {shown(100 * mean[SIT])} % without, of the same noise; at step {steps[0]} "
        f"{shown(100 * first[REPA])} and {shown(100 * first[SIT])} %."
    )
    number = f"recognised on the way: {shown(100 * mean[REPA])} % with REPA, {shown(100 * mean[SIT])} % without"
    ours = {
        "steps": list(steps), "recognised": {name: rows.tolist() for name, rows in share.items()}, "change": calm,
        "misses": percent(wrong),
    }  # fmt: skip
    sections = [*picture(found, steps), curves("Over training", panels, note)]
    return Finding(
        {"shown": "pictures only"}, ours, gained(mean[REPA] - mean[SIT]), reason, sections, number=number,
        effect=wrong.tolist(),
    )  # fmt: skip


SAMPLES = claim(
    "repa-samples",
    (PAPERS["REPA"], "samples over training"),
    "from the same noise, the samples of SiT with REPA become good earlier in training",
    "Holds: the share of samples that the classifier takes for what was asked, averaged over the checkpoints up to the "
    "usual number of steps, of the same noise and labels, is larger with REPA than without "
    f"{PAIRED.replace(' (of logarithms)', '')}. Does not hold: it is smaller by the same measure. Undecided: else.",
    trials=measured,
    judge=judge,
    number="pictures only",
    minutes=4,
)
CLAIMS = (SAMPLES,)
