"""A study of runs on one testbed: its arms, scores that are asked once, the table that the judge sees, its page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from ditkit.recipes.reproduce.claim import HOLDS, Finding, Question
from ditkit.recipes.reproduce.comparison import PAPERS, Comparison, Trial, check_saved, claim
from ditkit.recipes.reproduce.measures import Quality, distance
from ditkit.recipes.reproduce.shown import numbers, over_training, scores, series
from ditkit.recipes.reproduce.testbed import SMOKE


@dataclass(frozen=True)
class Told:
    """A measure that tells what it was asked for."""

    more: int = 0

    @property
    def name(self) -> str:
        return f"told {self.more}"

    def cost(self, bed) -> float:
        return 3.0 * bed.budget.images

    def __call__(self, bed, folder, seed):
        return {"seed": seed, "folder": folder.name, "more": self.more}


def trials(bed):
    """A small and a medium SiT."""
    return [Trial("small", bed.sit("small"), [Told(), Quality(4)]), Trial("medium", bed.sit(), [Told(1), Quality(4)])]


def judge(found):
    """The table in sections; the verdict is told."""
    steps = {trial.name: [4] for trial in found.trials}
    told = [scores(found), over_training(found, steps)]
    ours = numbers(found, [Quality(4), Told(1)], "agreement")
    return Finding(
        {}, ours, HOLDS, "-", told, effect=(found.distance("small", 4) / found.distance("medium", 4)).tolist()
    )


@pytest.fixture
def study(tmp_path) -> Comparison:
    """Of two seeds."""
    made = claim("made-up", (PAPERS["DiT"], "Table 0"), "-", "-", trials=trials, judge=judge, number="1", minutes=1)
    return Comparison(Question(made, "smoke", SMOKE, "digits", (0, 1), tmp_path / "out"), trials, judge)


def quality(classifier: float, random: float = 1.0) -> dict:
    return {"classifier": classifier, "random": random, "agreement": 0.5, "validation_loss": 0.25}


def test_every_trial_is_run_with_every_seed(study):
    assert [(arm.name, arm.seed) for arm in study.arms] == [(n, s) for s in (0, 1) for n in ("small", "medium")]
    assert len({arm.file for arm in study.arms}) == len({arm.key for arm in study.arms}) == 4
    assert study.arms[0].parts == {"told 0": 36.0, "quality@4": 12 * 2}
    assert study.shelf == study.bed.shelf and study.data["source"] == "digits"


def test_a_score_is_its_measure_of_its_run(study, tmp_path):
    arm = study.arms[3]
    assert study.score(arm, tmp_path / "run", "told 1", print) == {"seed": 1, "folder": "run", "more": 1}


def test_the_table_and_what_the_page_shows(study):
    known = {
        arm.key: {
            "told 0": None,
            "told 1": {"agreement": 7.0},
            "quality@4": quality(4.0 if arm.name == "small" else 1.0),
        }
        for arm in study.arms
    }
    known[study.arms[3].key]["quality@4"] = None  # diverged
    finding = study.find(known, {arm.key: study.q.out for arm in study.arms})
    assert finding.effect == [2.0, 0.0], "the diverged one is infinitely far"
    assert finding.ours["small"] == {"quality@4": [0.5, 0.5]}
    assert finding.ours["medium"]["told 1"] == [7.0, 7.0]
    assert finding.ours["medium"]["quality@4"][0] == 0.5 and np.isnan(finding.ours["medium"]["quality@4"][1])
    assert "diverged in 1 of 2" in finding.sections[0].body and "small" in finding.sections[0].body


def test_two_trials_with_one_name_are_refused(study):
    with pytest.raises(ValueError, match="two trials have one name"):
        Comparison(study.q, lambda bed: trials(bed)[:1] * 2, judge)


@pytest.mark.parametrize("step", [3, 9], ids=["between checkpoints", "after the end"])
def test_a_step_that_no_run_will_keep_is_refused_before_training(study, step):
    recipe = study.trials[0].recipe.with_({"training.steps": 8, "training.save_every": 2})
    check_saved(Trial("a", recipe, [Quality(8), Quality(2)]))
    with pytest.raises(ValueError, match=f"a is asked for step {step}, but is trained for 8 steps"):
        check_saved(Trial("a", recipe, [Quality(step)]))


def test_the_distance_needs_both_spaces():
    assert distance(quality(4.0, 9.0)) == pytest.approx(6.0) and distance(None) == float("inf")
    assert distance({"classifier": None, "random": 1.0}) == float("inf")  # type: ignore[dict-item]


def test_a_measure_is_named_by_what_its_value_depends_on(study):
    one, two = Quality(4), Quality(4, sampler_steps=8)
    assert one.name != two.name and one == Quality(4) and two.cost(study.bed) == 8 * SMOKE.images


def test_lines_leave_out_what_is_not_finite():
    line = series("x", [1, 2, 3], [np.array([1.0, 2.0]), np.array([1.0, np.inf]), np.array([3.0, 3.0])])
    assert (list(line.x), list(line.y), list(line.limits)) == ([1, 3], [1.5, 3.0], [(1.0, 2.0), (3.0, 3.0)])
