"""The engine of `ditkit reproduce` on a made-up claim: plan, resumption, refusals, divergence, result.json."""

from __future__ import annotations

import json
import re
from typing import ClassVar

import pytest
import torch
from pydantic import Field

from ditkit.config import Settings
from ditkit.data import DataSettings
from ditkit.recipes import t2i
from ditkit.recipes.claims import CLAIMS, ask
from ditkit.recipes.reproduce import carry_out, make_plan, read_result
from ditkit.recipes.reproduce.claim import HOLDS, SCORING, TRAINING, UNDECIDED, Arm, Claim, Finding, Question
from ditkit.recipes.reproduce.pace import pace
from ditkit.training.guard import NonFinite


class TwoBudget(Settings):
    """A budget of two settings."""

    steps: int = Field(2, ge=1)
    images: int = 4


class TwoArms:
    """Two digits runs, each with two made-up scores."""

    asked: ClassVar[list] = []

    def __init__(self, q: Question):
        self.q, self.shelf = q, q.shelf
        self.data = {"source": "digits"}
        changes = {
            "model.width": 16, "model.depth": 1, "model.heads": 2, "training.batch": 4, "training.save_every": 2,
            "training.steps": q.budget.steps, "training.ema": 0.5, "sampling.steps": 1, "model.channels": 1,
            "data": DataSettings(source="digits", split="train", size=8, channels=1, caption="a {class}"),
        }  # fmt: skip
        base = t2i.digits().with_(changes)
        self.arms = [
            Arm(name, base.with_({"name": name, "training.seed": seed, "training.lr": lr}), {"x": 8, "y": 8})
            for seed in q.seeds
            for name, lr in (("a(-1.0)", 1e-4), ("b/1", 2e-4))
        ]

    def begin(self, show):
        TwoArms.asked.append("begin")

    def score(self, arm, folder, part, show):
        assert (folder / "recipe.json").is_file(), "an ordinary run"
        TwoArms.asked.append((arm.key, part))
        return {"value": float(len(arm.name))}

    def find(self, scores, folders):
        return Finding({"a": 1.5}, {"mean": float("nan"), "scores": scores}, HOLDS, "As the paper says.", [])


CLAIM = Claim(
    "two-arms", "A Paper", "Table 0", "a beats b", "Holds: always.", "digits",
    {size: TwoBudget() for size in ("smoke", "small", "gpu")}, {"small": 1}, TwoArms,
)  # fmt: skip


@pytest.fixture(autouse=True)
def made_up(monkeypatch):
    monkeypatch.setitem(CLAIMS, "two-arms", CLAIM)
    monkeypatch.setattr("ditkit.recipes.build.VALIDATION_IMAGES", 4)
    TwoArms.asked = []


def quiet(*_):
    """No progress."""


def test_a_study_from_plan_to_result_and_again(tmp_path):
    q = ask("two-arms", out=tmp_path / "out")
    plan = make_plan(q)
    assert (plan.runs, plan.trained, plan.scores, plan.scored) == (2, 0, 4, 0)
    assert plan.seconds[TRAINING] > 0 and plan.seconds[SCORING] > 0
    assert "2 runs, 4 scores" in plan.lines()[0] and "about" in plan.lines()[1]
    stages = []
    result, page = carry_out(plan, lambda stage, done, total, note="": stages.append((stage, done, total)))
    assert stages[-1] == (SCORING, 4, 4) and (TRAINING, 4, 4) in stages
    assert TwoArms.asked[0] == "begin" and len(TwoArms.asked) == 5
    assert result == read_result(tmp_path / "out")
    assert (result.verdict, result.reason, result.ours["mean"]) == (HOLDS, "As the paper says.", None)
    assert result.commands == ("ditkit reproduce two-arms --data digits --seeds 1 --budget small",)
    assert result.seconds > 0 and re.fullmatch(r"\d{4}-\d\d-\d\d", result.date)
    text = (tmp_path / "out" / "result.json").read_text() + page.read_text()
    assert str(tmp_path) not in text and "Holds: always." in page.read_text()

    again = make_plan(q)
    assert (again.trained, again.scored, sum(again.seconds.values())) == (2, 4, 0)
    asked, TwoArms.asked = TwoArms.asked, []
    repeated, _ = carry_out(again, quiet)
    assert TwoArms.asked == [] and repeated.ours == result.ours and len(asked) == 5
    more = make_plan(ask("two-arms", out=tmp_path / "out", seeds=2))
    assert (more.runs, more.trained, more.scored) == (4, 2, 4)
    with pytest.raises(ValueError, match="with 2 seeds; ask for as many or more"):
        make_plan(q)


