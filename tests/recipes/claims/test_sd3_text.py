"""The claim sd3-text-encoders: what is compared, the rule on made-up tables, and what is measured of a tiny run."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ditkit.config import diff
from ditkit.data import DataError
from ditkit.evaluation.geneval import TAGS
from ditkit.recipes.claims import ask
from ditkit.recipes.claims.sd3_text import (
    ALL,
    EACH,
    LOSSES,
    NO_T5,
    NONE,
    SUBSETS,
    WHOLE,
    TextStudy,
    above_least,
    in_percent,
    kept,
    losses,
    overall,
)
from ditkit.recipes.load import load
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED
from ditkit.recipes.run import train

TINY = ["steps=2", "batch=2", "width=16", "depth=1"]


@pytest.fixture(scope="module")
def study() -> TextStudy:
    return TextStudy(ask("sd3-text-encoders", seeds=3))


def test_models_differ_in_what_is_dropped(study):
    first, control = study.arms[:2]
    changed = {d.key for d in diff(first.recipe, control.recipe, {"title"})}
    assert (first.name, control.name) == (EACH, WHOLE) and changed == {"objective.drop", "objective.drop_each"}
    assert (first.recipe.objective.drop_each, first.recipe.objective.drop) == (0.463, 0)
    assert control.recipe.objective.drop == pytest.approx(0.0993, abs=1e-4), "as often as all three at once"
    assert [arm.seed for arm in study.arms] == [0, 0, 1, 1, 2, 2]
    model = first.recipe.model
    assert (model.text_length, model.text_width, model.pooled_width) == (24, 48, 48), "fitted to the encoders"
    assert set(first.parts) == {*SUBSETS, LOSSES}


def made_up(study: TextStudy, told: dict[str, dict[str, list[float | None]]]):
    """The finding of made-up scores: model -> subset -> by seed (the six that are not named as "others")."""

    def part(model: str, subset: str, seed: int):
        value = told[model].get(subset, told[model]["others"])[seed]
        same = dict.fromkeys(TAGS, value)
        return None if value is None else {"overall": value, "scores": same, "shuffled": dict.fromkeys(TAGS, 0.02)}

    worth = {name: dict.fromkeys(TAGS, 0.5) for name in SUBSETS} | {NONE: dict.fromkeys(TAGS, 0.9)}
    scores = {arm.key: {**{s: part(arm.name, s, arm.seed) for s in SUBSETS}, LOSSES: worth} for arm in study.arms}
    return study.find(scores, {})


GOOD = {ALL: [0.5, 0.6, 0.5], NO_T5: [0.45, 0.55, 0.48], "others": [0.3, 0.4, 0.3]}
CONTROL = {ALL: [0.6, 0.6, 0.6], NO_T5: [0.3, 0.3, 0.3], "others": [0.1, 0.1, 0.1]}


def test_the_rule(study):
    found = made_up(study, {EACH: GOOD, WHOLE: CONTROL})
    assert found.verdict == HOLDS
    assert found.ours["kept without T5"] == pytest.approx([0.9, 0.55 / 0.6, 0.96])
    assert found.ours["win rate without T5"] == pytest.approx([0.475, 0.475, 0.49])
    assert (
        found.effect[0] == pytest.approx(((0.5 + 5 * 0.1 / 0.6) / 6) / ((0.9 + 5 * 0.6) / 6)) and max(found.effect) < 1
    )
    assert found.number == "93 % ± 3 of the score kept without T5 (win rate 48 % ± 1)"
    assert "100 %" in found.sections[2].body, "what is left of the worth"
    lost = {**GOOD, NO_T5: [0.2, 0.2, 0.2]}
    assert made_up(study, {EACH: lost, WHOLE: CONTROL}).verdict == FAILS
    assert made_up(study, {EACH: GOOD, WHOLE: {**CONTROL, NO_T5: [0.6] * 3, "others": [0.6] * 3}}).verdict == FAILS
    assert made_up(study, {EACH: {**GOOD, NO_T5: [0.45, 0.55, 0.3]}, WHOLE: CONTROL}).verdict == UNDECIDED


def test_what_follows_nothing_or_diverged_decides_nothing(study):
    weak = {name: [value / 5 for value in values] for name, values in GOOD.items()}
    found = made_up(study, {EACH: weak, WHOLE: CONTROL})
    assert found.verdict == UNDECIDED and "too few prompts" in found.reason
    gone = {**GOOD, ALL: [0.5, None, 0.5], NO_T5: [0.45, None, 0.45], "others": [0.3, None, 0.3]}
    assert made_up(study, {EACH: gone, WHOLE: CONTROL}).verdict == UNDECIDED
    assert made_up(study, {EACH: {s: [0.0] * 3 for s in (*SUBSETS, "others")}, WHOLE: CONTROL}).verdict == UNDECIDED


def test_fewer_than_three_seeds_decide_nothing():
    small = TextStudy(ask("sd3-text-encoders", seeds=2))
    assert made_up(small, {EACH: GOOD, WHOLE: CONTROL}).verdict == UNDECIDED


def test_shares():
    runs = [{ALL: {"overall": 0.5}, NO_T5: {"overall": 0.25}}, {ALL: {"overall": 0.0}, NO_T5: {"overall": 0.0}}]
    assert overall(runs, NO_T5).tolist() == [0.25, 0.0]
    assert kept(runs, NO_T5)[0] == 0.5 and math.isnan(kept(runs, NO_T5)[1])
    assert in_percent(np.array([0.5, 0.7])) == "60 % ± 14" and in_percent(np.array([0.5, math.nan])) == "–"
    assert above_least({"loss": 9.0, "loss_t0.0625": 99.0, "loss_t0.1875": 1.0, "loss_t0.5": 3.0}) == 2.0


def test_only_scenes_can_be_examined():
    with pytest.raises(DataError, match="only 'scenes'"):
        TextStudy(ask("sd3-text-encoders", data="digits"))


def test_a_tiny_run_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("ditkit.recipes.build.VALIDATION_IMAGES", 2)
    monkeypatch.setattr("ditkit.recipes.run.PREVIEW", 1)
    tiny = TextStudy(ask("sd3-text-encoders", TINY, size="smoke", out=tmp_path))
    arm = tiny.arms[0]
    train(arm.recipe, tmp_path / "run", torch.device("cpu"))
    loaded, generator = load(tmp_path / "run"), torch.Generator().manual_seed(0)
    for p in loaded.model.parameters():  # one step leaves the gates of all blocks next to zero: nothing reads the text
        p += 0.1 * torch.randn(p.shape, generator=generator)
    told = losses(loaded, 1, seed=0)
    assert set(told) == {*SUBSETS, NONE} and all(set(by_task) == set(TAGS) for by_task in told.values())
    assert len({by_task["colors"] for by_task in told.values()}) == 8, "each subset is another condition"
    assert told == losses(loaded, 1, seed=0)
    found = tiny.score(arm, tmp_path / "run", NO_T5, lambda *_: None)
    assert 0 <= found["overall"] <= 1 and set(found["scores"]) == set(TAGS)
