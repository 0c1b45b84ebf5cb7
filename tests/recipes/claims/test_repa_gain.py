"""REPA against SiT at equal steps: what is compared, the rule, and the steps to equal quality."""

from __future__ import annotations

import math

import pytest

from ditkit.config import diff
from ditkit.recipes.claims.baselines import REPA
from ditkit.recipes.claims.repa_gain import judge, reached, steps_of
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED
from tests.recipes.claims.tables import made_up, opened


@pytest.fixture(scope="module")
def study():
    return opened("repa-gain")


def answers(factors):
    """Distances that fall as 1 / step, with REPA times its factor of the seed."""

    def answer(trial, measure, seed):
        value = (factors[seed] if trial == REPA else 1.0) / measure.step
        return {"classifier": value, "random": value, "agreement": 0.5, "validation_loss": 0.1}

    return answer


def test_runs_differ_in_alignment_alone(study):
    sit, repa = (trial.recipe for trial in study.trials)
    assert {d.key.partition(".")[0] for d in diff(sit, repa)} == {"align", "teachers"}
    assert steps_of(study.trials[0]) == steps_of(study.trials[1]) == [200, 400, 600, 800]


@pytest.mark.parametrize(
    ("factors", "verdict"),
    [
        ((0.8, 0.85, 0.82), HOLDS),
        ((1.2, 1.15, 1.18), FAILS),
        ((0.8, 1.1, 0.9), UNDECIDED),
        ((0.99, 0.6, 0.98), UNDECIDED),
    ],
)
def test_the_rule(study, factors, verdict):
    found = judge(made_up(study, answers(factors)))
    assert found.verdict == verdict
    assert found.effect == pytest.approx(factors)


def test_steps_to_equal_quality(study):
    found = judge(made_up(study, answers((0.5, 0.5, 0.5))))
    assert found.ours["times fewer"] == pytest.approx([2.0] * 3)
    assert reached([100, 200], [4.0, 1.0], 2.0) == pytest.approx(150)  # half way on logarithms
    assert reached([100, 200], [4.0, 1.0], 5.0) == 100
    assert math.isinf(reached([100, 200], [4.0, 3.0], 2.0))


def test_few_seeds_and_lost_runs(study):
    assert judge(made_up(study, answers((0.5, 0.5)), seeds=2)).verdict == UNDECIDED
    assert judge(made_up(study, answers((0.5,) * 3), lost=[(REPA, s) for s in range(3)])).verdict == FAILS
