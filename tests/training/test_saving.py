"""Checkpoints written beside training: the same bits, one at a time, and nothing that goes wrong is lost."""

from __future__ import annotations

import re
import signal
import threading
import time

import pytest
import torch

from ditkit.training import Interrupted, SaveError, checkpoint, fit, list_steps, saves
from ditkit.training.checkpoint import read_state, read_tensors
from ditkit.training.log import Clock
from ditkit.training.saving import Stage, Whole
from ditkit.training.settings import TrainSettings
from ditkit.training.state import State

RUN = dict(steps=9, save_every=2, keep_last=9, log_every=3, save_async=True)
FILES = ("model", "ema", "align", "align_ema", "optimizer")


@pytest.fixture
def slow(monkeypatch):
    """slow(seconds, fail=...): each checkpoint takes so long; the calls in `fail` end as on a full disk."""
    real, running, told = checkpoint.write, [], {"most": 0, "threads": set(), "calls": 0}

    def make(seconds: float, fail: tuple[int, ...] = ()):
        def write(*args):
            running.append(1)
            told["calls"] += 1
            told["most"] = max(told["most"], len(running))
            told["threads"].add(threading.current_thread().name)
            time.sleep(seconds)
            try:
                if told["calls"] in fail:
                    raise SaveError(f"checkpoint of step {args[1]} could not be written: No space left on device")
                return real(*args)
            finally:
                running.pop()

        monkeypatch.setattr(checkpoint, "write", write)
        return told

    return make


def test_what_is_written_beside_training_is_what_was_there(slow, make_job, same, tmp_path):
    """Training has moved on by several steps when the tensors and the numbers reach the disk."""
    fit(make_job(tmp_path / "waited", **RUN | {"save_async": False}))
    told = slow(0.05)
    fit(make_job(tmp_path / "beside", **RUN))
    assert told["threads"] == {"checkpoint"} and told["most"] == 1, "one at a time, by the thread"
    assert list_steps(tmp_path / "beside") == [2, 4, 6, 8, 9], "the last one is there when fit returns"
    for step in (2, 4, 6, 8, 9):
        for name in FILES:
            same(read_tensors(tmp_path / "beside", step, name), read_tensors(tmp_path / "waited", step, name))
        mine, other = (read_state(tmp_path / name, step) for name in ("beside", "waited"))
        for name in ("meter", "guard", "alarms", "files"):
            assert mine[name] == other[name], name
    log = (tmp_path / "beside" / "log.txt").read_text()
    found = re.findall(r"checkpoint of step (\d+) written in the background, in \d+\.\d s", log)
    assert found == ["2", "4", "6", "8", "9"]


def test_the_loop_goes_on_meanwhile_and_the_clock_has_what_it_waited(slow, make_job, monkeypatch, tmp_path):
    slow(0.4)
    clocks, seen, real = [], {}, Clock.__init__
    monkeypatch.setattr(Clock, "__init__", lambda self, device: (real(self, device), clocks.append(self))[0])

    def on_step(step, values):
        seen[step] = list_steps(tmp_path)

    fit(make_job(tmp_path, **RUN | dict(steps=8, save_every=4, log_every=99)), on_step=on_step)
    assert seen[5] == [], "step 5 was done while step 4 was written"
    waited = clocks[-1].laps["checkpoint"]
    assert 0.4 <= waited < 2, "for the first one what was left of it, for the last one all of it"


def test_an_error_surfaces_at_the_next_step(slow, make_job, tmp_path):
    slow(0.0, fail=(2,))
    done = []

    def on_step(step, values):
        done.append(step)
        time.sleep(0.05)

    with pytest.raises(SaveError, match="checkpoint of step 4 could not be written: No space left"):
        fit(make_job(tmp_path, **RUN), on_step=on_step)
    assert done[-1] == 5 and list_steps(tmp_path) == [2]


def test_an_error_may_be_told_and_the_next_one_tried(slow, make_job, tmp_path):
    slow(0.0, fail=(1, 3))
    said = []
    state = fit(make_job(tmp_path, **RUN, on_save_error="continue"), on_message=said.append)
    assert list_steps(tmp_path) == [4, 8, 9] and state.saved == 9
    told = [text for text in said if "training goes on" in text]
    assert len(told) == 2 and "step 2" in told[0] and "step 6" in told[1]


@pytest.mark.parametrize("background", [False, True])
def test_the_last_one_must_be_written(background, slow, make_job, tmp_path):
    """Whatever on_save_error says."""
    slow(0.0, fail=(5, 6))
    with pytest.raises(SaveError, match="step 9"):
        fit(make_job(tmp_path, **RUN | {"save_async": background}, on_save_error="continue"))
    assert list_steps(tmp_path) == [2, 4, 6, 8]


def test_a_step_whose_writing_failed_is_written_again_where_it_is_the_last(slow, make_job, monkeypatch, tmp_path):
    """Asked to stop at the step that is being written: that write fails, another one is made."""
    told = slow(0.1, fail=(1,))
    real = saves.Saves.poll

    def stop(step, values):
        if step == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(saves.Saves, "poll", lambda self: (self() if self.state.step == 2 else None, real(self))[1])
    with pytest.raises(Interrupted) as caught:
        fit(make_job(tmp_path, **RUN), on_step=stop)
    assert caught.value.exit_code == 143 and list_steps(tmp_path) == [2] and told["calls"] == 2


