"""`ditkit train` with an evaluation set by dotted keys, and bars of stages that come again."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ditkit.cli.progress import Bars
from ditkit.training import read_metrics

TINY = [
    "model.depth=1", "model.width=32", "model.heads=2", "training.batch=4", "training.ema=0.5", "sampling.steps=2",
    "training.save_every=2",
]  # fmt: skip


@pytest.mark.long
def test_scores_by_dotted_keys_and_off_again(ditkit, tmp_path):
    run = tmp_path / "run"
    keys = ["evaluation.every=2", "evaluation.n=8", "evaluation.real=40", "evaluation.classifier.steps=2"]
    done = ditkit("train", "digits.sit", *TINY, *keys, "--steps", 4, "--out", run)
    assert done.exit_code == 0, done.output
    assert sorted(file.name for file in (run / "evaluations").iterdir()) == ["0000002.json", "0000004.json"]
    assert "Scores during training" in (run / "report.html").read_text(encoding="utf-8")
    done = ditkit("train", run, "evaluation=none", "--steps", 6)
    assert done.exit_code == 0, done.output
    scored = [row["step"] for row in read_metrics(run) if "eval_pixels_frechet" in row]
    assert scored == [2, 4] and len(list((run / "evaluations").iterdir())) == 2


def test_a_mistaken_key_is_one_line(ditkit, tmp_path):
    done = ditkit("train", "digits.sit", "evaluation.evry=2", "--out", tmp_path / "run")
    assert done.exit_code != 0 and "did you mean 'evaluation.every'?" in done.output
    assert not (tmp_path / "run").exists()


def test_a_stage_that_comes_again_is_timed_anew(monkeypatch):
    file, now = io.StringIO(), [0.0]
    monkeypatch.setattr("ditkit.cli.progress.time.monotonic", lambda: now[0])
    bar = Bars(None, Console(file=file))
    for start in (0.0, 100.0):
        now[0] = start
        bar("scores", 0, 2)
        now[0] = start + 3
        bar("scores", 2, 2)
    assert file.getvalue().splitlines() == ["scores: 2/2, 3.0 s"] * 2


def test_stages_that_take_no_time_say_nothing_in_a_log(monkeypatch):
    file, now = io.StringIO(), [0.0]
    monkeypatch.setattr("ditkit.cli.progress.time.monotonic", lambda: now[0])
    bar = Bars(None, Console(file=file))
    for done in range(41):
        bar("mind", 0, 16)
        bar("mind", 16, 16)
        bar("images", done, 40)
        now[0] += 1
    told = [line.split(",")[0] for line in file.getvalue().splitlines()]
    assert told == ["images: 15/40", "images: 30/40", "images: 40/40"]
