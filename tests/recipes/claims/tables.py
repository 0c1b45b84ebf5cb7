"""Tables of made-up scores for the judges of claims: real trials of a claim, nothing trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ditkit.recipes.claims import ask
from ditkit.recipes.reproduce.claim import Question
from ditkit.recipes.reproduce.comparison import Comparison, Table
from ditkit.recipes.reproduce.measures import Measure

Answer = Callable[[str, Measure, int], Any]  # trial, measure, seed -> what was measured


def opened(claim: str, size: str = "small", seeds: int = 3) -> Comparison:
    """The study of a claim on digits, as a command would open it."""
    q = ask(claim, size=size, seeds=seeds, out=Path("nowhere"))
    study = q.claim.open(q)
    assert isinstance(study, Comparison)
    return study


def tiny(claim: str, out: Path, **changes: Any) -> Question:
    """A question with one seed that takes seconds; changes: of the smoke budget."""
    q = ask(claim, size="smoke", seeds=1, out=out)
    shape = (8, 2, 2)
    least = {
        "steps": 4, "long": 4, "every": 4, "classifier_steps": 2, "teacher_steps": 2, "images": 4, "chunk": 4,
        "small": shape, "medium": shape, "large": shape,
    }  # fmt: skip
    return replace(q, budget=q.budget.model_copy(update={**least, **changes}))


def made_up(study: Comparison, answer: Answer, seeds: int = 3, lost: Sequence[tuple[str, int]] = ()) -> Table:
    """A table of `answer`; every score of the runs `lost`, (trial, seed), is None."""
    scores = {
        (trial.name, seed): {
            m.name: None if (trial.name, seed) in lost else answer(trial.name, m, seed) for m in trial.measures
        }
        for trial in study.trials
        for seed in range(seeds)
    }
    folders = {key: Path("nowhere") / f"{key[0]}-{key[1]}" for key in scores}
    return Table(study.bed, study.trials, range(seeds), scores, folders)
