"""The demo: what it compares, what it refuses, and its page on made-up findings; the whole of it at a tiny budget."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ditkit.config import diff, dump
from ditkit.diffusion import Sharing
from ditkit.evaluation import Report, make_request
from ditkit.recipes.demo import SMOKE, Budget, claim, expected_seconds, plan, run_demo
from ditkit.recipes.demo_page import page, summary
from ditkit.recipes.demo_sharing import headline, kept
from ditkit.recipes.trade_off import Distance, Point, TradeOff

TINY = replace(SMOKE, teacher_steps=2, classifier_steps=2, steps=2, images=40, pictures=10, share_images=10)


def test_the_arms_differ_by_alignment_and_by_the_recipe_of_ddt_alone(tmp_path):
    arms = plan(tmp_path / "teacher", Budget(), seed=3)
    assert list(arms) == ["SiT", "SiT + REPA", "DDT"]
    a, b, c = arms.values()
    told = {"name", "title", "source"}
    assert {d.key.partition(".")[0] for d in diff(a, b, told)} == {"align", "teachers"}
    own = {d.key for d in diff(b, c, told) if not d.key.startswith(("model", "objective.density"))}
    assert own == {"align.projector_width", "align.projector_init", "training.betas"}
    for arm in (a, b, c):
        assert (arm.training.seed, arm.training.steps, arm.data.split) == (3, Budget().steps, "train")
    assert b.teachers[0].source == c.teachers[0].source == str(tmp_path / "teacher")


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
    """The demo at two steps of everything, twice, the second time all is there already: folder, stages, findings.

    The second one is given the scores of the first, and draws the page.
    """
    out, stages, again, seen = tmp_path_factory.mktemp("demo") / "out", [], [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ditkit.recipes.demo.page", lambda found: seen.append(found) or Report("", ""))
        run_demo(out, TINY, torch.device("cpu"), lambda stage, *_: stages.append(stage))
        scored = {arm.name: arm for arm in seen[0].arms}
        patch.setattr("ditkit.recipes.demo.measure", lambda name, *_: scored[name])
        patch.setattr("ditkit.recipes.demo.page", lambda found: seen.append(found) or page(found))
        report = run_demo(out, TINY, torch.device("cpu"), lambda stage, *_: again.append(stage))
    return SimpleNamespace(out=out, report=report, stages=set(stages), again=set(again), findings=seen[1])


@pytest.mark.long
def test_every_part_is_made_and_shown_as_progress(demo):
    out, report, stages = demo.out, demo.report, demo.stages
    assert report == out / "report.html"
    for made in ("demo.json", "scores.json", "teacher/teacher.json", "sit/recipe.json", "repa/checkpoints/0000002"):
        assert (out / made).exists(), made
    assert stages == set(expected_seconds(TINY)), "the bar knows every stage, and waits for no other"
    (trade_off,) = out.glob("ddt/sharing/*/demo-trade-off.json")
    assert {f"dp-{k}.json" for k in TINY.share_budgets} <= {file.name for file in trade_off.parent.iterdir()}


@pytest.mark.long
def test_the_page_stands_alone_and_says_what_was_measured(demo):
    text = demo.report.read_text()
    assert not re.findall(r"(?:src|href)=[\"']?(?!data:|#)[^\"'>\s]+", text), "nothing is fetched"
    assert "<script" not in text
    for said in ("SiT + REPA", "Fréchet", "its random initialisation", "raw pixels", "Samples by class", "parameters"):
        assert said in text, said
    for said in ("Similarity of s", "Evaluations that run the encoder", "Speed against quality", "predicted"):
        assert said in text, said
    for said in ("Layer by layer, side by side", "Layer by layer: DDT", "CKNNA", "Probe accuracy over blocks"):
        assert said in text, said
    assert all((demo.out / run / "analysis" / "layers.json").is_file() for run in ("sit", "repa", "ddt"))
    assert "One training seed" in text


@pytest.mark.long
def test_scores_carry_their_protocol(demo):
    scores = json.loads((demo.out / "scores.json").read_text())
    assert set(scores) == {"SiT", "SiT + REPA", "DDT"} and set(scores["SiT"]) == {"classifier", "pixels", "teacher"}
    protocols = {
        json.dumps({k: v for k, v in s["protocol"].items() if k not in ("reference", "extractor")}, sort_keys=True)
        for arm in scores.values() for space in arm.values() for s in space
    }  # fmt: skip
    assert protocols and all('"n": 40' in p for p in protocols)


@pytest.mark.long
def test_what_is_finished_is_not_done_again(demo):
    assert demo.again == {"classifier"}


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


@pytest.mark.long
def test_the_headline_says_what_was_measured_also_where_alignment_lost(demo):
    found = demo.findings
    for values, said in (
        ((1.0, 2.0, 1.0), ("SiT + REPA is 100% higher", "DDT equals SiT ", "DDT is 50% lower than SiT + REPA")),
        ((2.0, 1.0, 1.0), ("SiT + REPA is 50% lower", "DDT is 50% lower than SiT ", "DDT equals SiT + REPA")),
        ((1.0, 1.0, 2.0), ("SiT + REPA equals SiT", "DDT is 100% higher than SiT ", "100% higher than SiT + REPA")),
    ):
        arms = [with_frechet(arm, value) for arm, value in zip(found.arms, values, strict=True)]
        lines = [line for line in summary(replace(found, arms=arms)) if line.startswith("Fréchet distance")]
        assert len(lines) == 3 and all(words in line for line in lines for words in said), lines
    assert any("smoke" in line.lower() for line in summary(replace(found, smoke=True)))
    assert "SiT, SiT + REPA and DDT" in page(found).title
    assert any("0.95, not 0.999" in line and "recipe is compared with recipe" in line for line in summary(found))
    assert not any("0.95" in line for line in summary(replace(found, arms=found.arms[:2])))


def trade_off(losses: dict[str, tuple[float, float, float]], encode: dict[str, tuple[int, ...]]) -> TradeOff:
    """Made up: of 25 evaluations, 5 with the encoder; rule -> (loss, its limits) and schedule."""

    def point(more: float, low: float, high: float, sharing: Sharing | None = None) -> Point:
        far = Distance(value=4 + more, more=more, more_interval=(low, high))
        faster = {"speedup": 2.5, "predicted": 2.7} if sharing else {}
        return Point(sharing=sharing, seconds=1, distances={"classifier": far}, **faster)

    rules = {rule: Sharing(rule=rule, evaluations=25, encode=encode[rule]) for rule in losses}
    return TradeOff(
        sampler="euler", images=512, rounds=8, batch=64, seed=1, labels="balanced", evaluations=25, device="cpu",
        threads=2, spaces={"classifier": "c"}, real="r", real_images=1437, classifier_accuracy=0.9,
        unshared=point(0, 0, 0), points=tuple(point(*losses[rule], sharing=rules[rule]) for rule in rules),
    )  # fmt: skip


def test_the_headline_of_sharing_tells_speed_prediction_and_loss_of_every_schedule():
    losses = {"uniform:5": (0.5, 0.25, 0.75), "dp:5": (0.5, 0.25, 0.75), "velocity:5": (-0.1, -0.3, 0.1)}
    even, other = (0, 5, 10, 15, 20), (0, 3, 7, 12, 18)
    said = headline("DDT", trade_off(losses, {"uniform:5": even, "dp:5": even, "velocity:5": other}))
    assert "at 5 of 25 steps" in said and "2.50 times as fast" in said and "predict 2.70" in said
    assert "by +0.5 (95 % limits +0.25 to +0.75) with uniform = DP on similarity" in said
    assert "by -0.1 (95 % limits -0.3 to +0.1) with DP on velocity error" in said


def test_a_trade_off_of_other_images_or_schedules_is_measured_again(tmp_path):
    known = trade_off({"dp:5": (0.5, 0.2, 0.8)}, {"dp:5": (0, 3, 7, 12, 18)})
    real = SimpleNamespace(fingerprint="r")
    judges = {"classifier": SimpleNamespace(extractor=SimpleNamespace(id="c"), reference=real)}
    file, request = tmp_path / "kept.json", make_request(512, 10, "balanced", seed=1)
    schedules = [point.sharing for point in known.points]
    assert kept(file, schedules, request, judges) is None
    file.write_text(dump(known, "json"))
    assert kept(file, schedules, request, judges) == known
    assert kept(file, schedules[:0], request, judges) is None
    assert kept(file, schedules, make_request(256, 10, "balanced", seed=1), judges) is None
    real.fingerprint = "other images"
    assert kept(file, schedules, request, judges) is None
    file.write_text("{}")
    assert kept(file, schedules, request, judges) is None
