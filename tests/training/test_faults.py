"""NaN in loss or gradients: skip, roll back, stop. Damaged run folders: one line each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time

import pytest
import torch

from ditkit.config import SettingsError
from ditkit.diffusion import Flow
from ditkit.recipes.registry import from_file
from ditkit.training import CheckpointError, Interrupted, NonFinite, Unwritable, fit, list_steps, loop, read_metrics
from ditkit.training.checkpoint import path_of, read_state, read_tensors
from ditkit.training.readings import Readings
from ditkit.training.state import ATTEMPT, State

RUN = dict(steps=12, save_every=5, log_every=2, keep_last=9, max_nonfinite=3)
TIMED = {"seconds", "seconds_data", "seconds_model", "seconds_optimizer", "images_per_s", "memory_gib"}


@pytest.fixture(params=[False, True], ids=["at once", "one step late"])
def late(request, monkeypatch):
    """Numbers of a step arrive at once, as on a CPU, or while the next one runs, as on an accelerator."""
    if request.param:
        real = Readings.__init__

        def begin(self, device):
            real(self, device)
            self.late = True

        monkeypatch.setattr(Readings, "__init__", begin)
    return request.param


def poisoned(bad, where: str = "loss", objective: Flow | None = None):
    """An objective whose loss or gradient is not finite where bad(step, attempt) says so (0-based step)."""
    objective = objective or Flow(drop=0.2)

    def call(model, x, cond, noise, auxiliary=()):
        loss = objective(model, x, cond, noise, auxiliary)
        if bad(noise.step, noise.seed // ATTEMPT):
            if where == "loss":
                return loss._replace(total=loss.total * float("nan"))
            loss.total.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    return dict(objective=call)


@pytest.fixture
def returns(monkeypatch):
    """The states right after each return to a checkpoint: (step, attempt, tensors, numbers)."""
    real, found = loop.roll_back, []

    def watched(saves, failure):
        real(saves, failure)
        state = saves.state
        copies = {file: {k: t.clone() for k, t in tensors.items()} for file, tensors in state.files().items()}
        found.append((state.step, state.attempt, copies, state.numbers()))

    monkeypatch.setattr(loop, "roll_back", watched)
    return found


def untimed(folder) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in TIMED} for row in read_metrics(folder)]


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("background", [False, True], ids=["saved by the loop", "saved beside it"])
def test_bad_steps_roll_the_run_back_to_the_last_good_state(where, background, late, returns, make_job, same, tmp_path):
    """Steps 7 to 9 fail: the state is that of step 5 to the bit, the same data follow, their draws are others."""
    seen, said = [], []
    job = make_job(tmp_path / "run", **RUN, save_async=background)
    job.objective = poisoned(lambda step, attempt: step in (6, 7, 8) and attempt == 0, where)["objective"]
    real = job.batches
    job.batches = lambda start: (seen.append(start + i) or batch for i, batch in enumerate(real(start)))
    state = fit(job, on_message=said.append)
    [(step, attempt, tensors, numbers)] = returns
    assert (step, attempt, state.step, state.attempt) == (5, 1, 12, 1)
    stored = {name: read_tensors(tmp_path / "run", 5, name) for name in tensors}
    same(tensors, stored)
    assert numbers["meter"] == read_state(tmp_path / "run", 5)["meter"]
    fetched = 10 if late else 9
    assert seen == [*range(fetched), *range(5, 12)], "the data go on at the step of the checkpoint, in their order"
    assert any("Rolled back to the checkpoint of step 5 (1 of 2)" in line for line in said)
    rows = read_metrics(tmp_path / "run")
    assert [r["step"] for r in rows] == [2, 4, 6, 8, 10, 12] and [r["rollbacks"] for r in rows] == [0, 0, 1, 1, 1, 1]
    assert rows[-1]["skipped"] == 0, "steps that were undone are not counted"

    by_hand = tmp_path / "by hand"  # the checkpoint of step 5 with the other draws
    fit(make_job(by_hand, **RUN | {"steps": 5}))
    numbers = by_hand / "checkpoints" / "0000005" / "state.json"
    numbers.write_text(numbers.read_text().replace('"attempt": 0', '"attempt": 1'))
    same(fit(make_job(by_hand, **RUN)).model.state_dict(), state.model.state_dict())
    assert not torch.equal(state.model.leave.bias, fit(make_job(tmp_path / "never", **RUN)).model.leave.bias)


def test_a_skipped_step_touches_nothing_also_when_it_is_seen_late(late, make_job, same, tmp_path):
    """Steps 5 and 6 fail: what is saved after step 6 is what was saved after step 4, but for the counters."""
    settings = RUN | dict(save_every=2, max_nonfinite=9)
    state = fit(make_job(tmp_path, **settings, job=poisoned(lambda step, attempt: step in (4, 5))))
    for name in ("model", "ema", "align", "align_ema", "optimizer"):
        same(read_tensors(tmp_path, 4, name), read_tensors(tmp_path, 6, name))
    assert not torch.equal(
        read_tensors(tmp_path, 6, "model")["leave.bias"], read_tensors(tmp_path, 8, "model")["leave.bias"]
    )
    assert state.guard.skipped == 2 and read_state(tmp_path, 6)["guard"]["in_row"] == 2


def test_a_checkpoint_amid_skipped_steps_is_not_gone_back_to(make_job, returns, tmp_path):
    """Step 9 was saved after two skipped ones: the run goes back to step 6, and step 9 is set aside."""
    settings = RUN | dict(save_every=3, max_nonfinite=4)
    fit(make_job(tmp_path, **settings, job=poisoned(lambda step, attempt: 6 < step < 13 and attempt == 0)))
    assert [step for step, *_ in returns] == [6] and list_steps(tmp_path) == [3, 6, 9, 12]
    assert (tmp_path / "checkpoints" / "dropped-0000009").is_dir()


def test_after_the_last_try_it_stops_and_says_what_was_tried(late, make_job, returns, tmp_path):
    """And the next start of the same command has all tries again."""
    bad, folder = poisoned(lambda step, attempt: step >= 6), tmp_path / "run"
    with pytest.raises(
        NonFinite, match=r"step 9: .* 3 steps in a row.*tried: .*rolled back 2 times to step 5 with other draws"
    ):
        fit(make_job(folder, **RUN, job=bad))
    assert [(step, attempt) for step, attempt, *_ in returns] == [(5, 1), (5, 2)]
    end = 10 if late else 9
    assert list_steps(folder) == [5, end]
    left = {"skipped": 3 + late, "in_row": 0, "rollbacks": 0, "trouble": 0}
    assert read_state(folder, end)["guard"] == left
    shutil.copytree(folder, mended := tmp_path / "mended")
    with pytest.raises(NonFinite, match="3 steps in a row"):
        fit(make_job(folder, **RUN | {"steps": 20}, job=bad))
    assert len(returns) == 4, "tried twice more"
    assert fit(make_job(mended, **RUN)).step == 12


def test_tries_count_anew_beyond_a_later_checkpoint(make_job, returns, tmp_path):
    """One return is allowed at each place: every trouble but the first lies behind a checkpoint that is beyond it."""
    places = {0: (6, 7, 8), 1: (13, 14, 15), 2: (21, 22, 23)}
    bad = poisoned(lambda step, attempt: step in places.get(attempt, ()))
    state = fit(make_job(tmp_path, **RUN | dict(steps=26, max_rollbacks=1), job=bad))
    assert [step for step, *_ in returns] == [5, 10, 20] and state.attempt == 3 and state.step == 26


@pytest.mark.parametrize("most", [0, 2])
def test_without_a_checkpoint_or_a_try_it_stops(most, make_job, tmp_path):
    with pytest.raises(NonFinite, match="3 steps in a row") as caught:
        fit(make_job(tmp_path, **RUN | dict(max_rollbacks=most), job=poisoned(lambda step, attempt: step > 1)))
    assert ("no good checkpoint to go back to" in str(caught.value)) == (most > 0)
    assert list_steps(tmp_path) == [5]


def test_a_stop_and_a_kill_after_a_rollback_change_no_bit(make_job, same, tmp_path):
    """Stopped behind it, the attempt is in the checkpoint; killed before the next one, the rollback is made again."""
    bad = poisoned(lambda step, attempt: step in (6, 7, 8) and attempt == 0)
    whole = fit(make_job(tmp_path / "whole", **RUN, job=bad))
    passed = []

    def stop(step, values):
        passed.append(step)
        if passed.count(7) == 2 and step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        fit(make_job(tmp_path / "stopped", **RUN, job=bad), on_step=stop)
    assert list_steps(tmp_path / "stopped") == [5, 7]
    shutil.copytree(tmp_path / "stopped", tmp_path / "killed")
    shutil.rmtree(path_of(tmp_path / "killed", 7))
    for name in ("stopped", "killed"):
        state = fit(make_job(tmp_path / name, **RUN, job=bad))
        same(state.model.state_dict(), whole.model.state_dict())
        assert untimed(tmp_path / name) == untimed(tmp_path / "whole")


def test_weights_that_are_not_finite_are_rolled_back(make_job, returns, tmp_path):
    job, hurt = make_job(tmp_path, **RUN), []

    def once(step, values):
        if step == 7 and not hurt:
            hurt.append(job.model.leave.bias.data.fill_(float("inf")))

    state = fit(job, on_step=once)
    assert [step for step, *_ in returns] == [5] and state.finite() and list_steps(tmp_path) == [5, 10, 12]


# ------------------------------------------------------------------------------------------ damaged folders


def one_line(error) -> str:
    text = str(error.value)
    assert text and "\n" not in text
    return text


@pytest.mark.parametrize("content", ["", "[]", '{"format": 1}', '{"format": 1, "step"', "\x00\x00\x00"])
def test_a_state_that_says_nothing_is_skipped(content, make_job, tmp_path):
    fit(make_job(tmp_path, **RUN))
    (path_of(tmp_path, 12) / "state.json").write_text(content)
    said = []
    assert fit(make_job(tmp_path, **RUN), on_message=said.append).step == 12
    assert "checkpoint of step 12 is damaged and skipped" in said[0] and "state.json" in said[0] and "\n" not in said[0]
    assert "resumed at step 10" in said[1]


def test_a_checkpoint_that_cannot_be_read_is_skipped(make_job, tmp_path):
    """Not only damaged: a folder in a file's place, a link to nowhere."""
    fit(make_job(tmp_path, **RUN))
    for step in (10, 12):
        (path_of(tmp_path, step) / "state.json").unlink()
    (path_of(tmp_path, 12) / "state.json").mkdir()
    (path_of(tmp_path, 10) / "state.json").symlink_to(tmp_path / "nowhere")
    said = []
    fit(make_job(tmp_path, **RUN), on_message=said.append)
    assert "Is a directory" in said[0] and "No such file" in said[1] and "resumed at step 5" in said[2]


