"""`ditkit analyze NAME`, `all` and `compare`: kept beside the run, written into its report, and refused in one line."""

from __future__ import annotations

import json
import shutil

import pytest

from ditkit.cli.analyses import NAMES
from ditkit.recipes.analyses import store
from ditkit.recipes.analyses.analysis import Analysis
from ditkit.recipes.analyses.registry import ANALYSES
from ditkit.recipes.analyses.store import read, read_all
from ditkit.recipes.load import load, save_exported


@pytest.fixture(scope="module")
def runs(tiny_ddt, tiny_run, tmp_path_factory):
    """Copies of two tiny runs, which may grow files."""
    home = tmp_path_factory.mktemp("analyses")
    return [shutil.copytree(run, home / name) for name, run in (("ddt", tiny_ddt), ("sit", tiny_run))]


def ok(result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_line_names_every_analysis():
    assert list(NAMES) == list(ANALYSES)
    assert all(name == analysis.name for name, analysis in ANALYSES.items())


def test_an_analysis_is_kept_drawn_and_told_in_the_report(ditkit, runs):
    out = ok(ditkit("analyze", "cost", runs[0]))
    told = json.loads((runs[0] / "analysis" / "cost.json").read_text())
    spent = told["result"]
    assert spent["gflops"] == 2 * spent["gmacs"] and spent["parameters"] <= spent["stored"]
    report = (runs[0] / "report.html").read_text()
    assert ">Cost<" in report
    for line in told["said"]:
        assert line in out and line in report


def test_what_was_measured_is_not_measured_again_unless_asked_otherwise(ditkit, runs, monkeypatch):
    calls = []
    known = ANALYSES["cost"]

    def counted(*arguments):
        calls.append(arguments)
        return known.measure(*arguments)

    fields = {name: getattr(known, name) for name in Analysis.__dataclass_fields__}
    monkeypatch.setitem(store.ANALYSES, "cost", Analysis(**{**fields, "measure": counted}))
    for words, expected in (((), 1), ((), 1), (("--n", 20), 2), (("--n", 20), 2), (("weights=raw",), 3)):
        ok(ditkit("analyze", "cost", runs[1], *words))
        assert len(calls) == expected


def test_a_model_folder_gets_a_page_of_its_own(ditkit, runs, tmp_path):
    save_exported(load(runs[0]), tmp_path / "model")
    out = ok(ditkit("analyze", "cost", tmp_path / "model"))
    assert str(tmp_path / "model" / "analysis" / "report.html") in out
    assert ">Cost<" in (tmp_path / "model" / "analysis" / "report.html").read_text()


def test_models_stand_side_by_side(ditkit, runs, tmp_path):
    out = ok(ditkit("analyze", "compare", *runs, "--only", "cost", "--out", tmp_path / "both.html"))
    page = (tmp_path / "both.html").read_text()
    for name in ("ddt", "sit"):
        assert f"{name}: " in out and f"{name}: " in page
    assert all(set(read_all(run / "analysis")) >= {"cost"} for run in runs)


def test_a_damaged_file_is_one_line(ditkit, refused, runs, tmp_path):
    ok(ditkit("analyze", "cost", runs[0], "--out", tmp_path / "kept"))
    (tmp_path / "kept" / "cost.json").write_text('{"analysis": "cost"')
    assert "remove it and analyze again" in refused("analyze", "cost", runs[0], "--out", tmp_path / "kept")
    with pytest.raises(ValueError, match="remove it"):
        read(ANALYSES["cost"], tmp_path / "kept")


def test_bad_input_is_one_line(refused, runs, tmp_path):
    assert "named twice" in refused("analyze", "compare", runs[0], runs[0])
    assert "two models" in refused("analyze", "compare", runs[0])
    assert "did you mean 'cost'" in refused("analyze", "all", runs[0], "--only", "cots")
    assert "--only chooses among all" in refused("analyze", "cost", runs[0], "--only", "cost")
    assert "unknown key" in refused("analyze", "cost", runs[0], "tt=1")
    assert "no such run" in refused("analyze", "cost", tmp_path / "none")
    (tmp_path / "file").write_text("")
    assert "is a file" in refused("analyze", "cost", runs[0], "--out", tmp_path / "file")