def test_what_was_scored_before_a_kill_is_not_scored_again(tmp_path):
    q = ask("two-arms", out=tmp_path / "out")
    score = TwoArms.score

    def killed(self, arm, folder, part, show):
        if (arm.name, part) == ("b/1", "y"):
            raise KeyboardInterrupt
        return score(self, arm, folder, part, show)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TwoArms, "score", killed)
        carry_out(make_plan(q), quiet)
    assert len(TwoArms.asked) == 4
    TwoArms.asked = []
    plan = make_plan(q)
    assert (plan.trained, plan.scored) == (2, 3) and plan.seconds[TRAINING] == 0
    carry_out(plan, quiet)
    assert TwoArms.asked == ["begin", ("b-1-seed0", "y")]


def test_a_run_that_diverges_does_not_end_the_study(tmp_path, monkeypatch):
    def train(recipe, folder, device, **options):
        raise NonFinite("step 3: loss not finite")

    monkeypatch.setattr("ditkit.recipes.reproduce.study.train", train)
    said = []
    result, _ = carry_out(make_plan(ask("two-arms", out=tmp_path / "out")), quiet, said.append)
    assert set(result.ours["scores"]) == {"a-m1.0-seed0", "b-1-seed0"}
    assert all(parts == {"x": None, "y": None} for parts in result.ours["scores"].values())
    assert len(said) == 2 and "diverged" in said[0] and TwoArms.asked == ["begin"]
    again = make_plan(ask("two-arms", out=tmp_path / "out"))
    assert again.trained == 2 and carry_out(again, quiet)[0].scores == result.scores
    assert TwoArms.asked == ["begin"], "nothing is left to do"


def test_smoke_decides_nothing(tmp_path):
    result, _ = carry_out(make_plan(ask("two-arms", out=tmp_path / "out", size="smoke")), quiet)
    assert result.verdict == UNDECIDED and "smoke run" in result.reason


def test_a_folder_of_something_else_is_refused(tmp_path):
    out = tmp_path / "out"
    make_plan(ask("two-arms", out=out))
    with pytest.raises(ValueError, match="another settings; name another folder with --out"):
        make_plan(ask("two-arms", ["steps=3"], out=out))
    with pytest.raises(ValueError, match="another budget"):
        make_plan(ask("two-arms", size="gpu", out=out))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("x")
    with pytest.raises(ValueError, match="holds no study"):
        make_plan(ask("two-arms", out=tmp_path / "notes"))
    assert json.loads((out / "study.json").read_text())["settings"] == {"steps": 2, "images": 4}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"name": "two-arm"}, "did you mean 'two-arms'"),
        ({"name": "two-arms", "size": "smal"}, "did you mean 'small'"),
        ({"name": "two-arms", "seeds": 0}, "at least one"),
        ({"name": "two-arms", "keys": ["stepz=3"]}, "stepz"),
        ({"name": "two-arms", "keys": ["steps=0"]}, "steps"),
        ({"name": "two-arms", "keys": ["steps"]}, "key=value"),
    ],
)
def test_bad_questions(words, said):
    with pytest.raises(ValueError, match=said) as caught:
        ask(**words)
    assert "\n" not in str(caught.value)


def test_no_path_of_someones_images_is_told():
    q = ask("two-arms", ["steps=3"], data="/home/someone/cats", seeds=3)
    assert q.command == "ditkit reproduce two-arms --data YOUR_IMAGES --seeds 3 --budget small steps=3"


def test_pace_is_of_the_network():
    small = TwoArms(ask("two-arms")).arms[0].recipe
    large = small.with_({"model.width": 128, "model.depth": 6})
    one, two = (pace(recipe, 8, torch.device("cpu")) for recipe in (small, large))
    assert 0 < one.evaluation < two.evaluation and one.evaluation < one.training
