"""The claim sd3-qknorm: what differs between its runs, what it measures of a tiny model, and its rule."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ditkit.config import diff
from ditkit.models import build_model
from ditkit.recipes.claims.sd3_qknorm import ARMS, FASTER, FULL, WITH, WITHOUT, AttentionAt, judge
from ditkit.recipes.load import Loaded
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED
from tests.recipes.claims.scored import quality
from tests.recipes.claims.tables import made_up, opened


@pytest.fixture(scope="module")
def study():
    return opened("sd3-qknorm")


def test_runs_differ_in_precision_and_norm(study):
    by = {trial.name: trial.recipe for trial in study.trials}
    assert {d.key for d in diff(by[WITHOUT], by[WITH])} == {"model.qk_norm"}
    assert {d.key for d in diff(by[WITHOUT], by[FULL])} == {"training.precision"}
    assert set(by) == set(ARMS) and by[WITH].model.qk_norm == "rms" and by[WITH].training.precision == "bf16"
    assert all(recipe.training.lr == FASTER * study.bed.budget.lr for recipe in by.values())
    assert study.bed.budget.checkpoints == [100, 200, 300, 400]


def attention_of(study, recipe, monkeypatch, turn):
    """The measure's answer for a model without training; turn: changes it."""
    model = build_model(recipe.model, generator=torch.Generator().manual_seed(0)).eval()
    turn(model)
    loaded = Loaded(model, recipe.objective.path, "velocity", None, None, recipe.model, "", "raw", recipe)
    asked = []
    bed = SimpleNamespace(load=lambda folder, step, weights: (asked.append((step, weights)), loaded)[1])
    found = AttentionAt(7, images=6, times=(0.5,))(bed, None, 0)
    assert asked == [(7, "raw")]
    return found


def test_larger_queries_are_larger_logits_and_less_entropy(study, monkeypatch):
    by = {trial.name: trial.recipe for trial in study.trials}

    def grow(model):
        with torch.no_grad():
            model.blocks[-1].attention.qkv.weight[: 2 * by[WITHOUT].model.width] *= 8

    plain = attention_of(study, by[WITHOUT], monkeypatch, lambda model: None)
    grown = attention_of(study, by[WITHOUT], monkeypatch, grow)
    assert grown["logit"] > 20 * plain["logit"] > 0, "both sides of a logit are 8 times as large"
    assert grown["entropy"] < plain["entropy"] <= 1
    head = by[WITH].model.width // by[WITH].model.heads
    normed = attention_of(study, by[WITH], monkeypatch, grow)
    assert 0 < normed["logit"] <= head**0.5 * 1.001, "normed queries and keys of h numbers each: at most sqrt h"


def table(study, growth, kept, lost=()):
    """growth: last over first logit without the norm; kept: last with the norm over last without it; each by seed."""

    def answer(trial, measure, seed):
        if not isinstance(measure, AttentionAt):
            return quality(4.0)
        part = measure.step / study.bed.budget.steps
        logit = 5.0 * (1 + (growth[seed] - 1) * (part - 0.25) / 0.75)
        return {"logit": logit * (kept[seed] if trial == WITH else 1.0), "entropy": 0.5}

    return made_up(study, answer, lost=lost)


@pytest.mark.parametrize(
    ("growth", "kept", "verdict"),
    [
        ((4.0, 5.0, 6.0), (0.5, 0.4, 0.5), HOLDS),
        ((4.0, 5.0, 6.0), (1.5, 1.4, 1.5), FAILS),
        ((0.4, 0.5, 0.6), (0.5, 0.4, 0.5), FAILS),
        ((4.0, 0.9, 6.0), (0.5, 0.4, 0.5), UNDECIDED),
    ],
)
def test_the_rule(study, growth, kept, verdict):
    found = judge(table(study, growth, kept))
    assert found.verdict == verdict and found.effect == pytest.approx(kept)
    assert found.ours["diverged"] == dict.fromkeys(ARMS, 0)


def test_a_run_that_diverged_has_an_infinite_logit(study):
    found = judge(table(study, (4.0,) * 3, (0.5,) * 3, lost=[(WITHOUT, seed) for seed in range(3)]))
    assert found.ours["diverged"][WITHOUT] == 3 and "Diverged: bf16 3 of 3" in found.reason
    assert found.verdict == HOLDS and found.effect == [0, 0, 0]
    both = [(name, seed) for name in (WITHOUT, WITH) for seed in range(3)]
    assert judge(table(study, (4.0,) * 3, (0.5,) * 3, lost=both)).verdict == UNDECIDED
