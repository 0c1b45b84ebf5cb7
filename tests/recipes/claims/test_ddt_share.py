"""The claim ddt-share: its splits, and its rule."""

from __future__ import annotations

import pytest

from ditkit.config import diff
from ditkit.evaluation.sections import text
from ditkit.recipes.claims import ddt_share
from ditkit.recipes.claims.ddt_share import SIZES, depth_of, judge, named, splits
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED
from tests.recipes.claims.scored import quality
from tests.recipes.claims.tables import made_up, opened


@pytest.fixture
def bare(monkeypatch):
    """No drawings, which take longer than all the rest."""
    monkeypatch.setattr(ddt_share, "shares", lambda *_, **__: text("", ""))


@pytest.fixture(scope="module")
def study():
    return opened("ddt-share")


def table(study, largest, wobble=0.0, lost=()):
    """largest: size -> distance with the largest encoder over that of half and half, which is 2."""
    last = {named(size, depth_of(study.bed, size), splits(depth_of(study.bed, size))[-1]): size for size in SIZES}

    def answer(trial, measure, seed):
        more = 1 + wobble * seed if trial.startswith("medium") else 1
        return quality(2.0 * largest[last[trial]] * more if trial in last else 2.0)

    return made_up(study, answer, lost=lost)


def test_splits_are_the_papers_at_its_depths():
    assert splits(12) == [6, 10] and splits(24) == [12, 20]
    assert splits(4) == [2, 3] and splits(6) == [3, 5] and splits(2) == [1]


def test_within_a_size_only_the_split_differs(study):
    assert len(study.trials) == 4
    for size in SIZES:
        recipes = [trial.recipe for trial in study.trials if trial.name.startswith(size)]
        for recipe in recipes[1:]:
            keys = {d.key for d in diff(recipes[0], recipe)}
            assert {"model.encoder_blocks", "model.decoder_blocks"} <= keys
            assert keys <= {"model.encoder_blocks", "model.decoder_blocks", "align.depth"}
            assert recipe.align.depth <= recipe.model.encoder_blocks


def test_the_run_of_convergence_is_shared(study):
    names = {arm.file for arm in opened("ddt-convergence").arms if arm.name == "DDT"}
    assert len(names) == 3 and names <= {arm.file for arm in study.arms}


@pytest.mark.parametrize(
    ("large", "wobble", "verdict"), [(0.9, 0.01, HOLDS), (1.2, 0.01, FAILS), (1.0, 0.1, UNDECIDED)]
)
def test_the_rule(study, bare, large, wobble, verdict):
    found = judge(table(study, {"small": 1.05, "medium": large}, wobble))
    assert found.verdict == verdict
    assert found.effect[0] == pytest.approx(large / 1.05) and "small +5 %" in found.number


def test_the_best_split_is_named(study):
    found = judge(table(study, {"small": 1.2, "medium": 0.8}))
    assert found.ours["best split"]["medium"] == "3/1" and found.ours["best split"]["small"] != "3/1"
    assert found.ours["largest encoder over half"]["small"] == pytest.approx([1.2] * 3)


def test_lost_runs_decide_against_their_side(study, bare):
    depth = depth_of(study.bed, "medium")
    worst = named("medium", depth, splits(depth)[-1])
    sizes = {"small": 1.05, "medium": 0.9}
    assert judge(table(study, sizes, lost=[(worst, seed) for seed in range(3)])).verdict == FAILS
    assert judge(table(study, sizes, lost=[(worst, 1)])).verdict == UNDECIDED
