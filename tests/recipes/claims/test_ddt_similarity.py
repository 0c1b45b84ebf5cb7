"""The claims ddt-similarity and ddt-similarity-repa: what they measure, and their rules."""

from __future__ import annotations

import pytest
import torch

from ditkit.analysis.sharing import draw_templates, state_similarity
from ditkit.analysis.templates import Templates
from ditkit.config import diff
from ditkit.protocols import Condition
from ditkit.recipes.claims import ddt_similarity
from ditkit.recipes.claims.ddt_arms import DDT, DDT_ALONE
from ditkit.recipes.claims.ddt_similarity import Alikeness, between_images, judge_alike, judge_repa
from ditkit.recipes.load import load
from ditkit.recipes.reproduce import carry_out, make_plan
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED
from ditkit.recipes.reproduce.pool import pool_of
from tests.recipes.claims.scored import quality
from tests.recipes.claims.tables import made_up, opened, tiny


@pytest.fixture
def bare(monkeypatch):
    """No drawings, which take longer than all the rest."""
    monkeypatch.setattr(ddt_similarity, "sections_of", lambda *_: [])


@pytest.fixture(scope="module")
def study():
    return opened("ddt-similarity")


def table(study, apart, images=0.5, wobble=0.0, seeds=3, lost=()):
    """apart: trial -> 1 - cosine to the next evaluation; images: 1 - cosine to another image."""

    def answer(trial, measure, seed):
        if not isinstance(measure, Alikeness):
            return quality(1.0)
        near = 1 - apart[trial] * (1 + (wobble * seed if trial == DDT else 0))
        return {"times": [1.0, 0.5, 0.0], "next": [near, near], "lag": [near, 2 * near - 1], "images": 1 - images}

    return made_up(study, answer, seeds=seeds, lost=lost)


def test_runs_differ_in_alignment_alone(study):
    with_repa, alone = (trial.recipe for trial in study.trials)
    assert {d.key.partition(".")[0] for d in diff(with_repa, alone)} == {"align", "teachers"}
    assert with_repa.align is not None and alone.align is None
    other = opened("ddt-similarity-repa")
    assert [arm.file for arm in other.arms] == [arm.file for arm in study.arms]


@pytest.mark.parametrize(
    ("apart", "images", "wobble", "verdict"),
    [
        (0.01, 0.5, 0.0, HOLDS),
        (0.06, 0.9, 0.0, FAILS),  # the cosine is too small
        (0.01, 0.05, 0.0, FAILS),  # near, but so are other images
        (0.045, 0.5, 0.1, UNDECIDED),  # past the mark in the last seed alone
    ],
)
def test_the_rule_of_alikeness(study, bare, apart, images, wobble, verdict):
    found = judge_alike(table(study, {DDT: apart, DDT_ALONE: 0.001}, images, wobble))
    assert found.verdict == verdict


@pytest.mark.parametrize(
    ("apart", "wobble", "verdict"), [(0.01, 0.05, HOLDS), (0.03, 0.05, FAILS), (0.019, 0.2, UNDECIDED)]
)
def test_the_rule_of_repas_part(study, bare, apart, wobble, verdict):
    found = judge_repa(table(study, {DDT: apart, DDT_ALONE: 0.02}, wobble=wobble))
    assert found.verdict == verdict
    assert found.effect[0] == pytest.approx(apart / 0.02)


def test_few_seeds_and_lost_runs_decide_nothing(study, bare):
    apart = {DDT: 0.01, DDT_ALONE: 0.02}
    for judge in (judge_alike, judge_repa):
        assert judge(table(study, apart, wobble=0.01)).verdict == HOLDS
        assert judge(table(study, apart, seeds=2)).verdict == UNDECIDED
        assert judge(table(study, apart, lost=[(DDT, 1)])).verdict == UNDECIDED
    assert "diverged in 1 of 3" in judge_alike(table(study, apart, lost=[(DDT, 1)])).number


def test_a_tiny_study(tmp_path, monkeypatch):
    """Shapes and ranges of what is measured; equal templates are wholly alike."""
    for module_name, value in (("EVALUATIONS", 6), ("TEMPLATES", 4)):
        monkeypatch.setattr(ddt_similarity, module_name, value)
    monkeypatch.setattr(Alikeness.__init__, "__defaults__", (6, 4))
    plan = make_plan(tiny("ddt-similarity", tmp_path / "out"))
    result, page = carry_out(plan, lambda *_, **__: None)
    assert result.verdict == UNDECIDED and page.is_file()
    arm = plan.study.arms[0]
    (row,) = (value for name, value in result.scores[arm.key].items() if name.startswith("alikeness"))
    assert len(row["times"]) == 6 and len(row["next"]) == len(row["lag"]) == 5
    assert all(-1 <= v <= 1 + 1e-6 for v in row["next"]) and -1 <= row["images"] < 1
    assert row["lag"][0] == pytest.approx(sum(row["next"]) / 5, abs=1e-8)

    loaded = load(pool_of(plan.question, plan.study.shelf).run(arm), "ema")
    sampler = loaded.recipe.sampling.model_copy(update={"steps": 6})
    one = draw_templates(loaded.model, 1, seed=3)
    same = Templates(one.noise.expand(3, -1, -1, -1), Condition(label=one.cond.label.expand(3)), seed=3)
    assert between_images(loaded, sampler, same) == pytest.approx(1.0, abs=1e-5)
    other = draw_templates(loaded.model, 3, seed=3)
    assert between_images(loaded, sampler, other) < 0.999
    found = state_similarity(loaded.model, sampler, other, path=loaded.path, prediction=loaded.prediction)
    assert torch.diagonal(found.similarity).tolist() == pytest.approx([1.0] * 6, abs=1e-5)
