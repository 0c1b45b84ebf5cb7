"""The claim repa-stop: what differs between its runs, and its rule."""

from __future__ import annotations

import pytest

from ditkit.config import diff
from ditkit.recipes.claims.baselines import REPA, SIT, repa
from ditkit.recipes.claims.repa_stop import HALF, QUARTER, judge
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED
from tests.recipes.claims.scored import quality
from tests.recipes.claims.tables import made_up, opened


@pytest.fixture(scope="module")
def study():
    return opened("repa-stop")


def test_runs_differ_in_when_alignment_stops(study):
    by = {trial.name: trial for trial in study.trials}
    assert list(by) == [SIT, REPA, HALF, QUARTER]
    assert by[REPA].recipe == repa(study.bed), "the common baseline"
    for name, stop in ((HALF, 400), (QUARTER, 200)):
        (only,) = diff(by[name].recipe, by[REPA].recipe)
        assert (only.key, by[name].recipe.align.stop_step) == ("align.stop_step", stop)
    assert all(m.step in range(0, 801, 100) for trial in study.trials for m in trial.measures)


@pytest.mark.parametrize(
    ("half", "verdict"),
    [((0.9, 0.92, 0.88), HOLDS), ((1.1, 1.12, 1.08), FAILS), ((0.9, 1.02, 0.88), UNDECIDED)],
)
def test_the_rule_reads_the_last_step_alone(study, half, verdict):
    def answer(trial, measure, seed):
        ratio = {HALF: half[seed], QUARTER: 2.0}.get(trial, 1.0)
        return quality(3.0 * ratio if measure.step == 800 else 9.0 / ratio)

    found = judge(made_up(study, answer))
    assert found.verdict == verdict and found.effect == pytest.approx(half)
    assert found.ours["quarter over never"] == pytest.approx([2.0] * 3)


def test_a_run_that_diverges_after_the_stop_is_worse(study):
    lost = [(HALF, seed) for seed in range(3)]
    found = judge(made_up(study, lambda trial, measure, seed: quality(1.0 + 0.01 * seed), lost=lost))
    assert found.verdict == FAILS and "not finite" in found.number
