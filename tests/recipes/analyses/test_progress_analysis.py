"""`ditkit analyze layers`, `progress` and `compare` on tiny runs: numbers, report, and refusals in one line."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from ditkit.cli import app
from ditkit.recipes.analyses.analysis import Found
from ditkit.recipes.analyses.progress import ANALYSIS, ProgressResult
from ditkit.recipes.load import load, save_exported


@pytest.fixture(scope="module")
def runs(tiny_run, tiny_ddt, tmp_path_factory):
    """Copies of two tiny runs, which may grow files."""
    home = tmp_path_factory.mktemp("looked")
    return [shutil.copytree(run, home / name) for name, run in (("repa", tiny_run), ("ddt", tiny_ddt))]


def analyze(*words) -> str:
    result = CliRunner().invoke(app, ["analyze", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*words) -> str:
    result = CliRunner().invoke(app, ["analyze", *map(str, words)])
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output
    return result.stderr


FEW = ["n=40", "train=60", "t=0.1,0.7"]


def test_layers_of_a_run_in_its_report(runs):
    out = analyze("layers", runs[0], *FEW, "blocks=1")
    told = json.loads((runs[0] / "analysis" / "layers.json").read_text())
    assert "after block 1 of 2 (the aligned one) at t =" in out and "CKNNA with toy-extractor" in out
    assert {look["t"] for look in told["result"]["looks"]} == {0.1, 0.7}
    assert "What each layer knows" in (runs[0] / "report.html").read_text()


def test_layers_of_several_models_in_one_page(runs, tmp_path):
    out = analyze("compare", *runs, "--only", "layers", *FEW, "--out", tmp_path / "page.html")
    assert "In the accuracy of a linear probe" in out and "In CKNNA with toy-extractor" in out
    page = (tmp_path / "page.html").read_text()
    assert "Probe accuracy over blocks, each at its best t" in page and "over size" in page


def test_progress_follows_a_run(runs):
    out = analyze("progress", runs[0], "n=40", "train=60", "t=0.3")
    r = json.loads((runs[0] / "analysis" / "progress.json").read_text())["result"]
    assert [c["step"] for c in r["checkpoints"]] == [2, 3] and len(r["checkpoints"][0]["looks"]) == 2
    assert "goes from" in out and "at step 2" in out and "at step 3" in out and "toy-extractor" in out
    last = json.loads(json.dumps(r["checkpoints"][-1]["looks"]))
    analyze("layers", runs[0], "n=40", "train=60", "t=0.3")  # the newest checkpoint is what layers looks at
    looks = json.loads((runs[0] / "analysis" / "layers.json").read_text())["result"]["looks"]
    assert looks == last
    assert "What is learned when" in (runs[0] / "report.html").read_text()
    one = analyze("progress", runs[0], "n=40", "train=60", "checkpoints=2", "probe=none", "teachers=toy")
    assert "accuracy" not in one


def test_changes_are_of_the_same_images_and_models_are_ranked(runs):
    analyze("progress", runs[0], "n=200", "train=60", "t=0.3", "blocks=2")
    kept = json.loads((runs[0] / "analysis" / "progress.json").read_text())["result"]
    r = ProgressResult.model_validate(kept)
    (teacher,) = r.teachers
    (change,) = r.changes[teacher]
    first, last = (c.peaks[teacher][0] for c in r.checkpoints)
    assert change.difference == pytest.approx(last.value - first.value) and first.images == 100
    alone = [high - low for low, high in (first.limits, last.limits, change.limits)]
    assert alone[2] < max(alone[:2]), "the same images: surer than either by itself"
    peaks = [c.peaks[""][0] for c in r.checkpoints]
    grown = peaks[-1].model_copy(update={"right": "1" * 60 + "0" * 40, "value": 0.6})
    small = peaks[0].model_copy(update={"right": "1" * 50 + "0" * 50, "value": 0.5})
    ends = [
        c.model_copy(update={"peaks": {**c.peaks, "": (p,)}})
        for c, p in zip(r.checkpoints, (small, grown), strict=True)
    ]
    more = Found(r.model_copy(update={"checkpoints": tuple(ends)}))
    said = ANALYSIS.show({"": more}).said
    assert "goes from 50.0 % at step 2 (block 2) to 60.0 % at step 3 (block 2): beyond noise." in said[0]
    both = ANALYSIS.show({"a": more, "b": more}).said
    assert any(
        "At the last checkpoint, in the accuracy of a linear probe a and b are equal: 60.0 %." in line
        and "another seed" in line
        for line in both
    )


def test_progress_needs_a_run_with_checkpoints(runs, tmp_path):
    save_exported(load(runs[0]), tmp_path / "model")
    assert "it is no run" in refused("progress", tmp_path / "model", "n=40")
    assert "has those of steps 2, 3" in refused("progress", runs[0], "n=40", "checkpoints=7")
    only = shutil.copytree(runs[0], tmp_path / "one")
    shutil.rmtree(only / "checkpoints" / "0000002")
    assert "1 checkpoint" in refused("progress", only, "n=40")
