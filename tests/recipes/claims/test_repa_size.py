"""The claim repa-size: what differs between its runs, and its rule."""

from __future__ import annotations

import pytest

from ditkit.config import diff
from ditkit.recipes.claims.baselines import REPA, SIT
from ditkit.recipes.claims.repa_size import SIZES, judge, named, ratios
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED
from tests.recipes.claims.scored import quality
from tests.recipes.claims.tables import made_up, opened


@pytest.fixture(scope="module")
def study():
    return opened("repa-size")


def table(study, gain, lost=()):
    """gain: size -> (distance with REPA over without, and what each further seed adds to it)."""

    def answer(trial, measure, seed):
        size = trial.split(", ")[1]
        first, more = gain[size]
        return quality(4.0 * (first + more * seed if trial == named(REPA, size) else 1.0))

    return made_up(study, answer, lost=lost)


def test_within_a_size_only_alignment_differs(study):
    by = {trial.name: trial.recipe for trial in study.trials}
    assert len(by) == 6
    for size in SIZES:
        pair = by[named(SIT, size)], by[named(REPA, size)]
        assert {d.key.partition(".")[0] for d in diff(*pair)} == {"align", "teachers"}
    small, large = by[named(SIT, "small")], by[named(SIT, "large")]
    assert {d.key for d in diff(small, large)} == {"model.width", "model.depth", "model.heads"}


@pytest.mark.parametrize(("large", "verdict"), [((0.7, 0.01), HOLDS), ((0.95, 0.01), FAILS), ((0.85, 0.1), UNDECIDED)])
def test_the_rule(study, large, verdict):
    found = judge(table(study, {"small": (0.9, 0.0), "medium": (0.8, 0.0), "large": large}))
    assert found.verdict == verdict
    assert found.effect[0] == pytest.approx(large[0] / 0.9)
    assert len(found.ours["ratio"]) == 3 and "small -10 %" in found.number


def test_a_lost_run_counts_against_its_side(study):
    gain = {"small": (0.9, 0.01), "medium": (0.8, 0.01), "large": (0.7, 0.01)}
    lost = [(named(REPA, "large"), seed) for seed in range(3)]
    found = judge(table(study, gain, lost=lost))
    assert found.verdict == FAILS and "not finite" in found.number
    one = judge(table(study, gain, lost=lost[:1]))
    assert one.verdict == UNDECIDED
    assert ratios(table(study, gain))["small"].tolist() == pytest.approx([0.9, 0.91, 0.92])
