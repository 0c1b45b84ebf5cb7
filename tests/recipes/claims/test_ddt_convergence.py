"""The claim ddt-convergence: what differs between its runs, and its rule."""

from __future__ import annotations

import pytest

from ditkit.config import diff
from ditkit.evaluation.sections import text
from ditkit.recipes.claims import ddt_convergence
from ditkit.recipes.claims.baselines import REPA, SIT
from ditkit.recipes.claims.ddt_arms import DDT, IMPROVED, IMPROVED_REPA, check_equal, ddt, fewest
from ditkit.recipes.claims.ddt_convergence import OTHERS, judge
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED
from tests.recipes.claims.scored import quality
from tests.recipes.claims.tables import made_up, opened

FINAL = {SIT: 2.0, REPA: 1.8, IMPROVED: 1.6, IMPROVED_REPA: 1.4, DDT: 1.0}


@pytest.fixture
def bare(monkeypatch):
    """No drawings, which take longer than all the rest."""
    monkeypatch.setattr(ddt_convergence, "over_training", lambda *_, **__: text("", ""))


@pytest.fixture(scope="module")
def study():
    return opened("ddt-convergence")


def table(study, final, wobble=0.01, lost=()):
    """final: trial -> distance at the last step, which falls there as 1 / step; wobble: what a seed adds to DDT's."""
    last = study.bed.budget.checkpoints[-1]

    def answer(trial, measure, seed):
        more = 1 + wobble * seed if trial == DDT else 1
        return quality(final[trial] * more * last / measure.step)

    return made_up(study, answer, lost=lost)


def test_only_what_is_compared_differs(study):
    by = {trial.name: trial.recipe for trial in study.trials}
    assert list(by) == [*OTHERS, DDT]
    changed = {
        (SIT, REPA): {"align", "teachers"},
        (IMPROVED, IMPROVED_REPA): {"align", "teachers"},
        (IMPROVED_REPA, DDT): {"model"},
        (SIT, IMPROVED): {"model", "objective", "training"},  # training: the baseline runs longer
    }
    for (one, other), keys in changed.items():
        assert {d.key.partition(".")[0] for d in diff(by[one], by[other])} == keys
    split = {d.key for d in diff(by[IMPROVED_REPA], by[DDT])}
    assert split == {"model.encoder_blocks", "model.decoder_blocks"}
    assert {d.key for d in diff(by[SIT], by[IMPROVED]) if d.key.startswith("training")} == {"training.steps"}
    assert by[DDT].align.depth <= by[DDT].model.encoder_blocks


def test_networks_have_as_many_parameters(study):
    recipes = [trial.recipe for trial in study.trials]
    counts = check_equal(recipes)
    assert max(counts) <= 1.05 * min(counts)
    wide = recipes[-1].with_({"model.width": 80})
    with pytest.raises(ValueError, match="not equal"):
        check_equal([recipes[0], wide])


def test_the_largest_encoder_is_the_papers():
    assert [fewest(depth) for depth in (2, 4, 6, 12, 24)] == [1, 1, 1, 2, 4]


def test_short_encoders_are_aligned_at_their_end(study):
    assert ddt(study.bed, "medium", decoder=3).align.depth == 1
    assert ddt(study.bed, "medium", decoder=1).align.depth == 2


@pytest.mark.parametrize(
    ("changes", "wobble", "verdict"),
    [
        ({}, 0.01, HOLDS),
        ({DDT: 1.5}, 0.01, FAILS),
        ({DDT: 1.3}, 0.05, UNDECIDED),
        ({SIT: 0.9}, 0.01, FAILS),
    ],
)
def test_the_rule(study, bare, changes, wobble, verdict):
    found = judge(table(study, {**FINAL, **changes}, wobble))
    assert found.verdict == verdict and len(found.effect) == 3


def test_numbers_are_of_the_last_step(study):
    found = judge(table(study, FINAL, wobble=0.0))
    assert found.effect == pytest.approx([1 / 1.4] * 3)
    assert "-50 % ± 0 against SiT," in found.number
    assert found.ours["times fewer steps"][SIT] == pytest.approx([2.0] * 3)
    assert found.ours["distance"][DDT][0] == pytest.approx([400 / step for step in study.bed.budget.checkpoints])


def test_lost_runs_and_few_seeds(study, bare):
    assert judge(table(study, FINAL, lost=[(DDT, 0), (DDT, 1), (DDT, 2)])).verdict == FAILS
    assert judge(table(study, FINAL, lost=[(DDT, 1)])).verdict == UNDECIDED
    assert judge(made_up(study, lambda trial, measure, seed: quality(FINAL[trial]), seeds=2)).verdict == UNDECIDED
