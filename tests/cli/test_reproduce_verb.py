"""`ditkit reproduce`: the list, one line on bad input, and a killed study that continues."""

from __future__ import annotations

import json

from ditkit.recipes.claims import CLAIMS
from tests.recipes.reproduce.results import NoArms, a_claim, only_claims

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


def test_all_claims_and_one_that_fails(ditkit, tmp_path, monkeypatch):
    class Broken(NoArms):
        def find(self, scores, folders):
            raise KeyError("lost")

    only_claims(monkeypatch, one=NoArms, two=NoArms, broken=NoArms)
    words = ("reproduce", "all", "steps=4", "--seeds", "3", "--out", tmp_path / "all", "--pool", tmp_path / "runs")
    whole = ditkit(*words, "--device", "cpu")
    assert whole.exit_code == 0, whole.output
    assert "3 claims; 0 runs" in whole.stderr and "3 of 3: broken" in whole.stderr
    assert whole.stdout.count("holds") == 3 and "4 steps" in whole.stdout and "claims.md" in whole.stdout
    assert "**3 hold**" in (tmp_path / "all" / "claims.md").read_text()
    monkeypatch.setitem(CLAIMS, "broken", a_claim("broken", open=Broken))
    failed = ditkit(*words, "--device", "cpu")
    assert failed.exit_code == 2 and "1 of 3 claims failed: broken: KeyError: 'lost'" in failed.stderr
    assert failed.stdout.count("holds") == 2, "the others are done"


def test_the_pool_is_where_it_was_said(ditkit, refused, tmp_path, monkeypatch):
    pools = []

    class Where(NoArms):
        def __init__(self, q):
            super().__init__(q)
            pools.append(q.pool)

    monkeypatch.setitem(CLAIMS, "where", a_claim("where", open=Where))
    for words in ((), ("--pool", tmp_path / "mine")):
        assert ditkit("reproduce", "where", "--out", tmp_path / "a", "--device", "cpu", *words).exit_code == 0
    assert pools == [tmp_path / "pool", tmp_path / "mine"]
    assert "name the claim" in refused("reproduce", "--pool", tmp_path)
