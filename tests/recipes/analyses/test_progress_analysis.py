"""`ditkit analyze layers`, `progress` and `compare` on tiny runs: numbers, report, and refusals in one line."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from ditkit.cli import app
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


def test_progress_needs_a_run_with_checkpoints(runs, tmp_path):
    save_exported(load(runs[0]), tmp_path / "model")
    assert "it is no run" in refused("progress", tmp_path / "model", "n=40")
    assert "has those of steps 2, 3" in refused("progress", runs[0], "n=40", "checkpoints=7")
    only = shutil.copytree(runs[0], tmp_path / "one")
    shutil.rmtree(only / "checkpoints" / "0000002")
    assert "1 checkpoint" in refused("progress", only, "n=40")
