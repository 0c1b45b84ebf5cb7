"""Checkpoints in parts: complete or absent, read by any number of processes, equal to whole ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import team

from ditkit.checkpoints import CheckpointError
from ditkit.ranks import ALONE
from ditkit.training import checkpoint, list_steps, read

RUN = {"batch": 8, "stop": 9, "ema_also": [0.5], "save_every": 6, "keep_last": 5}


@pytest.fixture(scope="module")
def crew(tmp_path_factory):
    """Two processes that do what they are asked."""
    crew = team.Crew(2, tmp_path_factory.mktemp("crew"))
    yield crew
    crew.close()


@pytest.fixture(scope="module")
def runs(crew, tmp_path_factory):
    """Folder and result of the same run by kind, written whole and in parts."""
    home = tmp_path_factory.mktemp("runs")
    found = {}
    for kind in ("ddp", "fsdp"):
        for form in ("whole", "sharded"):
            folder = home / f"{kind}-{form}"
            found[kind, form] = folder, crew("train", folder=folder, **RUN, **asked(kind, form))
    return found


def asked(kind: str, form: str) -> dict:
    return {"parallel": {"kind": kind}, "checkpoint": form, "save_async": form == "sharded" and kind == "fsdp"}


def same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def close(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name].double() - b[name].double()).norm() <= 2e-6 * b[name].double().norm(), name


def copy_until(folder: Path, step: int, to: Path) -> Path:
    """The run as it was at a checkpoint."""
    home = checkpoint.path_of(folder, step)
    target = checkpoint.path_of(to, step)
    target.mkdir(parents=True)
    for file in home.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return to


def test_parts_hold_what_whole_files_hold(runs):
    """Every tensor of every file; nothing is pickled, every part is listed with its checksum."""
    for kind in ("ddp", "fsdp"):
        whole, parts = runs[kind, "whole"][0], runs[kind, "sharded"][0]
        assert list_steps(whole) == list_steps(parts) == [6, 12]
        for file in ("model", "ema", "ema-0.5", "align", "align_ema", "optimizer"):
            same(checkpoint.read_tensors(whole, 12, file), checkpoint.read_tensors(parts, 12, file))
        home = checkpoint.path_of(parts, 12)
        listed = checkpoint.read_state(parts, 12)["files"]
        assert {p.name for p in home.iterdir()} == {*listed, "state.json"} and len(listed) == 2
        assert all(name.endswith(".safetensors") for name in listed)
        sizes = [entry["bytes"] for entry in listed.values()]
        assert max(sizes) < 0.75 * sum(sizes), "each process writes its part, also of what all of them hold"
    same(read(runs["fsdp", "sharded"][0], weights="raw"), read(runs["fsdp", "whole"][0], weights="raw"))


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("form", ["whole", "sharded"])
def test_a_run_continues_to_the_bit_with_as_many_processes(crew, runs, tmp_path, kind, form):
    folder, unbroken = runs[kind, form]
    again = crew("train", folder=copy_until(folder, 6, tmp_path), **RUN, **asked(kind, form))
    assert [step for step, _ in again[0]["seen"]] == [6, 7, 8, 9, 10, 11]
    assert "resumed at step 6" in again[0]["said"]
    same(again[0]["weights"], unbroken[0]["weights"])


@pytest.mark.parametrize("before", [("ddp", "sharded"), ("fsdp", "sharded"), ("fsdp", "whole")])
def test_a_run_continues_with_other_numbers_of_processes(crew, runs, tmp_path, before):
    """Two to one and to two of the other kind: the same images in the same order, weights within rounding."""
    folder, unbroken = runs[before]
    order = [sorted_rows(unbroken, step) for step in range(6, 12)]
    one = team.train(ALONE, folder=str(copy_until(folder, 6, tmp_path / "one")), **RUN)
    assert [rows for _, rows in one["seen"]] == order
    close(one["weights"], unbroken[0]["weights"])
    other = "fsdp" if before[0] == "ddp" else "ddp"
    two = crew("train", folder=copy_until(folder, 6, tmp_path / "two"), **RUN, **asked(other, "whole"))
    assert [sorted_rows(two, step) for step in range(6)] == order
    close(two[0]["weights"], unbroken[0]["weights"])


def test_one_process_to_two(crew, runs, tmp_path):
    one = team.train(ALONE, folder=str(tmp_path / "one"), **RUN)
    for kind in ("ddp", "fsdp"):
        two = crew("train", folder=copy_until(tmp_path / "one", 6, tmp_path / kind), **RUN, **asked(kind, "sharded"))
        assert [sorted_rows(two, step) for step in range(6)] == [rows for _, rows in one["seen"][6:]]
        close(two[0]["weights"], one["weights"])


def sorted_rows(parts: list[dict], place: int) -> list:
    """The images of a step over all processes, in the order of the global batch."""
    return [image for part in parts for image in part["seen"][place][1]]


def test_a_damaged_part_is_named_and_the_checkpoint_before_it_is_taken(crew, runs, tmp_path):
    folder, unbroken = runs["fsdp", "sharded"]
    for step in (6, 12):
        copy_until(folder, step, tmp_path)
    part = sorted(checkpoint.path_of(tmp_path, 12).glob("shard-00002*"))[0]
    content = bytearray(part.read_bytes())
    content[-3] ^= 1
    part.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"shard-00002-.*safetensors: the content changed"):
        read(tmp_path, 12)
    again = crew("train", folder=tmp_path, **RUN, **asked("fsdp", "sharded"))
    assert any("checkpoint of step 12 is damaged and skipped" in line for line in again[0]["said"])
    same(again[0]["weights"], unbroken[0]["weights"])


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_full_disk_leaves_the_checkpoint_before_it(crew, runs, tmp_path, policy):
    """By a limit on the size of files: all processes hear of it, and stop or go on alike."""
    folder = copy_until(runs["fsdp", "sharded"][0], 6, tmp_path)
    given = {**RUN, **asked("fsdp", "sharded"), "save_every": 2, "on_save_error": policy}
    two = crew("train", folder=folder, **given, limit=2000)
    assert list_steps(folder) == [6] and checkpoint.read_state(folder, 6)["step"] == 6
    assert not list(checkpoint.checkpoints(folder).glob(".writing*"))
    assert all("checkpoint of step" in part["end"] and "could not be written" in part["end"] for part in two)
    went_on = [line for line in two[0]["said"] if "training goes on" in line]
    assert bool(went_on) == (policy == "continue")
    same(crew("train", folder=folder, **given)[0]["weights"], runs["fsdp", "sharded"][1][0]["weights"])


def test_a_process_without_memory_for_its_copy_keeps_nobody_waiting(crew, tmp_path):
    settings = {"parallel": {"kind": "fsdp"}, "checkpoint": "sharded", "on_save_error": "continue"}
    found = crew("short", folder=tmp_path, batch=8, steps=9, save_every=3, keep_last=9, **settings)
    assert list_steps(tmp_path) == [6, 9]
    told = "checkpoint of step 3 could not be copied to main memory: out of host memory; training goes on"
    assert all(any(told in text for text in one["said"]) for one in found)
