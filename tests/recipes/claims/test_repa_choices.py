"""The claims repa-depth, repa-weight and repa-similarity: what differs between their runs, and their rules."""

from __future__ import annotations

import numpy as np
import pytest

from ditkit.config import diff
from ditkit.recipes.claims.baselines import SIT, repa
from ditkit.recipes.claims.repa_choices import COSINE, NT_XENT, aligned_block, depths, kept, robust
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED
from tests.recipes.claims.scored import quality
from tests.recipes.claims.tables import made_up, opened

CLAIMS = ("repa-depth", "repa-weight", "repa-similarity")


@pytest.fixture(scope="module")
def studies():
    return {name: opened(name) for name in CLAIMS}


def table(study, by, spread=0.01, lost=()):
    """by: trial -> distance of the first seed; each further seed scales it by 1 + spread, the next by 1 - spread."""
    factor = (1.0, 1 + spread, 1 - spread)
    return made_up(
        study, lambda trial, measure, seed: quality(by[trial] * (1 if trial == SIT else factor[seed])), lost=lost
    )


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("repa-depth", {"align.depth"}),
        ("repa-weight", {"align.weight"}),
        ("repa-similarity", {"align.similarity.kind", "align.similarity.temperature"}),
    ],
)
def test_runs_differ_in_one_choice(studies, name, keys):
    study = studies[name]
    plain, *aligned = study.trials
    usual = repa(study.bed)
    assert plain.name == SIT and plain.recipe.align is None
    assert sum(trial.recipe == usual for trial in aligned) == 1, "the common baseline is one of them"
    for trial in aligned:
        if trial.recipe != usual:
            assert {d.key for d in diff(trial.recipe, usual)} == keys | {"training.steps"}
            assert trial.recipe.training.steps == study.bed.budget.steps
        assert [m.step for m in trial.measures] == [study.bed.budget.steps]


def test_depths_follow_the_model(studies):
    assert depths(studies["repa-depth"].bed) == {"block 1": 1, "block 2": 2, "block 3": 3, "block 4": 4}
    assert list(depths(opened("repa-depth", size="gpu").bed).values()) == [3, 5, 9, 12]
    assert aligned_block(repa(studies["repa-depth"].bed)) == 2


@pytest.mark.parametrize(("last", "verdict"), [(4.0, HOLDS), (3.0, FAILS), (3.51, UNDECIDED)])
def test_early_and_last_block(studies, last, verdict):
    by = {SIT: 5.0, "block 1": 3.9, "block 2": 3.5, "block 3": 3.6, "block 4": last}
    study = studies["repa-depth"]
    wobble = (0.0, -0.1, 0.1)
    found = made_up(study, lambda trial, _, seed: quality(by[trial] + wobble[seed] * (trial == "block 2")))
    finding = study.judge(found)
    assert finding.verdict == verdict
    assert finding.effect[0] == pytest.approx(3.5 / last)
    assert finding.ours["lowest"] == ("block 4" if last == 3.0 else "block 2")


@pytest.mark.parametrize(
    ("lowest", "verdict"),
    [
        (3.2, HOLDS),  # 0.25 keeps nearly all of what 1 gains
        (4.2, FAILS),  # less than half
        (6.0, FAILS),  # worse than none
    ],
)
def test_lambda_is_judged_by_what_each_keeps(studies, lowest, verdict):
    study = studies["repa-weight"]
    by = {SIT: 5.0, "lambda 0.25": lowest, "lambda 0.5": 3.1, "lambda 0.75": 3.0, "lambda 1": 3.0}
    found = table(study, by)
    finding = study.judge(found)
    assert finding.verdict == verdict
    share = np.log(5.0 / lowest) / np.log(5.0 / 3.0)
    assert kept(found)["lambda 0.25"] == pytest.approx(share, rel=0.02)
    assert finding.effect == pytest.approx([lowest / 5 * f for f in (1.0, 1.01, 0.99)])


def test_no_gain_at_all_decides_nothing(studies):
    study = studies["repa-similarity"]
    assert robust(table(study, {SIT: 5.0, COSINE: 5.0, NT_XENT: 5.0}, spread=0.1)) == UNDECIDED
    worse = table(study, {SIT: 5.0, COSINE: 5.2, NT_XENT: 5.3}, spread=0.001)
    assert robust(worse) == FAILS
    assert all(np.isnan(value) for value in kept(worse).values())
    assert study.judge(worse).verdict == FAILS


def test_similarities(studies):
    study = studies["repa-similarity"]
    finding = study.judge(table(study, {SIT: 5.0, COSINE: 4.0, NT_XENT: 4.1}))
    assert finding.verdict == HOLDS
    assert "NT-Xent over cosine +2 %" in finding.number and finding.effect[0] == pytest.approx(4.1 / 5)
    noisy = table(study, {SIT: 5.0, COSINE: 4.0, NT_XENT: 4.9}, spread=0.05)
    assert study.judge(noisy).verdict == FAILS, "NT-Xent keeps a tenth of the gain and is behind in every seed"


def test_a_diverged_run_is_worse_than_none(studies):
    study = studies["repa-similarity"]
    by = {SIT: 5.0, COSINE: 4.0, NT_XENT: 4.1}
    lost = table(study, by, lost=[(NT_XENT, seed) for seed in range(3)])
    assert study.judge(lost).verdict == FAILS
    once = study.judge(table(study, by, lost=[(NT_XENT, 1)]))
    assert once.verdict == FAILS, "behind in every seed, and its mean gain is none"
    assert "not finite" in once.number
