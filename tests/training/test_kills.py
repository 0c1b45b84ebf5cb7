"""Kills at any moment, also in the middle of writing; requests to stop; full disks: what goes on ends the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ditkit.training import fit, list_steps, read_metrics
from ditkit.training.checkpoint import read_state, read_tensors

LIVES = Path(__file__).parent / "lives.py"
ROOT = Path(__file__).parents[2]
TIMED = {"seconds", "seconds_data", "seconds_model", "seconds_optimizer", "images_per_s", "memory_gib"}
FILES = ("model", "ema", "align", "align_ema", "optimizer")
POINTS = ("half_a_file", "unsynced", "no_state", "before_rename", "after_rename", "half_removed", "half_a_row")


def live(lives: list[dict], seconds: float = 120) -> list[dict]:
    """What came of each life."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(
        [sys.executable, str(LIVES), json.dumps(lives)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_equal(folder: Path, unbroken: Path, same) -> None:
    """Checkpoints, their numbers and the metrics are those of the run that nobody stopped."""
    steps = list_steps(unbroken)
    assert list_steps(folder) == steps
    for step in steps:
        for name in FILES:
            same(read_tensors(folder, step, name), read_tensors(unbroken, step, name))
        mine, other = (read_state(f, step) for f in (folder, unbroken))
        assert {k: v for k, v in mine.items() if k != "seconds"} == {k: v for k, v in other.items() if k != "seconds"}
    mine, other = (
        [{k: v for k, v in row.items() if k not in TIMED} for row in read_metrics(f)] for f in (folder, unbroken)
    )
    assert mine == other and len(mine) > 2
    assert not [p for p in (folder / "checkpoints").iterdir() if not p.name.isdecimal()], "drafts were left behind"


def untimed(folder: Path) -> list[dict]:
    """The rows of a run without what the clock and the machine have to do with."""
    return [{k: v for k, v in row.items() if k not in TIMED} for row in read_metrics(folder)]


SHORT = dict(steps=36, save_every=3, log_every=4, keep_last=2)
ENDS = [
    dict(point="half_a_file", call=13),
    dict(point="half_removed", call=2),
    dict(point="half_a_row", call=5),
    dict(point="after_rename", call=5),
    {},
]
PREEMPTED_RUN = dict(steps=12, save_every=3, log_every=4, keep_last=9, save_async=True)
TERM, INT = int(signal.SIGTERM), int(signal.SIGINT)
PREEMPTED = {
    "once": [dict(at=4, signals=[TERM], slow=0.06), {}],  # step 3 is being written: five files
    "twice": [dict(at=4, signals=[TERM, INT], slow=2.0), {}],
}
DISK_RUN = dict(steps=12, save_every=3, log_every=1, keep_last=9)
FULL = {  # after step 4 no file may grow beyond 3000 bytes
    "stop": [DISK_RUN, dict(limit=3000) | {"from": 4}, {}],
    "stop-async": [DISK_RUN | {"save_async": True}, dict(limit=6000, after_step=3) | {"from": 4}, {}],
    "continue": [DISK_RUN | {"on_save_error": "continue"}, dict(limit=3000, to=10) | {"from": 4}],
    "to the end": [DISK_RUN | {"on_save_error": "continue"}, dict(limit=3000) | {"from": 4}, {}],
    "no row": [DISK_RUN | {"save_every": 12}, dict(limit=1000) | {"from": 1}, {}],
}


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    """The folder, and what came of the lives in it: of runs that are killed (waiting, background) and preempted."""
    home, lives = tmp_path_factory.mktemp("lives"), {}
    for background in (False, True):
        common = dict(folder=str(home / f"killed-{background}"), settings=SHORT | {"save_async": background})
        lives[f"killed-{background}"] = [common | end for end in ENDS]
    for name, ends in PREEMPTED.items():
        lives[name] = [dict(folder=str(home / name), settings=PREEMPTED_RUN) | end for end in ends]
    for name, (settings, *ends) in FULL.items():
        lives[name] = [dict(folder=str(home / name), settings=settings) | end for end in ends]
    told = iter(live([life for own in lives.values() for life in own]))
    return home, {name: [next(told) for _ in own] for name, own in lives.items()}


@pytest.mark.parametrize("background", [False, True])
def test_four_kills(background, lived, make_job, same, tmp_path):
    """In the middle of a file, half-way through pruning, in a row, between rename and prune; both ways of writing."""
    home, told = lived[0], lived[1][f"killed-{background}"]
    fit(make_job(tmp_path / "unbroken", **SHORT))
    assert [t["code"] for t in told] == [*4 * [-signal.SIGKILL], 0]
    assert sum(bool(t["drafts"]) for t in told) >= 2, "kills must land inside of writes"
    folder = home / f"killed-{background}"
    forgive(folder, background)
    assert_equal(folder, tmp_path / "unbroken", same)


def forgive(folder: Path, background: bool) -> None:
    """The one setting that may differ from the unbroken run's."""
    if background:
        for step in list_steps(folder):
            path = folder / "checkpoints" / f"{step:07d}" / "state.json"
            path.write_text(path.read_text().replace('"save_async": true', '"save_async": false'))


@pytest.mark.parametrize("name", FULL)
def test_a_full_disk(name, lived, make_job, same, tmp_path):
    """on_save_error=stop: one line, the checkpoint before is whole, the next start goes on from it to the same bits.

    continue: told, and tried again; rows of metrics are kept meanwhile. What cannot be written at the end is an error.
    """
    home, told = lived[0], lived[1][name]
    folder, said = home / name, [t["said"].splitlines() for t in told]
    assert [t["code"] for t in told] == ([0] if name == "continue" else [1, 0]), said
    if name.startswith("stop"):
        [line] = said[0]
        assert line.startswith("SaveError: checkpoint of step 6 could not be written to") and told[0]["steps"] == [3]
        assert line.endswith("the checkpoint of step 3 is intact")
    elif name == "no row":
        [line] = said[0]
        assert "could not be written: File too large" in line and ("metrics.jsonl" in line or "log.txt" in line)
    elif name == "to the end":
        [line] = said[0]
        assert "step 12 could not be written" in line and told[0]["steps"] == [3]
    else:
        text = (folder / "log.txt").read_text()
        assert "of step 6 could not" in text and "of step 9 could not" in text and told[0]["steps"] == [3, 12]
        assert text.count("training goes on, the next checkpoint is tried when it is due") == 2
    assert not told[0]["drafts"] and told[-1]["steps"][-1] == 12
    fit(make_job(tmp_path / "unbroken", **DISK_RUN))
    if name != "to the end":  # there the rows behind step 3 went with the process; they are made again all the same
        assert untimed(folder) == untimed(tmp_path / "unbroken")
    assert [row["step"] for row in read_metrics(folder)] == list(range(1, 13))
    for file in FILES:
        same(read_tensors(folder, 12, file), read_tensors(tmp_path / "unbroken", 12, file))


@pytest.mark.long
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_forty_kills_at_random(background, seed, make_job, same, tmp_path):
    """Every second one from outside at a random moment, the others at random points of writing."""
    draw = random.Random(seed)
    settings = dict(steps=1200, save_every=4, log_every=7, keep_last=2, keep_every=100, save_async=background)
    fit(make_job(tmp_path / "unbroken", **settings))
    common = dict(folder=str(tmp_path / "run"), settings=settings)
    ends = [
        dict(after=draw.uniform(0.005, 0.15)) if i % 2 else dict(point=draw.choice(POINTS), call=draw.randint(1, 15))
        for i in range(40)
    ]
    told = live([common | end for end in ends] + [common], seconds=500)
    assert [t["code"] for t in told] == [*40 * [-signal.SIGKILL], 0], [t["said"] for t in told if t["said"]]
    inside = sum(bool(t["drafts"]) for t in told[:-1])
    reached = [max(t["steps"], default=0) for t in told]
    assert inside >= 10 and reached == sorted(reached) and reached[-2] > 30, (inside, reached)
    assert_equal(tmp_path / "run", tmp_path / "unbroken", same)


@pytest.mark.parametrize("name, code", [("once", 143), ("twice", 130)])
def test_a_preempted_run_saves_and_exits(name, code, lived, make_job, same, tmp_path):
    """Also while a checkpoint is being written beside it; asked twice it goes at once."""
    home, told = lived[0], lived[1][name]
    assert [t["code"] for t in told] == [code, 0]
    if name == "once":
        assert told[0]["steps"] == [3, 4] and "interrupted at step 4 of 12; the state is saved" in told[0]["said"]
    else:
        assert told[0]["steps"] == [] and told[0]["drafts"] == [".writing-0000003"] and "at once" in told[0]["said"]
    fit(make_job(tmp_path / "unbroken", **PREEMPTED_RUN))
    for step in (9, 12):
        for file in FILES:
            same(read_tensors(home / name, step, file), read_tensors(tmp_path / "unbroken", step, file))