def test_checkpoints_that_cannot_be_listed_are_an_error_before_training(make_job, monkeypatch, tmp_path):
    fit(make_job(tmp_path, **RUN))
    shutil.move(tmp_path / "checkpoints", tmp_path / "kept")
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises((CheckpointError, Unwritable)) as error:
        fit(make_job(tmp_path, **RUN))
    assert "checkpoints: Not a directory" in one_line(error)


@pytest.mark.parametrize("content", ["", '{"name": "mine", "tr', "[]"])
def test_a_recipe_that_is_cut_is_one_line(content, tmp_path):
    """What `ditkit train RUN` reads first."""
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(SettingsError) as error:
        from_file(tmp_path / "recipe.json")
    assert str(tmp_path / "recipe.json") in one_line(error)


def test_rows_that_cannot_be_read_are_dropped(make_job, tmp_path):
    fit(make_job(tmp_path, **RUN))
    rows = read_metrics(tmp_path)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"\x00\x00\xff\n[1]\n" + json.dumps({"step": 13}).encode())
    assert read_metrics(tmp_path) == rows
    fit(make_job(tmp_path, **RUN | {"steps": 14}))
    assert [r["step"] for r in read_metrics(tmp_path)] == [2, 4, 6, 8, 10, 12, 14]


def test_numbers_of_before_rollbacks_are_read(make_job, same, tmp_path):
    """A checkpoint of an earlier version has no alarms and no rollbacks."""
    fit(make_job(tmp_path, **RUN | {"steps": 5}))
    path = path_of(tmp_path, 5) / "state.json"
    old = json.loads(path.read_text())
    del old["guard"], old["alarms"], old["attempt"]
    path.write_text(json.dumps(old | {"skipped": 2, "skipped_in_row": 1}))
    state = State.fresh(make_job(tmp_path))
    state.restore(5, read_state(tmp_path, 5))
    assert (state.guard.skipped, state.guard.in_row, state.attempt, state.alarms.spikes.steps) == (2, 1, 0, 0)


