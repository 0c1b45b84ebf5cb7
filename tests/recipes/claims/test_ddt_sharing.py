"""The claim ddt-sharing: what is tried, and its rule."""

from __future__ import annotations

import itertools

import pytest
import torch

from ditkit.diffusion import uniform_schedule
from ditkit.evaluation.sections import text
from ditkit.recipes.claims import ddt_sharing
from ditkit.recipes.claims.ddt_arms import DDT
from ditkit.recipes.claims.ddt_sharing import KINDS, EveryBudget, budgets, judge, moved
from ditkit.recipes.reproduce import carry_out, make_plan
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED
from tests.recipes.claims.scored import quality
from tests.recipes.claims.tables import made_up, opened, tiny

STEPS = 6


@pytest.fixture
def bare(monkeypatch):
    """No drawings, which take longer than all the rest."""
    monkeypatch.setattr(ddt_sharing, "drawn", lambda *_, **__: text("", ""))


@pytest.fixture(scope="module")
def study():
    return opened("ddt-sharing")


def table(study, ratio, wobble=0.0, seeds=3, lost=()):
    """ratio: the dynamic programme's distance over the uniform one's at budgets that are neither 1 nor all."""

    def answer(trial, measure, seed):
        if not isinstance(measure, EveryBudget):
            return quality(1.0)
        points = []
        for k in range(1, STEPS + 1):
            for kind in KINDS:
                ends = k in (1, STEPS)
                better = 1.0 if kind != "dp" else 3.0 if ends else ratio * (1 + wobble * seed)
                encode = uniform_schedule(STEPS, k)
                made = {"kind": kind, "budget": k, "encode": encode, "speedup": STEPS / k, "moved": better}
                points.append({**made, **quality((2 - k / STEPS) * better)})
        return {"evaluations": STEPS, "unshared": quality(1.0), "points": points}

    return made_up(study, answer, seeds=seeds, lost=lost)


def test_every_budget_up_to_twenty_then_spread():
    assert budgets(16) == list(range(1, 17))
    many = budgets(250)
    assert many[0] == 1 and many[-1] == 250 and len(many) == 20
    gaps = [b - a for a, b in itertools.pairwise(many)]
    assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    ("ratio", "wobble", "verdict"), [(0.9, 0.01, HOLDS), (1.1, 0.01, FAILS), (0.97, 0.04, UNDECIDED)]
)
def test_the_rule_leaves_the_ends_out(study, bare, ratio, wobble, verdict):
    found = judge(table(study, ratio, wobble))
    assert found.verdict == verdict
    assert found.effect == pytest.approx([ratio * (1 + wobble * seed) for seed in range(3)])
    assert found.ours["velocity over uniform"] == pytest.approx([1.0] * 3)


def test_the_fifth_is_told(study, bare):
    found = judge(table(study, 0.9))
    # one encoder run of six is nearest to a fifth; there the ends' factor 3 stands
    assert f"with 1 of {STEPS} encoder runs +450 % ± 0 (dynamic programme) and +83 % ± 0 (uniform)" in found.number
    assert "at 4 of 4 budgets" in found.reason


def test_few_seeds_and_lost_runs_decide_nothing(study, bare):
    assert judge(table(study, 0.9, seeds=2)).verdict == UNDECIDED
    assert judge(table(study, 0.9, lost=[(DDT, 0)])).verdict == UNDECIDED
    gone = judge(table(study, 0.9, lost=[(DDT, seed) for seed in range(3)]))
    assert gone.verdict == UNDECIDED and gone.ours["budgets"] == []


def test_movement_is_the_rms_in_grey_levels():
    base = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    images = base.clone()
    images[0, 0, 0, 0] = 200
    assert moved(base, base) == 0
    assert moved(images, base) == pytest.approx((200**2 / 8) ** 0.5)


def test_a_tiny_study(tmp_path):
    plan = make_plan(tiny("ddt-sharing", tmp_path / "out", sampler_steps=4))
    result, page = carry_out(plan, lambda *_, **__: None)
    assert result.verdict == UNDECIDED and page.is_file()
    (scores,) = result.scores.values()
    (row,) = (value for name, value in scores.items() if name.startswith("sharing"))
    points = {(p["kind"], p["budget"]): p for p in row["points"]}
    assert row["evaluations"] == 4 and len(points) == 3 * 4
    for kind in KINDS:
        assert points[kind, 1]["encode"] == [0] and points[kind, 4]["encode"] == [0, 1, 2, 3]
        whole = points[kind, 4]
        assert whole["moved"] == 0 and whole["speedup"] == pytest.approx(1.0)
        assert {key: whole[key] for key in row["unshared"]} == row["unshared"]
    assert points["uniform", 2]["encode"] == [0, 2]
    assert points["uniform", 1]["speedup"] > points["uniform", 2]["speedup"] > 1
