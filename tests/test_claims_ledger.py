"""The committed ledger: its page is what the JSON gives, and every verdict follows from its scores by its rule."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from ditkit.config import dump
from ditkit.recipes.claims import CLAIMS
from ditkit.recipes.reproduce.again import rejudge
from ditkit.recipes.reproduce.ledger_picture import drawn_from
from tests.recipes.reproduce.results import a_result

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("claims_script", ROOT / "benchmarks" / "claims.py")
script = importlib.util.module_from_spec(_spec)
sys.modules["claims_script"] = script
_spec.loader.exec_module(script)

LEDGER = script.read_ledger(ROOT)
OLD = {"sd3-dpo-scenes+base=YOUR_RUN+steps=100"}  # made before results kept their scores


def test_the_page_is_what_the_results_give():
    assert (ROOT / script.PAGE).read_text(encoding="utf-8") == script.page_of(LEDGER), "python benchmarks/claims.py"


def test_the_picture_was_drawn_from_them():
    assert Image.open(ROOT / script.PICTURE).info["Source"] == drawn_from(LEDGER), "python benchmarks/claims.py"


def test_the_readme_counts_them():
    text = (ROOT / script.README).read_text(encoding="utf-8")
    assert script.with_line(text, LEDGER) == text, "python benchmarks/claims.py"
    assert text.index("docs/images/ledger.png") < text.index("docs/images/demo.png"), (
        "the ledger's picture is the first"
    )


def test_results_say_where_they_come_from():
    assert LEDGER.results
    for name, result in LEDGER.results.items():
        assert script.file_name(result) == name and result.budget != "smoke"
        git = result.environment["git"]
        assert result.commit == git["commit"] and not git["dirty"], name
        text = dump(result, "json")
        assert "/tmp" not in text and "/work" not in text and "/home" not in text, name


def test_the_scores_of_all_but_old_results_are_kept():
    assert {name for name, result in LEDGER.results.items() if not result.scores} <= OLD


@pytest.mark.parametrize("name", sorted(set(LEDGER.results) - OLD))
def test_the_verdict_follows_from_the_scores(name, monkeypatch):
    monkeypatch.setattr("ditkit.evaluation.sections.draw", lambda *_: "")  # the verdict needs no plots
    result = LEDGER.results[name]
    if result.data["source"] not in ("digits", "scenes"):
        pytest.skip("judged again only where its images are")
    found = rejudge(result, CLAIMS[result.claim])
    assert (found.verdict, found.number, found.reason) == (result.verdict, result.our_number, result.reason)


def test_a_verdict_that_does_not_follow_is_seen():
    name = next(name for name, result in LEDGER.results.items() if result.claim == "repa-samples")
    result = LEDGER.results[name]
    key = next(iter(result.scores))
    with pytest.raises(ValueError, match="no scores, or not all"):
        rejudge(
            result.model_copy(update={"scores": {k: v for k, v in result.scores.items() if k != key}}),
            CLAIMS[result.claim],
        )
    fewer = result.model_copy(update={"seeds": result.seeds[:1]})
    assert rejudge(fewer, CLAIMS[result.claim]).verdict == "undecided", "one seed decides nothing"
    elsewhere = result.model_copy(update={"data": {"source": "parquet"}})
    with pytest.raises(ValueError, match="name the images"):
        rejudge(elsewhere, CLAIMS[result.claim])


@pytest.fixture
def root(tmp_path) -> Path:
    """A repository with a README and nothing in its ledger."""
    (tmp_path / "README.md").write_text(f"# A\n\n{script.MARKS[0]}\n{script.MARKS[1]}\n\nB\n")
    return tmp_path


def run_folder(folder: Path, result) -> Path:
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(dump(result, "json"))
    return folder


def test_results_are_kept_as_they_are_and_told(root, tmp_path, capsys):
    runs = tmp_path / "runs"
    run_folder(runs / "a", a_result("repa-gain"))
    run_folder(runs / "b", a_result("repa-gain", keys="steps=800"))
    run_folder(runs / "c", a_result("repa-size", budget="smoke"))
    tried = tmp_path / "tried"
    tried.mkdir()
    (tried / "repa-gain.txt").write_text("More steps.\nNo change.\n")
    script.main([str(runs), "--tried", str(tried), "--root", str(root)])
    kept = {file.name for file in (root / script.KEPT).iterdir()}
    assert kept == {"repa-gain-digits.json", "repa-gain-digits+steps=800.json", "tried.json"}
    assert (root / script.KEPT / "repa-gain-digits.json").read_bytes() == (runs / "a" / "result.json").read_bytes()
    page, readme = (root / script.PAGE).read_text(), (root / "README.md").read_text()
    assert "Looked into: More steps. No change." in page and "`steps=800`" in page
    assert "**1 hold**" in readme and readme.startswith("# A\n") and readme.endswith("\n\nB\n")
    assert "a smoke run, left out" in capsys.readouterr().out
    script.main(["--root", str(root)])
    assert (root / "README.md").read_text() == readme and (root / script.PAGE).read_text() == page


def test_what_must_not_be_kept(root, tmp_path, capsys):
    script.main([str(run_folder(tmp_path / "a", a_result("repa-gain"))), "--root", str(root)])
    fewer = run_folder(tmp_path / "b", a_result("repa-gain", "undecided", seeds=(0,)))
    script.main([str(fewer), "--root", str(root)])
    older = run_folder(tmp_path / "c", a_result("repa-gain", "undecided", date="2025-01-01"))
    script.main([str(older), "--root", str(root)])
    out = capsys.readouterr().out
    assert "has 3, left out" in out and "is of 2026-01-02, left out" in out
    newer = run_folder(tmp_path / "d", a_result("repa-gain", "undecided", date="2026-01-03"))
    script.main([str(newer), "--root", str(root)])
    assert "undecided, was holds" in capsys.readouterr().out
    changed = a_result("repa-gain").model_copy(update={"environment": {"git": {"commit": "a", "dirty": True}}})
    for folder, said in ((run_folder(tmp_path / "e", changed), "uncommitted"), (tmp_path / "none", "no result.json")):
        with pytest.raises(SystemExit):
            script.main([str(folder), "--root", str(root)])
        assert said in capsys.readouterr().err
    assert json.loads((root / script.KEPT / "repa-gain-digits.json").read_text())["verdict"] == "undecided"