def test_what_a_rollback_takes_is_no_time_of_a_step(make_job, tmp_path):
    """Restoring, and opening the data again."""
    job = make_job(tmp_path, **RUN | {"log_every": 99}, job=poisoned(lambda s, attempt: s in (6, 7, 8) and not attempt))
    batches = job.batches
    job.batches = lambda start: (time.sleep(0.3 if start else 0), batches(start))[1]
    fit(job)
    assert read_metrics(tmp_path)[-1]["seconds_data"] * 16 < 0.25


def test_what_is_first_heard_where_scores_are_due_rolls_back_too(make_job, monkeypatch, returns, tmp_path):
    """Numbers come a step late: the third bad one is read by the checkpoint before the scores of step 9."""
    real = Readings.__init__
    monkeypatch.setattr(Readings, "__init__", lambda self, device: (real(self, device), setattr(self, "late", True))[0])
    job = make_job(tmp_path, **RUN | {"log_every": 99}, job=poisoned(lambda s, attempt: s in (6, 7, 8) and not attempt))
    job.evaluate, job.evaluate_every = (lambda model, step: {"score": 1.0}), 9
    fit(job)
    assert [step for step, *_ in returns] == [5] and list_steps(tmp_path) == [5, 9, 10, 12]
    assert not read_state(tmp_path, 9)["guard"]["skipped"]
