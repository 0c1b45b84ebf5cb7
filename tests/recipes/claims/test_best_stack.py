"""The best stack against plain SiT by time: its recipe, the rule on made-up scores, and the clock on tiny networks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from ditkit.config import diff
from ditkit.recipes import recipe
from ditkit.recipes.claims.baselines import REPA, SIT
from ditkit.recipes.claims.best_stack import (
    AFTER,
    ALIGNED,
    BARE,
    STACK,
    TEACHER,
    Clock,
    StepSeconds,
    judge,
    stop_of,
    timer,
)
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED, Show
from ditkit.recipes.reproduce.measures import Quality
from tests.recipes.claims.tables import made_up, opened, tiny


@pytest.fixture(scope="module")
def study():
    return opened("best-stack")


def answers(rate: float, ours: float, *, jitter: float = 0.0):
    """Distances that fall as rate / step for the stacks and 100 / step for the others; `ours`: seconds of its step."""

    def answer(trial, measure, seed):
        if isinstance(measure, StepSeconds):
            turns = {SIT: 0.1, ALIGNED: ours, AFTER: 0.9 * ours, TEACHER: 0.05}
            return {name: [v, v, 3 * v] for name, v in turns.items()}
        value = (rate * (1 + jitter * (seed - 1)) if trial in (STACK, BARE) else 100.0) / measure.step
        return {"classifier": value, "random": value, "agreement": 0.5, "validation_loss": 0.1}

    return answer


def test_switches_are_all_that_differs(study):
    recipes = {trial.name: trial.recipe for trial in study.trials}
    keys = {d.key.partition(".")[0] for d in diff(recipes[REPA], recipes[STACK])}
    assert keys == {"model", "objective", "align", "training"}
    changed = {d.key for d in diff(recipes[REPA], recipes[STACK]) if not d.key.startswith("model.")}
    assert {"objective.density.kind", "align.stop_step", "training.betas"} <= changed
    assert all(
        key.startswith(("objective.density", "align.stop", "training.betas", "training.muon")) for key in changed
    )
    assert {d.key.partition(".")[0] for d in diff(recipes[STACK], recipes[BARE])} == {"align", "teachers"}
    for name in ("depth", "width", "heads", "patch", "channels", "size", "num_classes"):
        assert getattr(recipes[STACK].model, name) == getattr(recipes[SIT].model, name), name
    assert recipes[STACK].align.stop_step == study.bed.budget.long // 2


def test_the_demo_s_recipe_has_the_same_switches(study):
    ours, best = next(t.recipe for t in study.trials if t.name == STACK), recipe("digits.best")
    assert (best.objective, best.training.muon, best.training.betas) == (
        ours.objective, ours.training.muon, ours.training.betas,
    )  # fmt: skip
    assert (best.model.kind, best.model.encoder_blocks) == (ours.model.kind, 0) == ("ddt", 0)
    assert best.model.depth == recipe("digits.repa").model.depth


@pytest.mark.parametrize(
    ("rate", "ours", "verdict"),
    [(50.0, 0.12, HOLDS), (50.0, 0.3, FAILS), (100.0, 0.15, FAILS), (200.0, 0.1, FAILS)],
)
def test_the_rule_counts_seconds(study, rate, ours, verdict):
    found = judge(made_up(study, answers(rate, ours)))
    assert found.verdict == verdict
    assert found.effect == pytest.approx([rate / 100] * 3)


def test_seconds_are_steps_before_and_after_the_stop(study):
    found = judge(made_up(study, answers(50.0, 0.2)))  # half of 800 steps, all aligned
    assert found.ours["steps needed"][STACK] == pytest.approx([400.0] * 3)
    assert found.ours["seconds"][STACK] == pytest.approx([400 * 0.2] * 3)
    assert found.ours["seconds"][BARE] == pytest.approx([400 * 0.18] * 3)
    assert found.ours["seconds"][SIT] == pytest.approx([800 * 0.1] * 3)
    assert found.ours["seconds of the teacher"] == pytest.approx([600 * 0.05] * 3)
    clock = Clock(0.1, 0.2, 0.15, 0.05)
    assert clock.stack(500, 400) == pytest.approx(400 * 0.2 + 100 * 0.15)
    plain = study.trials[0].recipe
    assert (stop_of(plain, 800), stop_of(plain.with_({"align": None}), 800)) == (0, 0)


def test_seeds_that_do_not_agree_decide_nothing(study):
    assert judge(made_up(study, answers(80.0, 0.12, jitter=0.9))).verdict == UNDECIDED
    two = made_up(study, answers(50.0, 0.12), seeds=2)
    assert judge(two).verdict == UNDECIDED


def test_a_stack_that_diverges_is_slower(study):
    lost = [(STACK, seed) for seed in range(3)]
    found = judge(made_up(study, answers(50.0, 0.12), lost=lost))
    assert found.verdict == FAILS and "not in every seed" in found.reason
    assert judge(made_up(study, answers(50.0, 0.12), lost=lost[:1])).verdict == UNDECIDED


def test_steps_are_timed_in_turns(tmp_path: Path):
    q = tiny("best-stack", tmp_path / "out")
    bed = q.claim.open(q).bed
    show: Show = lambda *_, **__: None  # noqa: E731
    bed.begin(show)
    measure = StepSeconds(turns=2, steps=1)
    found = measure(bed, tmp_path, 0)
    assert list(found) == [SIT, ALIGNED, AFTER, TEACHER]
    assert all(len(turns) == 2 and min(turns) > 0 for turns in found.values())
    clock = Clock.of(found)
    assert np.isfinite([clock.sit, clock.aligned, clock.after, clock.teacher]).all()
    assert measure.name != timer(bed).name and math.isfinite(measure.cost(bed))
    assert Quality(4) in q.claim.open(q).trials[0].measures
