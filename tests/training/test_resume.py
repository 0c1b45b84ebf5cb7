"""2N steps == N + kill + N, to the bit; interrupts; damaged checkpoints; the metrics file."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ditkit.training import CheckpointError, Interrupted, NonFinite, fit, list_steps, read, read_metrics
from ditkit.training.checkpoint import latest, path_of, read_tensors

TOY = Path(__file__).parent / "toy.py"
ROOT = Path(__file__).parents[2]
SETTINGS = dict(steps=12, save_every=3, log_every=4, keep_last=9, validate_every=6, validate_on="both", validate=True)
FILES = ("model", "ema", "align", "align_ema", "optimizer")
TIMED = {"seconds", "seconds_data", "seconds_model", "seconds_optimizer", "images_per_s", "memory_gib"}


def run(folder: Path, **request) -> int:
    """Train in another process; returns its exit code (-9 if it was killed)."""
    words = [sys.executable, str(TOY), str(folder), json.dumps({"settings": SETTINGS, **request})]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(words, env={**os.environ, "PYTHONPATH": path}, capture_output=True, timeout=120).returncode


KILLS = {
    "between checkpoints": dict(at=8, signal=int(signal.SIGKILL)),
    "while tensors are written": dict(name="sync", call=9),  # the third file of the second checkpoint
    "before the rename": dict(name="write_text", call=2),
    "Ctrl-C": dict(at=7, signal=int(signal.SIGINT)),
    "SIGTERM": dict(at=7, signal=int(signal.SIGTERM)),
}
CODES = {"Ctrl-C": 130, "SIGTERM": 143}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """One process each, two at a time: name of the kill -> (folder, exit code). `unbroken` ran to the end."""
    home = tmp_path_factory.mktemp("resume")
    folders = {name: home / str(i) for i, name in enumerate(KILLS)}
    with ThreadPoolExecutor(2) as pool:
        codes = list(pool.map(lambda name: run(folders[name], **KILLS[name]), KILLS))
    return {name: (folders[name], code) for name, code in zip(KILLS, codes, strict=True)}


@pytest.fixture(scope="module")
def unbroken(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    fit(toy.make_job(folder, **SETTINGS))
    return folder


@pytest.mark.parametrize("how", KILLS)
def test_a_killed_run_continues_to_the_same_bits(how, stopped, unbroken, make_job, same):
    folder, code = stopped[how]
    assert code == CODES.get(how, -signal.SIGKILL)
    reached = list_steps(folder)
    assert reached == ([3, 6, 7] if how in CODES else [3, 6] if how == "between checkpoints" else [3])
    said = []
    state = fit(make_job(folder, **SETTINGS), on_message=said.append)
    assert state.step == 12 and f"resumed at step {reached[-1]}" in said[0]
    for step in (9, 12):
        for name in FILES:
            same(read_tensors(folder, step, name), read_tensors(unbroken, step, name))
    assert not [p for p in (folder / "checkpoints").iterdir() if not p.name.isdecimal()], "drafts were left behind"


@pytest.mark.parametrize("how", ["between checkpoints", "Ctrl-C"])
def test_the_curve_of_a_resumed_run_is_exact(how, stopped, unbroken, toy, tmp_path):
    folder = shutil.copytree(stopped[how][0], tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "loss"')  # a line cut off by the kill
    fit(toy.make_job(folder, **SETTINGS))
    rows, expected = read_metrics(folder), read_metrics(unbroken)
    assert [r["step"] for r in rows] == [4, 6, 8, 12]
    for row, want in zip(rows, expected, strict=True):
        assert {k: v for k, v in row.items() if k not in TIMED} == {k: v for k, v in want.items() if k not in TIMED}


def test_rows_after_the_resumed_step_are_dropped(make_job, tmp_path):
    fit(make_job(tmp_path, log_every=1, save_every=5, keep_last=9))
    fit(make_job(tmp_path, log_every=1, save_every=5, keep_last=9), resume=5)
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 13))
    assert list_steps(tmp_path) == [5, 10, 12]
    assert sorted(p.name for p in (tmp_path / "checkpoints").glob("dropped*")) == ["dropped-0000010", "dropped-0000012"]


def test_ctrl_c_saves_and_the_handlers_are_put_back(make_job, tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="interrupted at step 4 of 12; the state is saved") as caught:
        fit(make_job(tmp_path), on_step=lambda step, values: os.kill(os.getpid(), signal.SIGINT) if step == 4 else None)
    assert caught.value.exit_code == 130 and list_steps(tmp_path) == [4]
    assert isinstance(caught.value, KeyboardInterrupt)
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_a_second_ctrl_c_acts_at_once(make_job, tmp_path):
    def twice(step, values):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("still running")

    with pytest.raises(Interrupted, match="at once"):
        fit(make_job(tmp_path), on_step=twice)
    assert list_steps(tmp_path) == []


@pytest.mark.parametrize("harm", ["cut", "flip", "gone", "json", "format"])
def test_a_damaged_newest_checkpoint_is_named_and_skipped(harm, make_job, tmp_path, same):
    fit(make_job(tmp_path, keep_last=9))
    whole = shutil.copytree(tmp_path, tmp_path / "whole")
    hurt(path_of(tmp_path, 12), harm)
    said = []
    state = fit(make_job(tmp_path, keep_last=9), on_message=said.append)
    assert "checkpoint of step 12 is damaged and skipped" in said[0] and "0000012" in said[0]
    assert "resumed at step 10" in said[1] and state.step == 12
    for name in FILES:
        same(read_tensors(tmp_path, 12, name), read_tensors(whole, 12, name))


def hurt(folder: Path, harm: str) -> None:
    weights, state = folder / "ema.safetensors", folder / "state.json"
    content = bytearray(weights.read_bytes())
    if harm == "cut":
        weights.write_bytes(content[:-7])
    elif harm == "flip":
        content[-3] ^= 1
        weights.write_bytes(content)
    elif harm == "gone":
        weights.unlink()
    elif harm == "json":
        state.write_text(state.read_text()[:40])
    else:
        state.write_text(json.dumps({**json.loads(state.read_text()), "format": 99}))


def test_no_whole_checkpoint_is_an_error_not_a_new_start(make_job, tmp_path):
    fit(make_job(tmp_path, keep_last=9))
    for step in list_steps(tmp_path):
        (path_of(tmp_path, step) / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the 3 checkpoints is whole"):
        fit(make_job(tmp_path))


def test_latest_is_by_number_not_by_date_or_name(make_job, tmp_path):
    fit(make_job(tmp_path, keep_last=9))
    shutil.copytree(path_of(tmp_path, 5), tmp_path / "checkpoints" / "12-copy")
    os.utime(path_of(tmp_path, 5))
    assert list_steps(tmp_path) == [5, 10, 12] and latest(tmp_path)[0] == 12
    for step in (9_999_999, 10_000_000):
        path_of(tmp_path, step).mkdir()
    assert list_steps(tmp_path)[-2:] == [9_999_999, 10_000_000]


def test_what_must_not_change_refuses_to_resume(make_job, tmp_path):
    fit(make_job(tmp_path, job=dict(identity={"data": "abc", "size": (4, 4)})))
    same_job = dict(identity={"data": "abc", "size": (4, 4)})
    with pytest.raises(ValueError, match="cannot be resumed: batch was 6, is 3"):
        fit(make_job(tmp_path, steps=14, batch=3, job=same_job))
    with pytest.raises(ValueError, match="cannot be resumed: data was abc, is xyz"):
        fit(make_job(tmp_path, steps=14, job=dict(identity={"data": "xyz", "size": (4, 4)})))
    said = []
    fit(make_job(tmp_path, steps=14, lr=1e-3, job=same_job), on_message=said.append)
    assert said[0] == "settings changed since: lr 0.01 -> 0.001, steps 12 -> 14"


def test_another_model_is_told_by_its_keys(make_job, toy, tmp_path):
    fit(make_job(tmp_path))
    other = toy.Toy()
    other.extra = other.leave
    with pytest.raises(CheckpointError, match=r"does not fit this model: missing extra\.bias, extra\.weight"):
        fit(make_job(tmp_path, job=dict(model=other)))
    other = toy.Toy()
    other.label = type(other.label)(9, toy.WIDTH)
    with pytest.raises(CheckpointError, match=r"other shapes of label\.weight"):
        fit(make_job(tmp_path, job=dict(model=other)))


def test_never_refuses_a_used_folder(make_job, tmp_path):
    fit(make_job(tmp_path))
    with pytest.raises(ValueError, match="holds a run up to step 12"):
        fit(make_job(tmp_path), resume="never")
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7; there are \[10, 12\]"):
        fit(make_job(tmp_path), resume=7)


def test_a_finished_run_is_left_alone(make_job, tmp_path, same):
    fit(make_job(tmp_path))
    rows, weights = read_metrics(tmp_path), read(tmp_path)
    said: list[str] = []
    state = fit(make_job(tmp_path), on_message=said.append)
    assert said[-1] == "nothing to train: the run is at step 12, 12 are asked for"
    assert state.step == 12 and read_metrics(tmp_path) == rows
    same(state.ema.state_dict(), weights)


def test_skipped_steps_in_a_row_are_counted_over_a_resume(make_job, tmp_path, toy):
    """So that the run stops where the unbroken one would."""
    bad = dict(encode=lambda images, noise: toy.to_latents(images, noise) * float("nan"))
    with pytest.raises(Interrupted):
        fit(make_job(tmp_path, max_nonfinite=5, job=bad), on_step=_interrupt_at(3))
    shutil.copytree(tmp_path, other := tmp_path.with_name("other"))
    with pytest.raises(NonFinite, match=r"step 5: .* 5 steps in a row"):
        fit(make_job(tmp_path, max_nonfinite=5, job=bad))
    state = fit(make_job(other, max_nonfinite=5))
    assert state.guard.skipped == 3 and state.guard.in_row == 0


def test_seconds_go_on_and_the_network_trains(make_job, tmp_path):
    job = make_job(tmp_path)
    job.model.eval()
    first = fit(job)
    assert first.model.training
    second = fit(make_job(tmp_path, steps=16))
    assert [row["step"] for row in read_metrics(tmp_path)] == [4, 8, 12, 16]
    assert second.seconds > first.seconds > 0 and read_metrics(tmp_path)[-1]["seconds"] == second.seconds


def _interrupt_at(at: int):
    return lambda step, values: os.kill(os.getpid(), signal.SIGINT) if step == at else None


def test_settings_that_an_earlier_version_did_not_know_have_not_changed(make_job, tmp_path):
    fit(make_job(tmp_path, steps=5))
    path, said = tmp_path / "checkpoints" / "0000005" / "state.json", []
    old = json.loads(path.read_text())
    for name in ("ema_also", "parallel", "muon", "trackers"):
        del old["settings"][name]
    path.write_text(json.dumps(old))
    fit(make_job(tmp_path, steps=6), on_message=said.append)
    assert [text for text in said if "settings changed" in text] == ["settings changed since: steps 5 -> 6"]
