"""The claims sd3-backbones and sd3-dpo: equal sizes, the rules, and what they make of made-up numbers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ditkit.checkpoints import CheckpointError
from ditkit.config import diff, read_file, read_settings
from ditkit.data import DataError
from ditkit.evaluation.generate import weights_fingerprint
from ditkit.evaluation.geneval import TAGS
from ditkit.models import build_model
from ditkit.recipes import t2i
from ditkit.recipes.claims import ask, sd3_dpo
from ditkit.recipes.claims.backbone_curves import ORDER, decide, read_validations, validations
from ditkit.recipes.claims.sd3_backbones import WITHIN, BackboneStudy, backbones, count
from ditkit.recipes.claims.sd3_dpo import PreferenceStudy
from ditkit.recipes.load import load
from ditkit.recipes.registry import recipe
from ditkit.recipes.reproduce import carry_out, make_plan
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED
from ditkit.recipes.reproduce.result import Result
from ditkit.recipes.run import train


@pytest.mark.parametrize("size", ["smoke", "small", "gpu"])
def test_backbones_have_equal_size_and_equal_training(size):
    study = BackboneStudy(ask("sd3-backbones", size=size))
    models = study.models
    assert tuple(models) == ORDER
    assert [m.kind for m in models.values()] == ["joint_dit", "uvit", "cross_dit", "mmdit"]
    for model in models.values():
        assert abs(count(model) / count(models["MMDiT"]) - 1) <= WITHIN
        assert model.grid == models["MMDiT"].grid, "the transformers see as many tokens"
    first = study.arms[0].recipe
    for arm in study.arms[1:]:
        assert {d.key.partition(".")[0] for d in diff(first, arm.recipe, {"name", "title"})} == {"model"}


def test_counts_are_of_the_real_networks():
    for model in backbones(t2i.scenes().with_({"model.width": 96}).model).values():
        assert count(model) == sum(p.numel() for p in build_model(model).parameters())
    with pytest.raises(ValueError, match="within 5%; choose a larger width"):
        backbones(t2i.scenes().with_({"model.width": 16, "model.depth": 1}).model)


PAPER = {name: [loss, loss + 0.02, loss - 0.02] for name, loss in zip(ORDER, (0.9, 0.8, 0.7, 0.6), strict=True)}
EVEN = dict.fromkeys(ORDER, 0.5)


def test_the_rule_of_the_backbones():
    verdict, reason = decide(PAPER, EVEN, 0.6)
    assert verdict == HOLDS and "clearly below DiT and UViT and CrossDiT, clearly above none" in reason
    assert "1.00 (p = 0.083)" in reason
    assert decide({name: losses[:2] for name, losses in PAPER.items()}, EVEN, 0.6)[0] == UNDECIDED  # too few seeds
    assert decide(PAPER, {**EVEN, "DiT": 0.7}, 0.6)[0] == UNDECIDED  # lowest loss, but another follows prompts better
    noisy = {**PAPER, "CrossDiT": [0.61, 0.61, 0.7]}
    assert decide(noisy, EVEN, 0.6)[0] == UNDECIDED  # MMDiT is lower on average, not in every seed
    beaten = {**PAPER, "UViT": [0.5, 0.52, 0.48]}
    assert decide(beaten, EVEN, 0.6)[0] == UNDECIDED
    assert decide(beaten, {**EVEN, "UViT": 0.7}, 0.6)[0] == FAILS
    assert decide(beaten, {**EVEN, "DiT": 0.7}, 0.6)[0] == UNDECIDED  # not the same backbone
    lost = {**PAPER, "MMDiT": [0.6, 0.62, math.inf]}
    assert decide(lost, EVEN, 0.6)[0] == UNDECIDED
    assert decide({**PAPER, "DiT": [math.inf] * 3}, EVEN, 0.6)[0] == HOLDS, "what diverges is worst"


@pytest.fixture(scope="module")
def study() -> BackboneStudy:
    return BackboneStudy(ask("sd3-backbones", size="smoke", seeds=3))


def made_up(study: BackboneStudy, losses: dict[str, list[float]], tmp_path, overall: dict[str, float] = EVEN):
    """The finding of a table of losses and scores, without any run."""
    told = {tag: 0.5 for tag in TAGS}
    scores = {
        arm.key: {
            "geneval": {
                "overall": overall[arm.name], "interval": [0.4, 0.6], "scores": told, "shuffled": told, "step": 4,
                "validations": [{"step": 4, "losses": [[0.0625, 99.0], [0.5, losses[arm.name][arm.seed]]]}],
            }
            if math.isfinite(losses[arm.name][arm.seed])
            else None
        }
        for arm in study.arms
    }  # fmt: skip
    return study.find(scores, {arm.key: tmp_path / arm.key for arm in study.arms})


def test_backbones_are_judged_by_their_scores_alone(study, tmp_path):
    found = made_up(study, PAPER, tmp_path)
    assert found.verdict == HOLDS and found.ours["order, worst first"] == list(ORDER)
    assert found.effect == pytest.approx([0.6 / 0.7, 0.62 / 0.72, 0.58 / 0.68])
    assert "MMDiT 0.6 ± 0.02" in found.number
    assert made_up(study, {**PAPER, "UViT": [0.5, 0.52, 0.48]}, tmp_path, {**EVEN, "UViT": 0.7}).verdict == FAILS
    lost = made_up(study, {**PAPER, "MMDiT": [0.6, math.inf, 0.6]}, tmp_path)
    assert lost.verdict == UNDECIDED and "diverged in 1 of 3" in lost.number


def test_validation_is_over_seven_times(tmp_path):
    row = {"step": 4, "validation_loss": 99.0, **{f"validation_loss_t{(k + 0.5) / 8:g}": float(k) for k in range(8)}}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in ({"step": 3, "loss": 1.0}, row)))
    read = read_validations(tmp_path)
    assert [r["step"] for r in read] == [4] and len(read[0]["losses"]) == 8
    assert validations({"validations": read}) == [(4, 4.0)]
    read[0]["losses"][3][1] = None
    assert validations({"validations": read}) == [(4, math.inf)] and validations(None) == []


@pytest.mark.parametrize("name", ["sd3-backbones", "sd3-dpo"])
def test_only_scenes_can_be_examined(name):
    with pytest.raises(DataError, match="only 'scenes'"):
        ask(name).claim.open(ask(name, data="digits"))


def test_the_rule_of_preference_tuning():
    assert sd3_dpo.decide(0.5, [0.6, 0.7, 0.6], [0.55, 0.6, 0.5])[0] == HOLDS
    assert sd3_dpo.decide(0.5, [0.6, 0.7], [0.55, 0.6])[0] == UNDECIDED, "too few seeds"
    assert sd3_dpo.decide(0.5, [0.6, 0.7, 0.6], [0.55, 0.6, 0.6])[0] == UNDECIDED, "no better than the winners alone"
    verdict, reason = sd3_dpo.decide(0.5, [0.4, 0.4, 0.3], [0.5, 0.5, 0.5])
    assert verdict == FAILS and "above the base in 0 of 3 seeds" in reason


def test_preference_tuning_is_told(tmp_path, monkeypatch):
    """The study itself has its own tests: here its result, and a base too weak for pairs."""
    run = {"overall": 0.7, "tasks": dict.fromkeys(TAGS, 0.7)}
    base = {"overall": 0.5, "tasks": dict.fromkeys(TAGS, 0.5)}
    made = {"base": base, "pairs": {"pairs": 9}, "arms": {"dpo": [run] * 3, "winners": [base] * 3}, "paragraph": "P."}
    q = ask("sd3-dpo", size="smoke", seeds=3, out=tmp_path)
    study = PreferenceStudy(q)
    (arm,) = study.arms
    monkeypatch.setattr(sd3_dpo, "preference_study", lambda *_, **__: made)
    found = study.find({arm.key: {study.part: study.score(arm, tmp_path, study.part, lambda *_: None)}}, {})
    assert found.verdict == HOLDS and found.ours["dpo"] == [0.7] * 3 and found.paper == {"before": 0.68, "after": 0.71}
    assert "paper: SD3 depth 38" in found.sections[0].body

    def refuse(*_, **__):
        raise sd3_dpo.NoPairs("no pairs: the base is right too seldom")

    monkeypatch.setattr(sd3_dpo, "preference_study", refuse)
    weak = study.score(arm, tmp_path, study.part, lambda *_: None)
    found = study.find({arm.key: {study.part: weak}}, {})
    assert found.verdict == UNDECIDED and "too seldom" in found.reason


def test_the_kept_result_follows_from_its_numbers():
    """It was made before results kept their scores: its verdict, reason and commands come from `ours` alone."""
    file = Path(__file__).parents[3] / "benchmarks" / "results" / "2026-11-21-sd3-dpo-scenes-cpu.json"
    result = read_settings(Result, read_file(file), str(file))
    ours = result.ours
    assert sd3_dpo.decide(ours["base"], ours["dpo"], ours["winners"]) == (result.verdict, result.reason)
    assert result.rule == sd3_dpo.RULE and result.published == {"before": 0.68, "after": 0.71}


def test_a_result_is_judged_again_without_its_base():
    run = {"overall": 0.6, "tasks": dict.fromkeys(TAGS, 0.6)}
    base = {"overall": 0.5, "tasks": dict.fromkeys(TAGS, 0.5)}
    made = {"base": base, "pairs": {"pairs": 9}, "arms": {"dpo": [run] * 3, "winners": [base] * 3}, "paragraph": "P."}
    budget = sd3_dpo.SMALL.with_({"base": "t2i.scenes, weights d1b1bc3fbeb7c0f5"})
    q = replace(ask("sd3-dpo", seeds=3), budget=budget)
    study = PreferenceStudy(q)
    found = study.find({study.arms[0].key: {study.part: made}}, {})
    assert (
        found.verdict == HOLDS
        and found.effect == pytest.approx([0.8] * 3)
        and "0.600 ± 0.000 after DPO" in found.number
    )
    with pytest.raises(CheckpointError, match="no such run"):
        make_plan(replace(q, out=Path("nowhere")))
    assert not Path("nowhere").exists()


@pytest.mark.long
def test_a_tiny_backbone_study_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("ditkit.recipes.build.VALIDATION_IMAGES", 4)
    monkeypatch.setattr("ditkit.recipes.claims.sd3_backbones.SAMPLE_STEPS", 1)
    plan = make_plan(ask("sd3-backbones", size="smoke", out=tmp_path / "out"))
    result, page = carry_out(plan, lambda *_: None)
    assert result.verdict == UNDECIDED and set(result.ours["backbones"]) == set(ORDER)
    assert all(row["validation loss"] > 0 for row in result.ours["backbones"].values())
    for said in ("GenEval, scenes", "Loss by time", "worst first", "parameters"):
        assert said in page.read_text(), said


def test_a_finished_base_is_tuned_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("ditkit.recipes.build.VALIDATION_IMAGES", 4)
    monkeypatch.setattr("ditkit.recipes.run.PREVIEW", 2)
    base, out = tmp_path / "mine", tmp_path / "out"
    tiny = {
        "model.depth": 1, "model.width": 32, "model.heads": 2, "training.batch": 4, "training.steps": 2,
        "training.ema": 0.5, "training.validate_every": None, "sampling.steps": 1,
    }  # fmt: skip
    train(recipe("t2i.scenes").with_(tiny), base, torch.device("cpu"))
    before = sorted((f, f.stat().st_mtime_ns) for f in base.rglob("*"))
    plan = make_plan(ask("sd3-dpo", [f"base={base}", "steps=1"], size="smoke", out=out))
    assert (plan.runs, plan.trained) == (1, 1), "nothing of the base is trained again"
    result, page = carry_out(plan, lambda *_: None)
    assert sorted((f, f.stat().st_mtime_ns) for f in base.rglob("*")) == before and not (out / "runs").exists()
    told = result.settings
    assert [told[key] for key in ("base_steps", "batch", "width", "depth", "steps")] == [2, 4, 32, 1, 1]
    assert told["base"] == f"t2i.scenes, weights {weights_fingerprint(load(base).model)}"
    for file in (out / "result.json", out / "study.json", page):
        assert str(tmp_path) not in file.read_text()
    assert "base=YOUR_RUN steps=1" in result.commands[0]
    assert sorted(f.name for f in (out / "tuned" / "runs").iterdir()) == ["dpo-0", "winners-0"], "all stages run"
    assert result.ours["pairs"] == 8 and "pairs at random" in result.reason and "pairs at random" in page.read_text()


def test_a_base_brings_its_own_sizes(tmp_path, tiny_text):
    with pytest.raises(ValueError, match="width=64: base=RUN brings its own"):
        make_plan(ask("sd3-dpo", ["base=there", "width=64"], out=tmp_path / "out"))
    with pytest.raises(ValueError, match="tiny-text is no run"):
        make_plan(ask("sd3-dpo", [f"base={tiny_text}"], out=tmp_path / "out"))
