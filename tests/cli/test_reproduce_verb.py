"""`ditkit reproduce`: the list, one line on bad input, and a killed study that continues."""

from __future__ import annotations

import json

from ditkit.recipes.claims import CLAIMS

KEYS = ('rows=["rf/lognorm(0.00,1.00)","rf","v/cos"]', "steps=2", "images=4", "chunk=4", "classifier_steps=3")


def test_the_list_names_every_claim_with_paper_and_cost(ditkit):
    out = ditkit("reproduce").stdout
    assert CLAIMS and all(name in out for name in CLAIMS)
    assert "Table 1" in out and "Figure 4" in out and "small 25" in out


def test_bad_words(refused, tmp_path):
    assert "did you mean 'sd3-formulations'" in refused("reproduce", "sd3-formulation")
    assert "name comes first" in refused("reproduce", "steps=3")
    assert "name the claim" in refused("reproduce", "--seeds", "3")
    assert "did you mean 'small'" in refused("reproduce", "sd3-formulations", "--budget", "smal")
    assert "stepz" in refused("reproduce", "sd3-formulations", "stepz=3", "--out", tmp_path / "a")
    assert "no such file" in refused("reproduce", "sd3-formulations", "--data", "nowhere", "--out", tmp_path / "a")
    assert "only 'scenes'" in refused("reproduce", "sd3-backbones", "--data", "digits", "--out", tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_plan_progress_and_verdict(ditkit, tmp_path, monkeypatch):
    monkeypatch.setattr("ditkit.recipes.build.VALIDATION_IMAGES", 4)
    parts = {f"{steps} steps, guidance 5, ema": (steps, 5.0, "ema") for steps in (5, 25, 50)}
    monkeypatch.setattr("ditkit.recipes.claims.sd3_formulations.PARTS", parts)
    words = ("reproduce", "sd3-formulations", *KEYS, "--budget", "smoke", "--out", tmp_path / "out", "--device", "cpu")
    first = ditkit(*words)
    assert first.exit_code == 0, first.stderr
    assert "3 runs, 9 scores" in first.stderr and "as its networks were just timed" in first.stderr
    assert "all of it: about" in first.stderr and "sd3-formulations: undecided" in first.stdout
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["verdict"] == "undecided" and result["settings"]["steps"] == 2
    again = ditkit(*words)
    assert "3 runs and 9 scores of them are there" in again.stderr and again.exit_code == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["ours"] == result["ours"]
