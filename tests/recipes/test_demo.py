"""The demo: what it compares, what it refuses, and its page on made-up findings; the whole of it at a tiny budget."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ditkit.config import diff
from ditkit.recipes.demo import SMOKE, Budget, claim, plan, run_demo
from ditkit.recipes.demo_page import page, summary

TINY = replace(SMOKE, teacher_steps=2, classifier_steps=2, steps=2, images=40, pictures=10)


def test_the_arms_differ_by_alignment_alone(tmp_path):
    arms = plan(tmp_path / "teacher", Budget(), seed=3)
    assert list(arms) == ["SiT", "SiT + REPA"]
    a, b = arms.values()
    keys = {d.key.partition(".")[0] for d in diff(a, b, {"name", "title", "source"})}
    assert keys == {"align", "teachers"}
    for arm in (a, b):
        assert (arm.training.seed, arm.training.steps, arm.data.split) == (3, Budget().steps, "train")
    assert b.teachers[0].source == str(tmp_path / "teacher")


def test_a_folder_is_claimed_for_one_budget_and_seed(tmp_path):
    out = tmp_path / "demo"
    claim(out, TINY, 0)
    claim(out, TINY, 0)
    assert json.loads((out / "demo.json").read_text())["seed"] == 0
    for budget, seed in ((TINY, 1), (SMOKE, 0)):
        with pytest.raises(ValueError, match="another budget or seed"):
            claim(out, budget, seed)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("x")
    (tmp_path / "file").write_text("x")
    for taken in ("other", "file"):
        with pytest.raises(ValueError, match="holds no demo"):
            claim(tmp_path / taken, TINY, 0)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo at two steps of everything, twice, the second time all is there already: folder, stages, findings."""
    out, stages, again, kept = tmp_path_factory.mktemp("demo") / "out", [], [], []
    run_demo(out, TINY, torch.device("cpu"), lambda stage, *_: stages.append(stage))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ditkit.recipes.demo.page", lambda found: kept.append(found) or page(found))
        report = run_demo(out, TINY, torch.device("cpu"), lambda stage, *_: again.append(stage))
    return SimpleNamespace(out=out, report=report, stages=set(stages), again=set(again), findings=kept[0])


def test_every_part_is_made_and_shown_as_progress(demo):
    out, report, stages = demo.out, demo.report, demo.stages
    assert report == out / "report.html"
    for made in ("demo.json", "scores.json", "teacher/teacher.json", "sit/recipe.json", "repa/checkpoints/0000002"):
        assert (out / made).exists(), made
    assert {"teacher", "classifier", "SiT", "SiT + REPA", "samples of SiT", "scores of SiT + REPA"} <= stages


def test_the_page_stands_alone_and_says_what_was_measured(demo):
    text = demo.report.read_text()
    assert not re.findall(r"(?:src|href)=[\"']?(?!data:|#)[^\"'>\s]+", text), "nothing is fetched"
    assert "<script" not in text
    for said in ("SiT + REPA", "Fréchet", "its random initialisation", "raw pixels", "Samples by class", "parameters"):
        assert said in text, said
    assert "One training seed" in text


def test_scores_carry_their_protocol(demo):
    scores = json.loads((demo.out / "scores.json").read_text())
    assert set(scores) == {"SiT", "SiT + REPA"} and set(scores["SiT"]) == {"classifier", "pixels", "teacher"}
    protocols = {
        json.dumps({k: v for k, v in s["protocol"].items() if k not in ("reference", "extractor")}, sort_keys=True)
        for arm in scores.values() for space in arm.values() for s in space
    }  # fmt: skip
    assert protocols and all('"n": 40' in p for p in protocols)


def test_what_is_finished_is_not_done_again(demo):
    assert not {"teacher", "SiT", "SiT + REPA"} & demo.again
    assert "classifier" in demo.again


def with_frechet(arm, value: float):
    """The arm with this Frechet distance, measured exactly, in every space."""
    changes = {"value": value, "interval": (value, value)}
    return replace(
        arm,
        scores={
            space: [score.model_copy(update=changes) if score.metric == "frechet" else score for score in scores]
            for space, scores in arm.scores.items()
        },
    )


def test_the_headline_says_what_was_measured_also_where_alignment_lost(demo):
    found = demo.findings
    for values, said in (((1.0, 2.0), "100% higher"), ((2.0, 1.0), "50% lower"), ((1.0, 1.0), "equals")):
        arms = [with_frechet(arm, value) for arm, value in zip(found.arms, values, strict=True)]
        lines = [line for line in summary(replace(found, arms=arms)) if line.startswith("Fréchet distance")]
        assert len(lines) == 3 and all(said in line for line in lines), lines
    assert any("smoke" in line.lower() for line in summary(replace(found, smoke=True)))
    assert "SiT and SiT + REPA" in page(found).title
