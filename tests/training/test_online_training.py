"""Scores while a run trains: when they are due, what they survive, and that training does not feel them."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from ditkit.training import Interrupted, fit, list_steps, read, read_metrics
from ditkit.training.checkpoint import read_tensors

TIMED = {"seconds", "seconds_data", "seconds_model", "seconds_optimizer", "images_per_s", "memory_gib"}


class Judge:
    """An evaluation that draws from torch's global state, as careless as any; it notes what it saw."""

    def __init__(self, fails=None):
        self.seen, self.fails, self.precisions = [], fails or {}, []

    def __call__(self, model, step):
        self.seen.append(step)
        self.precisions.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        torch.randn(7)
        if step in self.fails:
            failure = self.fails.pop(step)
            if isinstance(failure, int):
                os.kill(os.getpid(), failure)
            else:
                raise failure
        assert not model.training and torch.is_grad_enabled(), "what judges may have to be trained"
        return {"pixels_frechet": next(model.parameters()).sum().item()}


def make(toy, folder, judge=None, every=4, **settings):
    return toy.make_job(folder, job={"evaluate": judge, "evaluate_every": every}, **settings)


def scores(folder):
    return {row["step"]: row["eval_pixels_frechet"] for row in read_metrics(folder) if "eval_pixels_frechet" in row}


def test_scores_are_of_the_averaged_weights_at_multiples_and_at_the_end(toy, tmp_path):
    judge = Judge()
    state = fit(make(toy, tmp_path, judge, every=5, save_every=5))
    assert judge.seen == [5, 10, 12] == list(scores(tmp_path))
    assert scores(tmp_path)[12] == next(state.ema.parameters()).sum().item()
    assert scores(tmp_path)[10] == read_tensors(tmp_path, 10, "ema")["enter.weight"].sum().item()
    only_last = Judge()
    fit(make(toy, tmp_path / "last", only_last, every=None))
    assert only_last.seen == [12]


def test_a_checkpoint_is_there_before_a_score_is_computed(toy, tmp_path):
    """A machine that dies while it scores loses nothing that was trained, however rarely the run saves."""
    there = []

    def judge(model, step):
        there.append(list_steps(tmp_path)[-1])
        return {"pixels_frechet": 0.0}

    fit(make(toy, tmp_path, judge, save_every=100))
    assert there == [4, 8, 12]


def test_training_does_not_feel_them(toy, tmp_path):
    torch.manual_seed(5)
    fit(make(toy, tmp_path / "without"))
    plain = torch.rand(3)
    torch.manual_seed(5)
    fit(make(toy, tmp_path / "with", Judge({8: ValueError("images 0..3: NaN")}), every=1, tf32=True))
    assert torch.equal(torch.rand(3), plain), "torch's random state is the same after a run with scores"
    rows = [
        [{k: v for k, v in row.items() if k not in TIMED} for row in read_metrics(tmp_path / name) if "loss" in row]
        for name in ("without", "with")
    ]
    assert rows[0] == rows[1]
    for file in ("model", "ema", "optimizer"):
        a, b = (read_tensors(tmp_path / name, 12, file) for name in ("without", "with"))
        assert all(torch.equal(a[key], b[key]) for key in a) and a.keys() == b.keys()


def test_they_are_computed_with_the_switches_of_a_process_that_does_not_train(toy, tmp_path):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True  # torch's own default
    judge, inside = Judge(), []
    job = make(toy, tmp_path, judge, every=None, tf32=True)
    job.batches = watched(job.batches, inside)
    try:
        fit(job)
        assert set(judge.precisions) == {("highest", True)} and set(inside) == {"high"}
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def watched(batches, inside):
    def opened(start):
        for batch in batches(start):
            inside.append(torch.get_float32_matmul_precision())
            yield batch

    return opened


def test_what_cannot_be_scored_is_told_in_a_line_and_training_goes_on(toy, tmp_path):
    lines = []
    judge = Judge({4: ValueError("images 0..3: the images hold NaN\nand more"), 8: torch.OutOfMemoryError("full")})
    state = fit(make(toy, tmp_path, judge), on_message=lines.append)
    assert state.step == 12 and list(scores(tmp_path)) == [12]
    told = [line for line in lines if "no scores" in line]
    assert told == [
        "step 4: no scores: images 0..3: the images hold NaN; training goes on",
        "step 8: no scores: full; training goes on",
    ]


def test_a_defect_ends_the_run_with_its_state_saved(toy, tmp_path):
    with pytest.raises(TypeError, match="mine"):
        fit(make(toy, tmp_path, Judge({4: TypeError("mine")}), save_every=100))
    assert list_steps(tmp_path) == [4]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_breaks_an_evaluation_off_and_the_next_start_makes_it_whole(toy, tmp_path, number, code):
    judge = Judge({8: int(number)})
    with pytest.raises(Interrupted, match="interrupted at step 8 of 12; the state is saved") as caught:
        fit(make(toy, tmp_path, judge, save_every=100))
    assert caught.value.exit_code == code and list_steps(tmp_path) == [4, 8] and list(scores(tmp_path)) == [4]
    again = Judge()
    fit(make(toy, tmp_path, again, save_every=100))
    assert again.seen == [8, 12], "the one that was broken off, and the last"
    fit(make(toy, tmp_path / "unbroken", Judge(), save_every=100))
    assert scores(tmp_path) == scores(tmp_path / "unbroken")
    a, b = read(tmp_path, weights="ema"), read(tmp_path / "unbroken", weights="ema")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_scores_that_are_there_are_not_made_again(toy, tmp_path):
    fit(make(toy, tmp_path, Judge(), steps=8, save_every=4))
    again = Judge()
    fit(make(toy, tmp_path, again, steps=12, save_every=4))
    assert again.seen == [12]
    late = Judge()
    fit(make(toy, tmp_path, late, steps=12))
    assert late.seen == [], "a finished run with its last scores has nothing to do"
