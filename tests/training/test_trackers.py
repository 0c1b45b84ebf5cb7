"""Trackers: the real packages where they are installed, and a stand-in that fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ditkit.training import fit, read_metrics, trackers
from ditkit.training.state import ATTEMPT
from ditkit.training.trackers import check_trackers, open_trackers, show_picture

NAMES = ("tensorboard", "wandb", "trackio")
SETTINGS = {"log_every": 2, "save_every": 4, "keep_last": 9}


class Remembering:
    """A stand-in: keeps what it is told, and fails at one of the calls."""

    seen: list[tuple]
    failing: int | None

    def __init__(self, run):
        self.seen.append(("open", run.name, run.step))

    def row(self, step, values):
        self._note("row", step, values.get("loss"))

    def rewind(self, step):
        self._note("rewind", step)

    def picture(self, name, step, path):
        self._note("picture", name, step, path.name)

    def close(self):
        self._note("close")

    def _note(self, *what):
        self.seen.append(what)
        if self.failing is not None and len(self.seen) > self.failing:
            raise ConnectionError("the server is gone\nand more lines")


@pytest.fixture
def stand_in(monkeypatch):
    """It takes wandb's place."""
    kind = type("StandIn", (Remembering,), {"seen": [], "failing": None})
    monkeypatch.setattr(trackers, "check_trackers", lambda names: None)
    monkeypatch.setattr("ditkit.training.loop.check_trackers", lambda names: None)
    for name in NAMES:
        monkeypatch.setitem(trackers.KINDS, name, kind)
    return kind


def roll_back_once(job):
    """Steps 7 to 9 fail with the first draws."""
    real = job.encode
    job.encode = lambda images, noise: (
        real(images, noise) * (float("nan") if noise.step in (6, 7, 8) and noise.seed < ATTEMPT else 1)
    )
    return job


ROLLS = {"steps": 12, "save_every": 5, "log_every": 2, "max_nonfinite": 3}


@pytest.mark.parametrize("name", NAMES)
def test_each_one_that_is_named_gets_the_rows_and_hears_of_a_rollback(name, tmp_path, make_job, stand_in):
    fit(roll_back_once(make_job(tmp_path, trackers=[name], **ROLLS)))
    told = [(what[0], what[-1] if what[0] == "rewind" else what[1]) for what in stand_in.seen[1:-1]]
    steps = [("row", step) for step in (2, 4, 6, 8, 6, 8, 10, 12)]
    assert told == [*steps[:4], ("rewind", 5), *steps[4:]] and stand_in.seen[-1] == ("close",)


def test_those_that_take_nothing_back_are_told_no_step_twice():
    rows = trackers.Forward()
    assert all(rows.new(step) for step in (2, 4, 4, 6))
    rows.rewind()
    assert [step for step in (4, 6, 8, 8, 10) if rows.new(step)] == [8, 8, 10]
    rows.rewind()
    rows.rewind()
    assert [step for step in (8, 10, 12) if rows.new(step)] == [12]


def test_every_row_is_told_and_a_resumed_run_goes_on(tmp_path, make_job, stand_in):
    rows: list[dict] = []
    fit(make_job(tmp_path, steps=4, trackers=["wandb"], **SETTINGS), on_log=rows.append)
    fit(make_job(tmp_path, steps=8, trackers=["wandb"], **SETTINGS), on_log=rows.append)
    told = [what for what in stand_in.seen if what[0] == "row"]
    assert told == [("row", row["step"], row["loss"]) for row in read_metrics(tmp_path)] and len(told) == 4
    assert [what for what in stand_in.seen if what[0] != "row"] == [
        ("open", tmp_path.name, 0), ("close",), ("open", tmp_path.name, 4), ("close",)
    ]  # fmt: skip
    assert [row["step"] for row in rows] == [2, 4, 6, 8]  # who listens is told as well


def test_one_that_fails_is_left_out_and_training_goes_on(tmp_path, make_job, stand_in, same):
    stand_in.failing, said = 2, []
    state = fit(make_job(tmp_path / "a", steps=8, trackers=["wandb"], **SETTINGS), on_message=said.append)
    lines = [line for line in said if "wandb" in line]
    assert (
        lines == ["warning: wandb failed and is told nothing more; training goes on: the server is gone"]
        and "more lines" not in (tmp_path / "a" / "log.txt").read_text()
    )
    assert len(stand_in.seen) == 3 and len(read_metrics(tmp_path / "a")) == 4
    same(state.model.state_dict(), fit(make_job(tmp_path / "b", steps=8, **SETTINGS)).model.state_dict())


def test_one_that_cannot_begin_ends_it_before_the_first_step(tmp_path, make_job, stand_in):
    def refuse(run):
        raise RuntimeError("no account\n  at line 3")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(trackers.KINDS, "wandb", refuse)
        with pytest.raises(ValueError, match=r"wandb cannot begin: no account; WANDB_MODE=offline needs no account$"):
            fit(make_job(tmp_path, trackers=["wandb"], **SETTINGS))
    assert not read_metrics(tmp_path)


def test_it_is_closed_when_a_run_breaks_off(tmp_path, make_job, stand_in):
    def stop(step, values):
        raise KeyError("of the caller")

    with pytest.raises(KeyError):
        fit(make_job(tmp_path, trackers=["wandb"], **SETTINGS), on_step=stop)
    assert stand_in.seen[-1] == ("close",)


def test_a_missing_package_is_named_before_anything_is_written(tmp_path, make_job, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"trackio is not installed: pip install 'ditkit\[trackio\]'") as found:
        fit(make_job(tmp_path / "run", trackers=["trackio"]))
    assert "\n" not in str(found.value) and not (tmp_path / "run").exists()
    check_trackers(())


