"""The claim repa-samples: what differs between its runs, what is followed, and its rule."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ditkit.config import diff
from ditkit.recipes.claims import repa_samples
from ditkit.recipes.claims.repa_samples import Progression, judge, moved, shares
from ditkit.recipes.reproduce import carry_out, make_plan
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED
from tests.recipes.claims.tables import made_up, opened, tiny

STEPS = (100, 200, 300, 400, 800)


@pytest.fixture(scope="module")
def study():
    return opened("repa-samples")


@pytest.fixture
def bare(monkeypatch):
    """No drawings, which take longer than all the rest."""
    monkeypatch.setattr(repa_samples, "curves", lambda *_: None)


def test_runs_differ_in_alignment_alone(study):
    sit, repa = study.trials
    assert {d.key.partition(".")[0] for d in diff(sit.recipe, repa.recipe)} == {"align", "teachers"}
    assert [m.checkpoints for m in sit.measures] == [STEPS] and sit.measures == repa.measures
    assert set(STEPS) <= set(range(0, sit.recipe.training.steps + 1, sit.recipe.training.save_every))


def test_change_is_over_the_spread_of_the_last_samples():
    last = torch.tensor([0, 200], dtype=torch.uint8)[:, None, None, None]  # spread: 100
    first = torch.tensor([30, 240], dtype=torch.uint8)[:, None, None, None]
    assert moved([first, last, last]) == pytest.approx([((30**2 + 40**2) / 2) ** 0.5 / 100, 0])


def test_words_say_which_samples_are_recognised():
    images = {1: torch.tensor([3, 7, 7]), 2: torch.tensor([3, 5, 7])}  # "images" are the classes that are seen
    asked = []

    def sample(step, n, seed):
        asked.append((n, seed))
        return images[step][:, None, None, None], torch.tensor([3, 5, 7])

    classifier = SimpleNamespace(probabilities=lambda x: torch.eye(10)[x.flatten().long()])
    budget = SimpleNamespace(images=3, sampler_steps=4)
    bed = SimpleNamespace(load=lambda folder, step: step, sample=sample, classifier=classifier, budget=budget)
    measure = Progression((1, 2))
    found = measure(bed, None, 9)
    assert found["right"] == ["101", "111"] and len(found["moved"]) == 1
    assert asked == [(3, 9)] * 2, "noise of the run's seed at every checkpoint"
    assert measure.cost(bed) == 3 * 4 * 2
    assert shares([found, None], 2)[0].tolist() == [2 / 3, 1]


def answer(sit: float, repa: float, wobble: float = 1.0):
    """Shares of 100 samples that are recognised up to step 400; at the last all are."""

    def of(trial, measure, seed):
        share = (repa if "REPA" in trial else sit) + (wobble * seed if "REPA" in trial else 0)
        word = "1" * round(share) + "0" * (100 - round(share))
        return {"right": [word] * 4 + ["1" * 100], "moved": [0.5, 0.4, 0.3, 0.2]}

    return of


@pytest.mark.parametrize(
    ("made", "verdict"),
    [(answer(50, 60), HOLDS), (answer(60, 50), FAILS), (answer(50, 45, 10), UNDECIDED), (answer(50, 50, 0), UNDECIDED)],
)
def test_the_rule(study, bare, made, verdict):
    found = judge(made_up(study, made))
    assert found.verdict == verdict
    assert [len(rows) for rows in found.ours["recognised"].values()] == [3, 3]


def test_the_last_checkpoint_does_not_decide(study, bare):
    found = judge(made_up(study, answer(50, 60, 0)))
    assert found.effect == pytest.approx([0.8] * 3), "40 misses for 50, without the last checkpoint"


def test_few_seeds_and_lost_runs_decide_nothing(study, bare):
    assert judge(made_up(study, answer(50, 60), seeds=2)).verdict == UNDECIDED
    assert judge(made_up(study, answer(50, 60), lost=[("SiT + REPA", 0)])).verdict == UNDECIDED


def test_a_tiny_study_and_its_picture(tmp_path):
    q = tiny("repa-samples", tmp_path / "out", every=2, images=12)
    result, page = carry_out(make_plan(q), lambda *_, **__: None)
    words = [part["progression@2,4"]["right"] for part in result.scores.values()]
    assert [len(word) for run in words for word in run] == [12] * 4
    assert page.read_text(encoding="utf-8").count("<img") == 2 * 2 * 10, "trials, checkpoints, noises"
    assert result.verdict == UNDECIDED and result.seeds == (0,)
