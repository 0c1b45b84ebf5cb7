"""The claims dit-conditioning and repa-ddpm: what differs between their runs, their rules, one small study."""

from __future__ import annotations

import numpy as np
import pytest

from ditkit.config import diff
from ditkit.diffusion import ImprovedDDPM
from ditkit.recipes.claims.baselines import sit
from ditkit.recipes.claims.dit_conditioning import BLOCKS, PAPER, ordered
from ditkit.recipes.claims.repa_ddpm import ALIGNED, DIT
from ditkit.recipes.reproduce import carry_out, make_plan
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED
from tests.recipes.claims.scored import quality
from tests.recipes.claims.tables import made_up, opened, tiny


@pytest.fixture(scope="module")
def blocks():
    return opened("dit-conditioning")


@pytest.fixture(scope="module")
def ddpm():
    return opened("repa-ddpm")


def test_blocks_differ_in_conditioning_alone(blocks):
    first, *others = blocks.trials
    assert first.recipe == sit(blocks.bed), "shared with all claims"
    assert list(BLOCKS) == [trial.name for trial in blocks.trials] == list(PAPER["Gflops"])
    for trial in others:
        assert {d.key for d in diff(first.recipe, trial.recipe)} == {"model.conditioning", "training.steps"}
        assert {m.step for m in trial.measures} == {m.step for m in first.measures} == {blocks.bed.budget.steps}
        assert trial.recipe.model.conditioning == BLOCKS[trial.name]


def rows(*means):
    """Distances of the four blocks in three seeds that differ by a percent."""
    return {name: mean * np.array([1.0, 1.01, 0.99]) for name, mean in zip(BLOCKS, means, strict=True)}


def test_the_rule_of_an_order():
    assert ordered(rows(1, 2, 3, 4)) == HOLDS
    assert ordered(rows(1, 3, 2, 4)) == FAILS, "the middle two stand the other way round in every seed"
    assert ordered(rows(2, 1, 3, 4)) == FAILS
    reversed_means = rows(1, 2, 2, 4) | {"adaLN": 2 * np.array([1.1, 0.97, 0.97])}
    assert ordered(reversed_means) == UNDECIDED, "the means are the other way round, but not every seed"
    unclear = rows(1, 2, 3, 4) | {"in-context": np.array([0.9, 9.0, 9.0])}
    assert ordered(unclear) == UNDECIDED, "not in every seed"
    assert ordered({name: values[:2] for name, values in rows(1, 2, 3, 4).items()}) == UNDECIDED, "two seeds"


def test_a_block_that_diverged_is_worse(blocks):
    lost = made_up(
        blocks, lambda trial, m, seed: quality(1.0 + list(BLOCKS).index(trial)),
        lost=[("in-context", seed) for seed in range(3)],
    )  # fmt: skip
    found = blocks.judge(lost)
    assert found.verdict == HOLDS and list(found.effect) == [0, 0, 0]


def test_alignment_is_all_that_ddpm_runs_differ_in(ddpm):
    plain, aligned = ddpm.trials
    assert {d.key.split(".")[0] for d in diff(plain.recipe, aligned.recipe)} <= {"align", "teachers"}
    assert aligned.recipe.align is not None and plain.recipe.align is None
    for trial in ddpm.trials:
        assert isinstance(trial.recipe.objective, ImprovedDDPM)
        assert trial.recipe.objective.prediction == "noise" and trial.recipe.objective.path.schedule == "linear"
        assert trial.recipe.model.variance == "learned" and trial.recipe.sampling.solver == "ddim"


@pytest.mark.parametrize(("ratio", "verdict"), [(0.8, HOLDS), (1.25, FAILS)])
def test_the_rule_of_alignment(ddpm, ratio, verdict):
    long = ddpm.bed.budget.long

    def answer(trial, measure, seed):
        aligned = ratio if measure.step == long else 1 / ratio  # the last step decides
        return quality((aligned if trial == ALIGNED else 1.0) * (1 + seed / 10))

    found = ddpm.judge(made_up(ddpm, answer))
    assert found.verdict == verdict and list(found.effect) == pytest.approx([ratio] * 3)
    assert f"at {long} steps" in found.number
    lost = ddpm.judge(made_up(ddpm, answer, lost=[(DIT, 0), (ALIGNED, 0)]))
    assert lost.verdict == UNDECIDED


def test_a_small_study_of_ddpm(tmp_path, monkeypatch):
    monkeypatch.setattr("ditkit.recipes.build.VALIDATION_IMAGES", 4)
    result, page = carry_out(make_plan(tiny("repa-ddpm", tmp_path / "out", sampler_steps=2)), lambda *_, **__: None)
    assert result.verdict == UNDECIDED and page.is_file()
    assert set(result.scores) == {"dit-seed0", "dit-repa-seed0"}
    assert all(value > 0 for value in result.effect)
