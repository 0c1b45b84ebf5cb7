"""The pool: runs are found by what is trained, scores survive, and only one process works on a run."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

from ditkit.pretrained import TeacherSettings
from ditkit.recipes import digits
from ditkit.recipes.reproduce.claim import Arm
from ditkit.recipes.reproduce.pool import Pool

pytest.importorskip("fcntl", reason="locks between processes need POSIX")
FORK = multiprocessing.get_context("fork")


def hold(folder: Path, seconds: float, told) -> None:
    """Hold "run" for so long."""
    with Pool(folder).hold("run") as ours:
        told.send(ours)
        time.sleep(seconds)


def holder(folder: Path, seconds: float):
    """Another process that holds "run" for so long; returned once it does."""
    here, there = FORK.Pipe()
    process = FORK.Process(target=hold, args=(folder, seconds, there))
    process.start()
    assert here.poll(60) and here.recv()
    return process


def test_a_killed_holder_lets_go_and_a_living_one_does_not(tmp_path):
    pool, other = Pool(tmp_path / "shelf"), holder(tmp_path / "shelf", 60)
    try:
        with pool.hold("run") as ours, pool.hold("another") as free:
            assert not ours and free
        other.kill()
        other.join()
        with pool.hold("run") as ours:
            assert ours
            with Pool(tmp_path / "other shelf").hold("run") as elsewhere:
                assert elsewhere
        with pool.hold("run") as again:
            assert again, "the end of a block lets go"
    finally:
        other.kill()
        other.join()


def test_waiting_ends_when_the_holder_is_done(tmp_path):
    pool, other = Pool(tmp_path), holder(tmp_path, 0.3)
    with pool.hold("run", wait=True) as ours:
        assert ours
        with pool.hold("run") as twice:
            assert not twice, "not even this process gets it a second time"
    other.join()
    assert other.exitcode == 0


def test_a_run_is_named_by_what_is_trained():
    base = digits.sit()
    arm = Arm("one", base, {})
    same = Arm("two", base.with_({"name": "x", "title": "y", "notes": ("z",)}), {"more": 1})
    assert arm.file == same.file and arm.key != same.key
    assert arm.file.startswith(f"dit-{base.model.width}x{base.model.depth}-") and arm.file.endswith("-seed0")
    for key, value in {"training.lr": 0.5, "training.seed": 1, "model.width": 32, "data.split": "train"}.items():
        assert Arm("one", base.with_({key: value}), {}).file != arm.file, key


def test_where_a_teacher_lies_does_not_matter_but_which_it_is():
    def named(source):
        teacher = TeacherSettings(kind="selftaught", source=source)
        return Arm("one", digits.repa().with_({"teachers": (teacher,)}), {}).file

    assert named("/here/teacher-600") == named("/there/teacher-600") != named("/here/teacher-0")


def test_where_the_images_lie_does_not_matter_the_shelf_tells_which_they_are():
    def named(source):
        return Arm("one", digits.sit().with_({"data.source": source}), {}).file

    assert named("/here/pets") == named("/there/pets") != named("digits")


def test_what_is_known_of_a_run(tmp_path):
    pool, arm = Pool(tmp_path / "shelf"), Arm("one", digits.sit(), {"x": 1})
    assert pool.read(arm) == {"parts": {}, "seconds": {}, "training": 0.0, "failed": ""}
    assert pool.missing(arm) == arm.recipe.training.steps
    pool.write(arm, {**pool.read(arm), "parts": {"x": 1.5}})
    assert Pool(tmp_path / "shelf").read(arm)["parts"] == {"x": 1.5}
    assert pool.run(arm) == tmp_path / "shelf" / "runs" / arm.file
    elsewhere = Arm("one", digits.sit(), {}, run=tmp_path / "mine")
    assert pool.run(elsewhere) == tmp_path / "mine"
