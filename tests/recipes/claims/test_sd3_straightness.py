"""The claim sd3-straightness: its runs, what it measures on paths that are known, and its rule."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from ditkit.config import diff
from ditkit.diffusion import Linear
from ditkit.models import Condition, Output
from ditkit.recipes import digits
from ditkit.recipes.claims import sd3_straightness
from ditkit.recipes.claims.sd3_straightness import COUNTS, MANY, SIZES, Straight, judge, lost
from ditkit.recipes.reproduce import carry_out, make_plan
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED
from tests.recipes.claims.tables import made_up, opened, tiny


@pytest.fixture(scope="module")
def study():
    return opened("sd3-straightness")


def test_runs_differ_in_size_and_length_alone(study):
    small, medium, large = (trial.recipe for trial in study.trials)
    shape = {"model.width", "model.depth", "model.heads"}
    assert {d.key for d in diff(small, large)} == shape
    assert {d.key for d in diff(small, medium)} == shape | {"training.steps"}, "the long run's checkpoint is compared"
    assert all(m.step == study.bed.budget.steps for trial in study.trials for m in trial.measures)
    assert small.training.save_every == 100 and study.bed.budget.steps % 100 == 0


@pytest.fixture
def bare(monkeypatch):
    """No drawings, which take longer than all the rest."""
    monkeypatch.setattr(sd3_straightness, "pages", lambda found: [])


class Field(torch.nn.Module):
    """A velocity field in place of a network."""

    def __init__(self, velocity):
        super().__init__()
        self.velocity, self.labels = velocity, []

    def forward(self, x, t, cond: Condition, *, capture=()):
        self.labels += cond.label.tolist()
        return Output(self.velocity(x, t))


def found_of(velocity, monkeypatch) -> tuple[dict, Field]:
    monkeypatch.setattr(sd3_straightness, "PATHS", 12)
    recipe = digits.sit().with_({"model.size": (4, 4), "model.channels": 1, "model.patch": 2})
    field = Field(velocity)
    loaded = SimpleNamespace(model=field, recipe=recipe, path=Linear(), prediction="velocity")
    budget = SimpleNamespace(chunk=5)
    bed = SimpleNamespace(load=lambda folder, step: loaded, device=torch.device("cpu"), budget=budget)
    return Straight(7)(bed, None, 0), field


def test_a_constant_velocity_is_straight(monkeypatch):
    found, field = found_of(lambda x, t: torch.full_like(x, 0.5), monkeypatch)
    assert found["length"] == pytest.approx(1) and found["straightness"] == pytest.approx(0, abs=1e-9)
    assert found["travelled"] == pytest.approx(0.5 * 4), "sixteen numbers, each moved by one half"
    assert max(found["error"]) < 1e-6 and len(found["error"]) == len(COUNTS)
    assert set(field.labels) == set(range(10)), "labels in turn"


def test_a_rotation_is_as_long_as_its_arc(monkeypatch):
    def turning(x, t):  # pairs of columns turn by a right angle in all
        first, second = x[..., :2], x[..., 2:]
        return math.pi / 2 * torch.cat([second, -first], -1)

    found, _ = found_of(turning, monkeypatch)
    assert found["length"] == pytest.approx(math.pi / 2 / math.sqrt(2), rel=1e-3), "arc over chord"
    assert found["straightness"] > 0.1 and found["error"] == sorted(found["error"], reverse=True)
    assert found["error"][0] == pytest.approx(5 / (COUNTS[0] * 4), rel=0.1), "Euler's error is about (pi/2)^2 / 2N"


def answer(excess: dict, agreement: dict):
    """Scores of sizes: excess length, and agreement with the fewest steps; with many it is 0.9."""

    def of(size, measure, seed):
        wobble = 1 + 0.01 * seed
        if isinstance(measure, Straight):
            error = [0.3, 0.2, 0.1]
            return {"length": 1 + excess[size] * wobble, "travelled": 9.0, "straightness": 0.1, "error": error}
        few = agreement[size] * wobble if measure.sampler_steps == COUNTS[0] else 0.9
        return {"classifier": 5.0, "random": 0.1, "agreement": few, "validation_loss": 1.0}

    return of


FALLING = dict(zip(SIZES, (0.3, 0.2, 0.1), strict=True))
RISING = dict(zip(SIZES, (0.5, 0.6, 0.7), strict=True))
OTHER = {size: 1 - value for size, value in RISING.items()}


@pytest.mark.parametrize(
    ("excess", "agreement", "verdict"),
    [
        (FALLING, RISING, HOLDS),
        (FALLING, OTHER, FAILS),
        (RISING, RISING, FAILS),
        (FALLING, dict.fromkeys(SIZES, 0.6), UNDECIDED),
    ],
)
def test_the_rule(study, bare, excess, agreement, verdict):
    found = judge(made_up(study, answer(excess, agreement)))
    assert found.verdict == verdict and len(found.effect) == 3
    assert found.effect == pytest.approx([excess["large"] / excess["small"]] * 3)


def test_loss_is_relative_to_many_steps(study):
    table = made_up(study, answer(FALLING, RISING))
    assert lost(table, "small", COUNTS[0])[0] == pytest.approx(1 - 0.5 / 0.9)
    assert lost(table, "small", MANY) == pytest.approx([0, 0, 0])


def test_the_page_says_where_nothing_is_lost(study, bare):
    more = judge(made_up(study, answer(FALLING, dict.fromkeys(SIZES, 0.95)))).remarks
    assert len(more) == 3 and "No model loses" in more[-1] and "30 ± 0 %" in more[0], "the error with fewest steps"
    assert len(judge(made_up(study, answer(FALLING, RISING))).remarks) == 2


def test_few_seeds_and_lost_runs_decide_nothing(study, bare):
    two = made_up(study, answer(FALLING, RISING), seeds=2)
    assert judge(two).verdict == UNDECIDED
    gone = judge(made_up(study, answer(FALLING, RISING), lost=[("large", 1)]))
    assert gone.verdict == UNDECIDED and "diverged" in gone.number


def test_a_tiny_study(tmp_path, monkeypatch):
    monkeypatch.setattr(sd3_straightness, "PATHS", 4)
    monkeypatch.setattr(sd3_straightness, "FINE", 8)
    result, page = carry_out(make_plan(tiny("sd3-straightness", tmp_path / "out")), lambda *_, **__: None)
    assert result.verdict == UNDECIDED and page.is_file()
    assert all(1 <= length < 3 for length in (1 + result.ours["excess length"][size][0] for size in SIZES))