def test_a_write_under_way_is_finished_when_something_else_ends_the_run(slow, make_job, tmp_path):
    """An error of the listener: nothing rescues the state, but what was begun is not thrown away."""
    slow(0.2)

    def fail(step, values):
        if step == 3:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(make_job(tmp_path, **RUN), on_step=fail)
    assert list_steps(tmp_path) == [2]


def test_an_error_of_the_data_is_told_not_that_of_saving_it(slow, make_job, tmp_path):
    slow(0.0, fail=(1, 2, 3))
    job, said = make_job(tmp_path, **RUN | dict(save_every=99)), []

    def encode(images, noise, real=job.encode):
        if noise.step == 3:
            raise OSError("the images are gone")
        return real(images, noise)

    job.encode = encode
    with pytest.raises(OSError, match="the images are gone"):
        fit(job, on_message=said.append)
    assert any("checkpoint of step 3 could not be written" in text for text in said)


def test_saved_names_the_checkpoint_that_is_on_the_disk(slow, make_job, tmp_path):
    slow(0.0)
    state = State.fresh(make_job(tmp_path))
    writer, state.step = Whole(TrainSettings(save_async=True)), 3
    writer.save(state)
    assert writer.pending == 3 and state.saved is None
    done = writer.wait()
    assert (done.step, done.background, writer.pending, writer.poll()) == (3, True, None, None)


def test_the_copy_is_its_own_and_its_memory_is_used_again():
    stage, model = Stage(), {"model": {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.tensor(1)}}
    first, ready = stage.copy(model)
    assert ready is None and torch.equal(first["model"]["a"], model["model"]["a"])
    where = {name: tensor.data_ptr() for name, tensor in first["model"].items()}
    model["model"]["a"].add_(1)
    assert not torch.equal(first["model"]["a"], model["model"]["a"])
    again, _ = stage.copy(model)
    assert {name: tensor.data_ptr() for name, tensor in again["model"].items()} == where
    assert torch.equal(again["model"]["a"], model["model"]["a"])
    other, _ = stage.copy({"model": {"a": torch.zeros(2)}})
    assert other["model"].keys() == {"a"} and other["model"]["a"].shape == (2,)


@pytest.mark.gpu
def test_on_a_gpu_the_copy_is_pinned_and_nobody_waits(make_job, same, tmp_path):
    device = torch.device("cuda")
    tensors = {"model": {"a": torch.zeros(2**26, device=device)}}
    stage = Stage()
    stage.copy(tensors)  # takes the memory
    torch.cuda.synchronize()
    tensors["model"]["a"].fill_(1)
    copies, ready = stage.copy(tensors)
    tensors["model"]["a"].fill_(2)  # behind the copy
    assert copies["model"]["a"].is_pinned() and not ready.query(), "still under way"
    ready.synchronize()
    assert bool((copies["model"]["a"] == 1).all())


@pytest.mark.parametrize("background", [False, True])
def test_memory_that_is_short_for_the_copy_is_an_error_of_saving(background, make_job, monkeypatch, tmp_path):
    """Pinned memory, host memory: told like a full disk, and the next one is tried."""
    real, calls, said = (Stage.copy if background else State.files), [], []

    def short(self, *given):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("CUDA error: out of memory\nmore lines")
        return real(self, *given)

    monkeypatch.setattr(*((Stage, "copy") if background else (State, "files")), short)
    settings = RUN | {"save_async": background, "on_save_error": "continue"}
    fit(make_job(tmp_path / "on", **settings), on_message=said.append)
    assert list_steps(tmp_path / "on") == [4, 6, 8, 9]
    [told] = [text for text in said if "training goes on" in text]
    assert "checkpoint of step 2 could not be copied to main memory: CUDA error: out of memory;" in told
    calls.clear()
    with pytest.raises(SaveError, match="could not be copied to main memory"):
        fit(make_job(tmp_path / "stop", **RUN | {"save_async": background}))


def test_old_ones_that_cannot_be_removed_are_a_warning(make_job, monkeypatch, tmp_path):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    said = []
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "prune", lambda *given: refuse(given))
        fit(make_job(tmp_path, **RUN | {"keep_last": 1}), on_message=said.append)
    assert list_steps(tmp_path) == [2, 4, 6, 8, 9], "training went on"
    told = [text for text in said if "could not be removed" in text]
    assert len(told) == 5 and told[0].startswith("warning: ") and told[0].endswith("Permission denied")


def test_an_error_that_a_broken_device_gives_in_saving_does_not_hide_the_first(make_job, monkeypatch, tmp_path):
    job, said = make_job(tmp_path, **RUN | dict(save_every=99)), []

    def encode(images, noise, real=job.encode):
        if noise.step == 3:
            raise OSError("the images are gone")
        return real(images, noise)

    def broken(self):
        raise RuntimeError("CUDA error: device-side assert triggered\nmore lines")

    job.encode = encode
    monkeypatch.setattr(State, "finite", broken)
    with pytest.raises(OSError, match="the images are gone"):
        fit(job, on_message=said.append)
    assert any("step 3 could not be saved: CUDA error: device-side assert triggered" in text for text in said)
