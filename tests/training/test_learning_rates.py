"""The learning rate: what each schedule is, in closed form; Muon's beside it; runs that are made longer."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from ditkit.training import TrainSettings, fit, read_metrics
from ditkit.training.optim import learning_rate, set_rate
from ditkit.training.state import State

STEPS, WARMUP = 100, 10


def rates(**settings) -> list[float]:
    chosen = TrainSettings(**{"steps": STEPS, "lr": 2.0, **settings})
    return [learning_rate(chosen, step) for step in range(chosen.steps)]


def constant(step: int) -> float:
    return 2.0


def cosine(step: int) -> float:
    return 0.5 + 1.5 * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - 1 - WARMUP)))


def stable_decay(step: int) -> float:
    return 2.0 if step < 70 else 2.0 - 1.5 * (step - 69) / 30


@pytest.mark.parametrize(
    "schedule, more",
    [(constant, {}), (cosine, {"final_lr": 0.5}), (stable_decay, {"final_lr": 0.5, "decay_steps": 30})],
)
def test_every_schedule_in_closed_form_after_the_warm_up(schedule, more):
    found = rates(schedule=schedule.__name__, warmup=WARMUP, **more)
    assert found[:WARMUP] == pytest.approx([2.0 * (i + 1) / WARMUP for i in range(WARMUP)], abs=1e-12)
    assert found[WARMUP:] == pytest.approx([schedule(i) for i in range(WARMUP, STEPS)], abs=1e-12)
    assert found[-1] == pytest.approx(more.get("final_lr", 2.0), abs=1e-12)


def test_the_descent_is_straight_and_a_fifth_of_the_run_unless_told():
    found = rates(schedule="stable_decay", final_lr=0.0)
    assert found[:80] == [2.0] * 80 and found[79:] == pytest.approx([2.0 * (20 - i) / 20 for i in range(21)], abs=1e-12)
    long = rates(schedule="stable_decay", warmup=90)  # a fifth would begin within the warm-up
    assert long[89] == 2.0 and long[90] == pytest.approx(1.8) and long[-1] == pytest.approx(0, abs=1e-12)
    everything = rates(schedule="stable_decay", decay_steps=STEPS)
    assert everything[0] == pytest.approx(1.98) and everything[-1] == pytest.approx(0, abs=1e-12)
    assert rates(schedule="stable_decay", steps=1) == [0.0]


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"decay_steps": 5}, "decay_steps=5 is of schedule=stable_decay, not of constant"),
        ({"schedule": "stable_decay", "warmup": 60, "decay_steps": 60}, "more than steps=100"),
        ({"schedule": "stable_decay", "warmup": 100}, "leaves no steps"),
    ],
)
def test_what_does_not_fit_is_refused(settings, says):
    with pytest.raises(ValidationError, match=says):
        rates(**settings)


def test_muons_rate_goes_up_and_down_in_proportion(tmp_path, make_job):
    state = State.fresh(make_job(tmp_path, lr=1e-3, muon={"lr": 0.02}))
    set_rate(state.optimizer, 5e-4)
    *adamw, muon = (group["lr"] for group in state.optimizer.param_groups)
    assert set(adamw) == {5e-4} and muon == pytest.approx(0.01)


def test_a_longer_run_goes_on_at_the_full_rate_from_before_the_descent(tmp_path, make_job):
    """The point of stable_decay: what was trained before the descent is the same for every length."""
    settings = dict(schedule="stable_decay", decay_steps=4, lr=1e-2, save_every=8, log_every=1, keep_last=9)
    fit(make_job(tmp_path / "a", steps=12, **settings))
    fit(make_job(tmp_path / "b", steps=20, **settings))
    said: list[str] = []
    fit(make_job(tmp_path / "a", steps=20, **settings), resume=8, on_message=said.append)
    mine, whole = ([(r["step"], r["lr"], r["loss"]) for r in read_metrics(tmp_path / run)] for run in "ab")
    assert mine == whole and "settings changed since: steps 12 -> 20" in said
    assert [rate for _, rate, _ in mine[15:]] == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3, 0], abs=1e-12)
