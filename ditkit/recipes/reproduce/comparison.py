"""A study of runs on one testbed: which runs, what is measured of them, and what a judge makes of the table."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ditkit.recipes.recipe import Recipe
from ditkit.recipes.reproduce.claim import Arm, Claim, Finding, Question, Show
from ditkit.recipes.reproduce.measures import Measure, Quality, distance
from ditkit.recipes.reproduce.testbed import BUDGETS, Testbed


@dataclass(frozen=True)
class Trial:
    """One thing that is compared: a recipe, trained once a seed, and what is measured of each run."""

    name: str
    recipe: Recipe
    measures: Sequence[Measure]


@dataclass(frozen=True)
class Table:
    """The scores of a study: by the name of a trial, the name of a measure, and the seed."""

    bed: Testbed
    trials: Sequence[Trial]
    seeds: Sequence[int]
    scores: Mapping[tuple[str, int], Mapping[str, Any]]
    folders: Mapping[tuple[str, int], Path]

    def of(self, trial: str, measure: Measure) -> list[Any]:
        """What was measured, seed by seed; None where a run diverged."""
        return [self.scores[trial, seed].get(measure.name) for seed in self.seeds]

    def values(self, trial: str, measure: Measure, key: str) -> np.ndarray:
        """One number of what was measured, seed by seed; nan where there is none."""
        found = [(row or {}).get(key) for row in self.of(trial, measure)]
        return np.array([np.nan if value is None else value for value in found], dtype=float)

    def distance(self, trial: str, step: int, sampler_steps: int | None = None) -> np.ndarray:
        """Geometric mean of the Frechet distances in both spaces, seed by seed; infinite where a run diverged."""
        return np.array([distance(found) for found in self.of(trial, Quality(step, sampler_steps))])


Judge = Callable[[Table], Finding]


def check_saved(trial: Trial) -> None:
    """ValueError where a measure looks at a step (its `step` or `checkpoints`) whose weights the run will not keep."""
    training = trial.recipe.training
    every = training.save_every
    looked = [getattr(m, "checkpoints", (getattr(m, "step", training.steps),)) for m in trial.measures]
    for step in itertools.chain(*looked):
        if step > training.steps or (step % every and step != training.steps):
            raise ValueError(
                f"{trial.name} is asked for step {step}, but is trained for {training.steps} steps and saved every "
                f"{every}: choose steps and long that are multiples of every, and long not below steps"
            )


class Comparison:
    """The study of a claim whose runs share a testbed."""

    def __init__(self, q: Question, trials: Callable[[Testbed], Sequence[Trial]], judge: Judge):
        self.q, self.judge = q, judge
        self.bed = Testbed(q)
        self.trials = list(trials(self.bed))
        if len({trial.name for trial in self.trials}) < len(self.trials):
            raise ValueError(f"{q.claim.name}: two trials have one name")
        for trial in self.trials:
            check_saved(trial)

    @property
    def data(self) -> dict[str, Any]:
        """What is told of the images."""
        return self.bed.data

    @property
    def shelf(self) -> str:
        """The testbed's: claims on the same images share their runs."""
        return self.bed.shelf

    @cached_property
    def arms(self) -> list[Arm]:
        """Every trial with every seed, seed by seed."""
        return [self._arm(trial, seed) for seed in self.q.seeds for trial in self.trials]

    def _arm(self, trial: Trial, seed: int) -> Arm:
        named = {"training.seed": seed, "title": f"{trial.name}, seed {seed}"}
        return Arm(trial.name, trial.recipe.with_(named), {m.name: m.cost(self.bed) for m in trial.measures})

    def begin(self, show: Show) -> None:
        """Teachers, codecs and judges."""
        self.bed.begin(show)

    def score(self, arm: Arm, folder: Path, part: str, show: Show) -> Any:
        """One measure of a run."""
        trial = next(trial for trial in self.trials if trial.name == arm.name)
        measure = next(m for m in trial.measures if m.name == part)
        return measure(self.bed, folder, arm.seed)

    def find(self, scores: Mapping[str, Mapping[str, Any]], folders: Mapping[str, Path]) -> Finding:
        """What the claim's judge makes of the table."""
        by = {(arm.name, arm.seed): scores[arm.key] for arm in self.arms}
        where = {(arm.name, arm.seed): folders[arm.key] for arm in self.arms}
        return self.judge(Table(self.bed, self.trials, self.q.seeds, by, where))


def claim(
    name: str, source: tuple[str, str], says: str, rule: str, *, trials: Callable[[Testbed], Sequence[Trial]],
    judge: Judge, number: str, minutes: float,
) -> Claim:  # fmt: skip
    """A claim about runs on one testbed.

    source: paper, and its table or figure. number: the paper's, in a few words. minutes: of the small budget with one
    seed on two idle cores, where nothing of it is in the pool yet.
    """
    return Claim(
        name=name, paper=source[0], table=source[1], says=says, rule=rule, data="digits", budgets=BUDGETS,
        minutes={"smoke": 0.5, "small": minutes}, open=lambda q: Comparison(q, trials, judge), number=number,
    )  # fmt: skip


PAPERS = {
    "DiT": "Scalable Diffusion Models with Transformers (DiT, arXiv 2212.09748)",
    "REPA": "Representation Alignment for Generation (REPA, arXiv 2410.06940)",
    "DDT": "Decoupled Diffusion Transformer (DDT, arXiv 2504.05741)",
    "SD3": "Scaling Rectified Flow Transformers (SD3, arXiv 2403.03206)",
}
