"""Judging a result again from its own scores, without a training: whether the verdict follows from them by the rule."""

from __future__ import annotations

from pathlib import Path

from ditkit.config import read_settings
from ditkit.data import NAMED
from ditkit.recipes.reproduce.claim import Claim, Finding, Question
from ditkit.recipes.reproduce.result import Result


def rejudge(result: Result, claim: Claim, data: str = "") -> Finding:
    """What the claim's rule makes of the result's scores. ValueError, one line, where a run of them is missing.

    data: the images; "": those that the result names, where they are digits or scenes.
    """
    if not data and (data := str(result.data.get("source"))) not in NAMED:
        raise ValueError(f"{result.claim}: the result is of {data}; name the images to judge it again")
    budget = read_settings(type(claim.budgets[result.budget]), result.settings, result.claim)
    study = claim.open(Question(claim, result.budget, budget, data, result.seeds, Path("nowhere")))
    wanted = {arm.key: set(arm.parts) for arm in study.arms}
    lost = [key for key, parts in wanted.items() if parts - set(result.scores.get(key, ()))]
    if lost:
        raise ValueError(f"{result.claim}: the result has no scores, or not all, of {', '.join(lost)}")
    return study.find(result.scores, {arm.key: Path("nowhere") / arm.file for arm in study.arms})
