"""`ditkit train` on several processes: --processes and torchrun, one voice, signals, a killed process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import ditkit as package
from ditkit.cli.train import UNSHARED, restarts_in_doubt
from ditkit.training import checkpoint, list_steps, read, read_metrics

WORDS = (
    "digits.sit", "--data", "digits", "model.depth=2", "model.width=32", "model.heads=2", "training.batch=16",
    "training.log_every=1", "training.precision=fp32", "training.keep_last=50", "sampling.steps=2", "--device", "cpu",
)  # fmt: skip
PARTS = ("training.checkpoint=sharded", "training.parallel.kind=fsdp")


def ended(process: subprocess.Popen, seconds: float = 120) -> tuple[str, str]:
    """stdout and stderr; a process that hangs is killed with all that it started."""
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def reached(run: Path, step: int, process: subprocess.Popen) -> None:
    """Return when the run has a row of this step."""
    deadline = time.monotonic() + 120
    while not any(row["step"] >= step for row in read_metrics(run)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def two(own_process, tmp_path_factory):
    """A run of four steps by two processes, in shards, and what they said."""
    home = tmp_path_factory.mktemp("processes")
    process = own_process("train", *WORDS, *PARTS, "--steps", 4, "--processes", 2, "--out", home / "run")
    stdout, stderr = ended(process)
    assert process.returncode == 0, stderr
    return home / "run", stdout, stderr


def test_two_processes_are_one_training(two, ditkit, tmp_path):
    """The weights and rows of one process, told once; its run folder is as any other."""
    run, stdout, stderr = two
    assert stdout.count("step 4:") == 1 and stderr.count("training ") == 1, stderr
    assert "batch 16 = 2 x 1 passes of 8" in stderr and "weights in 2 shards (fsdp)" in stderr
    assert len(list(checkpoint.path_of(run, 4).glob("shard-*.safetensors"))) == 2
    assert ditkit("train", *WORDS, "--steps", 4, "--out", tmp_path / "one").exit_code == 0
    for weights in ("ema", "raw"):
        mine, other = read(run, weights=weights), read(tmp_path / "one", weights=weights)
        assert mine.keys() == other.keys()
        for name, value in other.items():
            torch.testing.assert_close(mine[name], value, rtol=1e-5, atol=1e-6, msg=name)
    rows = [[(row["step"], round(row["loss"], 5)) for row in read_metrics(f)] for f in (run, tmp_path / "one")]
    assert rows[0] == rows[1] and len(rows[0]) == 4
    assert (run / "report.html").exists() and (run / "samples" / "0000004.png").exists()


def test_parts_are_read_by_every_verb(two, ditkit, tmp_path):
    """Without a process group: load, sample, one file of safetensors, and a training that goes on alone."""
    run = two[0]
    loaded = package.load(run)
    assert loaded.step == 4 and all(v.isfinite().all() for v in loaded.model.state_dict().values())
    out = ditkit("sample", run, "--n", 4, "--out", tmp_path / "images")
    assert out.exit_code == 0, out.output
    out = ditkit("convert", run, tmp_path / "exported")
    assert out.exit_code == 0, out.output
    exported = package.load(tmp_path / "exported").model.state_dict()
    assert all(torch.equal(exported[k], v) for k, v in loaded.model.state_dict().items())
    for file in run.rglob("*"):
        target = tmp_path / "copy" / file.relative_to(run)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.is_file():
            target.write_bytes(file.read_bytes())
    out = ditkit("train", tmp_path / "copy", "--steps", 6, "--device", "cpu")
    assert out.exit_code == 0 and "resumed at step 4" in out.stderr, out.output
    assert list_steps(tmp_path / "copy") == [4, 6]


@pytest.mark.long
def test_what_cannot_be_trained_is_told_in_one_line(own_process, tmp_path):
    words = ["train", *WORDS, "--steps", 4, "--processes", 2, "--out", tmp_path / "run"]
    process = own_process(*words, "training.batch=15")
    _, stderr = ended(process)
    assert process.returncode == 2
    lines = [line for line in stderr.splitlines() if line.startswith("ditkit:")]
    assert lines == ["ditkit: batch 15 does not divide over 2 processes"], stderr
    assert not list_steps(tmp_path / "run")


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.long
def test_a_signal_saves_and_ends_both(own_process, tmp_path, number, code):
    """To the process that was started, as a terminal or a scheduler sends it; the same command continues."""
    run = tmp_path / "run"
    words = ["train", *WORDS, "--steps", 100_000, "--processes", 2, "--out", run, "training.save_every=100000"]
    process = own_process(*words)
    reached(run, 3, process)
    process.send_signal(number)
    _, stderr = ended(process)
    assert process.returncode == code, stderr
    assert stderr.count("interrupted at step") == 1 and "Traceback" not in stderr, stderr
    steps = list_steps(run)
    assert len(steps) == 1 and steps[0] >= 3 and checkpoint.read_state(run, steps[0])["step"] == steps[0]


def test_restarts_need_a_variable_in_the_environment_of_torchrun():
    assert restarts_in_doubt({}) is None and restarts_in_doubt({"TORCHELASTIC_MAX_RESTARTS": "0"}) is None
    assert restarts_in_doubt({"TORCHELASTIC_MAX_RESTARTS": "2", UNSHARED: "1"}) is None
    assert f"{UNSHARED}=1 torchrun" in restarts_in_doubt({"TORCHELASTIC_MAX_RESTARTS": "2"})


@pytest.mark.long
def test_a_killed_process_ends_the_other_and_the_same_command_continues(own_process, ditkit, tmp_path):
    run = tmp_path / "run"
    words = ["train", *WORDS, *PARTS, "--steps", 30, "--processes", 2, "--out", run, "training.save_every=5"]
    process = own_process(*words)
    reached(run, 12, process)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    _, stderr = ended(process)
    assert process.returncode == 137 and "was killed (SIGKILL)" in stderr and "Traceback" not in stderr, stderr
    assert list_steps(run)[-1] in (10, 15, 20, 25)
    process = own_process(*words)
    _, stderr = ended(process)
    assert process.returncode == 0 and "resumed at step" in stderr, stderr
    undisturbed(ditkit, own_process, run, tmp_path / "other")


@pytest.mark.long
def test_torchrun_starts_a_killed_process_again(own_process, ditkit, tmp_path):
    """kill -9 of one of two under --max-restarts 2: the run ends with the weights of an undisturbed one."""
    run = tmp_path / "run"
    words = ["train", *WORDS, *PARTS, "--steps", "30", "--out", str(run), "training.save_every=5"]
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2",
         "-m", "ditkit", *words],
        env=os.environ | {UNSHARED: "1", "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    reached(run, 12, process)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    stdout, stderr = ended(process, 240)
    assert process.returncode == 0, stderr
    assert "resumed at step" in stderr and stdout.count("step 30:") == 1 and "often fails to restart" not in stderr
    undisturbed(ditkit, own_process, run, tmp_path / "other")


def undisturbed(ditkit, own_process, run: Path, other: Path) -> None:
    """The run has the weights of one that nobody disturbed, and a row for every step."""
    process = own_process("train", *WORDS, *PARTS, "--steps", 30, "--processes", 2, "--out", other)
    _, stderr = ended(process)
    assert process.returncode == 0, stderr
    for file in ("model", "ema", "optimizer"):
        mine, wanted = (checkpoint.read_tensors(folder, 30, file) for folder in (run, other))
        assert mine.keys() == wanted.keys() and all(torch.equal(mine[k], wanted[k]) for k in wanted), file
    assert [row["step"] for row in read_metrics(run)] == list(range(1, 31))
    assert json.loads((run / "environment.json").read_text())


def children(parent: int) -> list[int]:
    """The processes that a process has started, oldest first."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            words = place.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(words[1]) == parent:
            found.append(int(place.parent.name))
    return sorted(found)
