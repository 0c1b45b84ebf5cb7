"""`ditkit analyze NAME`, `all` and `compare`: kept beside the run, written into its report, and refused in one line."""

from __future__ import annotations

import json
import shutil

import pytest

from ditkit.cli.analyses import NAMES, OWN
from ditkit.evaluation.images import png_bytes, read_png
from ditkit.recipes.analyses import store
from ditkit.recipes.analyses.analysis import Analysis
from ditkit.recipes.analyses.registry import ANALYSES
from ditkit.recipes.analyses.store import COMPARED, read, sections_of
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
    assert {name: set(keys) for name, keys in OWN.items()} == {
        name: set(analysis.settings.model_fields) for name, analysis in ANALYSES.items()
    }


def test_an_analysis_is_kept_drawn_and_told_in_the_report(ditkit, runs):
    out = ok(ditkit("analyze", "cost", runs[0]))
    told = json.loads((runs[0] / "analysis" / "cost.json").read_text())
    spent = told["result"]
    assert spent["gflops"] == 2 * spent["gmacs"] and spent["parameters"] <= spent["stored"]
    report = (runs[0] / "report.html").read_text()
    assert ">Parameters and operations<" in report
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
    for words, expected in (((), 1), ((), 1), (("weights=raw",), 2), (("weights=raw",), 2), ((), 3)):
        ok(ditkit("analyze", "cost", runs[1], *words))
        assert len(calls) == expected


def test_a_model_folder_gets_a_page_of_its_own(ditkit, runs, tmp_path):
    save_exported(load(runs[0]), tmp_path / "model")
    out = ok(ditkit("analyze", "cost", tmp_path / "model"))
    assert str(tmp_path / "model" / "analysis" / "report.html") in out
    assert ">Parameters and operations<" in (tmp_path / "model" / "analysis" / "report.html").read_text()


def test_models_stand_side_by_side(ditkit, runs, tmp_path):
    out = ok(ditkit("analyze", "compare", *runs, "--only", "cost", "--out", tmp_path / "both.html"))
    page = (tmp_path / "both.html").read_text()
    for name in ("ddt", "sit"):
        assert f"{name}: " in out and f"{name}: " in page
    kept = [[place / "cost.json" for place in (run / "analysis", run / "analysis" / COMPARED)] for run in runs]
    assert all(any(file.is_file() for file in files) for files in kept)
    assert "another seed" in page


def test_models_of_one_name_are_told_apart(ditkit, runs, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(runs[1], tmp_path / name / "x" / "run")
    words = [tmp_path / name / "x" / "run" for name in ("a", "b")]
    out = ok(ditkit("analyze", "compare", *words, "--only", "cost", "--out", tmp_path / "both.html"))
    assert "a/x/run: " in out and "b/x/run: " in out


def test_what_another_version_wrote_stops_nothing(ditkit, runs, tmp_path):
    kept = tmp_path / "kept"
    ok(ditkit("analyze", "cost", runs[0], "--out", kept))
    whole = (kept / "cost.json").read_text()
    for damaged in ('{"analysis": "cost"', whole.replace("gmacs", "macs"), whole.replace('"asked"', '"wanted"'), "[]"):
        (kept / "cost.json").write_text(damaged)
        with pytest.raises(ValueError, match="analyze again"):
            read(ANALYSES["cost"], kept)
        (section,) = sections_of(kept)
        assert "analyze again" in section.body
        ok(ditkit("analyze", "cost", runs[0], "--out", kept))
        assert json.loads((kept / "cost.json").read_text())["result"] == json.loads(whole)["result"]


def test_the_report_says_of_which_step_an_analysis_is(ditkit, runs):
    ok(ditkit("analyze", "cost", runs[1]))
    (section,) = [s for s in sections_of(runs[1] / "analysis", 10_000) if s.title == "Parameters and operations"]
    assert "the run is at step 10,000 now" in section.note and "averaged" in section.note


def test_other_images_and_other_settings_are_measured_anew(ditkit, runs, tmp_path, pictures):
    folder = pictures(tmp_path / "images", size=(8, 8), n=8)
    words = ("analyze", "maps", runs[1], "--data", folder, "data.channels=1", "--n", 6, "shown=2", "--t", 0.5)
    ok(ditkit(*words))
    first = (runs[1] / "analysis" / "maps.json").read_text()
    ok(ditkit(*words))
    assert (runs[1] / "analysis" / "maps.json").read_text() == first
    for file in folder.rglob("*.png"):
        file.write_bytes(png_bytes(255 - read_png(file)[0]))
    ok(ditkit(*words))
    assert (runs[1] / "analysis" / "maps.json").read_text() != first


def test_bad_input_is_one_line(refused, runs, tmp_path):
    assert "named twice" in refused("analyze", "compare", runs[0], runs[0])
    assert "two models" in refused("analyze", "compare", runs[0])
    assert "did you mean 'cost'" in refused("analyze", "all", runs[0], "--only", "cots")
    assert "--only chooses among all" in refused("analyze", "cost", runs[0], "--only", "cost")
    assert "unknown key" in refused("analyze", "cost", runs[0], "tt=1")
    assert "no such run" in refused("analyze", "cost", tmp_path / "none")
    (tmp_path / "file").write_text("")
    assert "is a file" in refused("analyze", "cost", runs[0], "--out", tmp_path / "file")
