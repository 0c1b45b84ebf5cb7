"""Checkpoint files: pruning, reading, full disks, half-written drafts."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ditkit.training import CheckpointError, SaveError, fit, list_steps, read
from ditkit.training.checkpoint import latest, path_of, prune, write


@pytest.fixture
def tensors():
    return {"model": {"a": torch.arange(6.0).view(2, 3).t()}, "ema": {"a": torch.zeros(3, 2)}}


def test_what_is_written_is_read(tensors, tmp_path):
    home = write(tmp_path, 5, tensors, {"x": 1})
    assert home == path_of(tmp_path, 5) == tmp_path / "checkpoints" / "0000005"
    assert sorted(p.name for p in home.iterdir()) == ["ema.safetensors", "model.safetensors", "state.json"]
    assert torch.equal(load_file(home / "model.safetensors")["a"], tensors["model"]["a"])
    step, state = latest(tmp_path)
    assert step == 5 and state["step"] == 5 and state["x"] == 1
    assert torch.equal(read(tmp_path, weights="raw")["a"], tensors["model"]["a"])
    assert torch.equal(read(tmp_path, 5)["a"], torch.zeros(3, 2))


def test_a_checkpoint_holds_no_pickle(make_job, tmp_path):
    fit(make_job(tmp_path))
    files = [p for p in path_of(tmp_path, 12).iterdir()]
    assert {p.suffix for p in files} == {".safetensors", ".json"}
    assert {p.stem for p in files} == {"model", "ema", "align", "align_ema", "optimizer", "state"}
    state = json.loads((path_of(tmp_path, 12) / "state.json").read_text())
    assert state["settings"]["steps"] == 12 and state["images"] == 72


@pytest.mark.parametrize(
    "last, every, kept", [(1, None, [9]), (3, None, [7, 8, 9]), (2, 3, [3, 6, 8, 9]), (99, None, range(1, 10))]
)
def test_keep_last(last, every, kept, tensors, tmp_path):
    for step in range(1, 10):
        write(tmp_path, step, tensors, {})
    prune(tmp_path, last, every)
    assert list_steps(tmp_path) == list(kept)


def test_a_run_keeps_what_it_was_told(make_job, tmp_path):
    fit(make_job(tmp_path, save_every=2, keep_last=2, keep_every=4))
    assert list_steps(tmp_path) == [4, 8, 10, 12]


def test_weights_are_chosen_by_name(make_job, tmp_path, same):
    state = fit(make_job(tmp_path))
    same(read(tmp_path), state.ema.state_dict())
    same(read(tmp_path, weights="raw"), state.model.state_dict())
    same(read(tmp_path, part="align"), state.emas[1].model.state_dict())
    same(read(str(tmp_path), 12, "raw", "align"), state.job.aligner.state_dict())
    with pytest.raises(CheckpointError, match=r"'ema' .* 'raw'"):
        read(tmp_path, weights="best")
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 3; there are \[10, 12\]"):
        read(tmp_path, 3)
    with pytest.raises(CheckpointError, match="no checkpoint in this run yet"):
        read(tmp_path / "nowhere")


def test_projectors_of_a_run_without_alignment(make_job, tmp_path):
    fit(make_job(tmp_path, aligned=False))
    with pytest.raises(CheckpointError, match=r"align_ema\.safetensors"):
        read(tmp_path, part="align")


def test_reading_a_damaged_step_by_name_is_an_error(make_job, tmp_path):
    fit(make_job(tmp_path))
    path = path_of(tmp_path, 12) / "ema.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="100 bytes, written were"):
        read(tmp_path, 12)
    assert read(tmp_path).keys() == read(tmp_path, 10).keys(), "the newest whole one is taken"


@pytest.fixture
def small_disk():
    """No file may grow beyond so many bytes: the kernel's own error, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_earlier_checkpoint(small_disk, make_job, tmp_path, same):
    job = make_job(tmp_path, keep_last=1)
    weights = {}

    def fill(step, values):
        if step == 7:
            weights.update(read(tmp_path, 5))
            small_disk(3000)

    with pytest.raises(SaveError, match=r"step 10 could not be written to .*checkpoints: .*; .* of step 5 is intact"):
        fit(job, on_step=fill)
    same(read(tmp_path), weights)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["0000005"]


def test_a_draft_is_removed_by_the_next_run(make_job, tmp_path):
    draft = tmp_path / "checkpoints" / ".writing-0000099"
    draft.mkdir(parents=True)
    (draft / "model.safetensors").write_bytes(b"half")
    there = []
    fit(make_job(tmp_path), on_step=lambda step, values: there.append(draft.exists()))
    assert not any(there), "its space is free before the first step, not only before the next checkpoint"
    assert list_steps(tmp_path) == [10, 12]


def test_a_failed_write_leaves_nothing_under_the_final_name(monkeypatch, tensors, tmp_path):
    from ditkit.training import checkpoint

    def fail(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "sync", fail)
    with pytest.raises(SaveError, match="No space left on device; there is no earlier one"):
        write(tmp_path, 1, tensors, {})
    assert list((tmp_path / "checkpoints").iterdir()) == []