def test_a_picture_is_told_and_no_failure_is_an_error(tmp_path, stand_in, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "sheet.png")
    show_picture(["wandb"], tmp_path, tmp_path / "sheet.png", 12)
    assert stand_in.seen[1:] == [("picture", "samples", 12, "sheet.png"), ("close",)]
    stand_in.failing = 0
    show_picture(["wandb"], tmp_path, tmp_path / "sheet.png", 12)
    assert "wandb failed" in (tmp_path / "log.txt").read_text()
    monkeypatch.setitem(trackers.KINDS, "wandb", lambda run: 1 / 0)
    show_picture(["wandb"], tmp_path, tmp_path / "sheet.png", 12)
    assert "cannot begin" in (tmp_path / "log.txt").read_text()


def test_a_run_keeps_its_key(tmp_path, stand_in):
    open_trackers(["wandb"], tmp_path, 0, print)
    key = json.loads((tmp_path / "trackers.json").read_text())["key"]
    open_trackers(["wandb"], tmp_path, 3, print)
    assert json.loads((tmp_path / "trackers.json").read_text())["key"] == key and len(key) == 8
    open_trackers([], tmp_path / "none", 0, print)
    assert not (tmp_path / "none").exists()


# ------------------------------------------------------------------------------------------ the packages themselves


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_has_the_rows_of_the_run(tmp_path, make_job):
    """Also after going back: what came later is replaced, not kept beside it."""
    pytest.importorskip("tensorboard")
    fit(make_job(tmp_path, steps=8, trackers=["tensorboard"], **SETTINGS))
    fit(make_job(tmp_path, steps=10, lr=1e-3, trackers=["tensorboard"], **SETTINGS), resume=4)
    found, rows = scalars(tmp_path), read_metrics(tmp_path)
    assert set(found) == set(rows[0]) - {"step"}
    for tag in ("loss", "lr", "grad_norm"):
        assert found[tag] == [(row["step"], pytest.approx(row[tag], rel=1e-6)) for row in rows]
    Image.new("RGB", (6, 4), "red").save(tmp_path / "sheet.png")
    show_picture(["tensorboard"], tmp_path, tmp_path / "sheet.png", 10)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    image = events.Images("samples")[0]
    assert (image.step, image.width, image.height) == (10, 6, 4)


def test_tensorboard_hides_what_a_rollback_undid(tmp_path, make_job):
    pytest.importorskip("tensorboard")
    fit(roll_back_once(make_job(tmp_path, trackers=["tensorboard"], **ROLLS)))
    rows = read_metrics(tmp_path)
    assert scalars(tmp_path)["loss"] == [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in rows]


@pytest.mark.long
def test_only_the_first_process_tells(tmp_path, pair):
    pytest.importorskip("tensorboard")
    pair("train", folder=str(tmp_path), steps=4, batch=6, trackers=["tensorboard"], **SETTINGS)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    assert [step for step, _ in scalars(tmp_path)["loss"]] == [2, 4]


TRAIN = """
import importlib.util, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from PIL import Image
from toy import make_job
from ditkit.training import fit
from ditkit.training.trackers import show_picture
folder = Path({folder!r})
for steps in (4, 8):
    fit(make_job(folder, steps=steps, trackers=[{name!r}], log_every=2, save_every=4, keep_last=9), on_message=print)
Image.new("RGB", (6, 4), "red").save(folder / "sheet.png")
show_picture([{name!r}], folder, folder / "sheet.png", 8)
"""


def trained_with(name: str, folder: Path, **environment: str) -> str:
    """In a process of its own, as these packages start threads and servers; what it says."""
    code = TRAIN.format(here=str(Path(__file__).parent), folder=str(folder), name=name)
    own = {**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(folder.parent), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=own, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
def test_wandb_writes_the_run_without_a_network(tmp_path):
    pytest.importorskip("wandb")
    said = trained_with("wandb", tmp_path / "run", WANDB_MODE="offline", WANDB_DIR="", WANDB_CACHE_DIR=str(tmp_path))
    assert "wandb" not in said, said
    key = json.loads((tmp_path / "run" / "trackers.json").read_text())["key"]
    files = sorted((tmp_path / "run" / "wandb").glob(f"offline-run-*-{key}/run-{key}.wandb"))
    assert len(files) == 3  # two starts and the picture: one run, when they are sent
    assert b"grad_norm" in files[0].read_bytes() and b"update_ratio" in files[1].read_bytes()
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/files/media/images/samples*.png"))


def test_trackio_stores_the_run_on_this_machine(tmp_path):
    pytest.importorskip("trackio")
    home = str(tmp_path / "trackio")
    said = trained_with("trackio", tmp_path / "run", TRACKIO_DIR=home, HF_HOME=home, HF_HUB_OFFLINE="1")
    assert "trackio" not in said.lower() and (tmp_path / "trackio" / "ditkit.db").is_file()
    key = json.loads((tmp_path / "run" / "trackers.json").read_text())["key"]
    read = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as S; name = S.get_runs('ditkit')[0]; "
        "print(json.dumps([name, S.get_logs('ditkit', name)], default=str))"
    )
    own = {**os.environ, "TRACKIO_DIR": home, "HF_HOME": home, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", read], env=own, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    name, told = json.loads(done.stdout.splitlines()[-1])
    rows, told = read_metrics(tmp_path / "run"), [row for row in told if "loss" in row]
    assert name == f"run-{key}" and [row["step"] for row in told] == [row["step"] for row in rows] == [2, 4, 6, 8]
    assert [row["loss"] for row in told] == pytest.approx([row["loss"] for row in rows])
    assert list((tmp_path / "trackio" / "media").rglob("*.png"))
