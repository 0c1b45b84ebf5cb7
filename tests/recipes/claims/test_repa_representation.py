"""The claim repa-representation: what it measures, beside the analysis of layers, and its rule."""

from __future__ import annotations

import pytest

from ditkit.config import diff
from ditkit.pretrained import TeacherSettings
from ditkit.recipes.analyses import layers
from ditkit.recipes.analyses.subject import Asked, Subject
from ditkit.recipes.claims import repa_representation
from ditkit.recipes.claims.repa_representation import Knowledge, by_block, highest, judge
from ditkit.recipes.load import load
from ditkit.recipes.reproduce import carry_out, make_plan
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED
from ditkit.recipes.reproduce.pool import pool_of
from tests.recipes.claims.tables import made_up, opened, tiny


@pytest.fixture(scope="module")
def study():
    return opened("repa-representation")


@pytest.fixture
def bare(monkeypatch):
    """No drawings, which take longer than all the rest."""
    monkeypatch.setattr(repa_representation, "pages", lambda found: [])


def test_runs_differ_in_alignment_alone(study):
    sit, repa = study.trials
    assert {d.key.partition(".")[0] for d in diff(sit.recipe, repa.recipe)} == {"align", "teachers"}
    assert sit.measures == repa.measures and [m.step for m in sit.measures] == [100, 400, 800]
    assert {m.teacher for m in sit.measures} == {"teacher-600"} == set(study.bed.wanted)
    assert len({m.name for m in sit.measures}) == 3 and "teacher-600" in sit.measures[0].name


def answer(sit: tuple[float, float], repa: tuple[float, float], teacher: float = 0.95, wobble: float = 0.001):
    """Scores: (accuracy of the best block, highest CKNNA) of either trial."""

    def of(trial, measure, seed):
        best, alike = repa if "REPA" in trial else sit
        best += wobble * seed
        rows = [[best / 2, best, None, 0.1], [best, best / 4, None, 0.1]]
        return {
            "accuracy": rows, "cknna": [[alike] * 4, [None] * 4], "teacher": teacher, "best": best, "block": 2,
            "t": 0.1, "gap": teacher - best, "alike": alike * (1 + wobble * seed),
        }  # fmt: skip

    return of


WEAK, STRONG = (0.8, 0.2), (0.9, 0.4)


@pytest.mark.parametrize(
    ("made", "verdict", "parts"),
    [
        (answer(WEAK, STRONG), HOLDS, [HOLDS, HOLDS, HOLDS]),
        (answer(STRONG, WEAK), FAILS, [HOLDS, FAILS, FAILS]),
        (answer(WEAK, STRONG, teacher=0.7), FAILS, [FAILS, HOLDS, HOLDS]),
        (answer(WEAK, (0.8, 0.4)), UNDECIDED, [HOLDS, UNDECIDED, HOLDS]),
    ],
)
def test_the_rule(study, bare, made, verdict, parts):
    found = judge(made_up(study, made))
    assert found.verdict == verdict and list(found.ours["parts"].values()) == parts


def test_effect_is_the_ratio_of_errors(study, bare):
    found = judge(made_up(study, answer(WEAK, STRONG, wobble=0)))
    assert found.effect == pytest.approx([0.5] * 3) and "15 ± 0" in found.number


def test_few_seeds_and_lost_runs_decide_nothing(study, bare):
    assert judge(made_up(study, answer(WEAK, STRONG), seeds=2)).verdict == UNDECIDED
    assert judge(made_up(study, answer(WEAK, STRONG), lost=[("SiT", 2)])).verdict == UNDECIDED


def test_blocks_have_their_best_time(study):
    table = made_up(study, answer(WEAK, STRONG, wobble=0))
    rows = by_block(table, "SiT", study.trials[0].measures[-1], "accuracy")
    assert rows.shape == (3, 4) and rows[0, :2].tolist() == [0.8, 0.8] and rows[0, 3] == 0.1
    assert rows[0, 2] != rows[0, 2], "undefined at all times"
    assert highest([None, 1.0, 0.5]) == 1.0 and highest([None]) is None


def test_a_tiny_study_says_what_the_analysis_says(tmp_path, monkeypatch):
    monkeypatch.setattr(repa_representation, "LOOKED_AT", 60)
    monkeypatch.setattr(repa_representation, "LEARNED_FROM", 90)
    q = tiny("repa-representation", tmp_path / "out")
    plan = make_plan(q)
    result, _ = carry_out(plan, lambda *_, **__: None)
    assert result.verdict == UNDECIDED
    arm, measure = plan.study.arms[1], plan.study.trials[1].measures[0]
    found = result.scores[arm.key][measure.name]
    teacher = TeacherSettings(kind="selftaught", source=str(plan.study.bed.pool.made("teacher-2")))
    asked = Asked(n=60, train=90, teachers=(teacher,), data=arm.recipe.data)
    subject = Subject("again", load(pool_of(q, plan.study.shelf).run(arm)), asked)
    seen = layers.measure(subject, layers.LayersSettings(t=measure.times), lambda *_: None).result
    assert found["accuracy"] == [[look.accuracy for look in seen.looks if look.t == t] for t in measure.times]
    likeness = [[look.alike["teacher-2"].cknna for look in seen.looks if look.t == t] for t in measure.times]
    assert found["cknna"] == likeness
    assert found["teacher"] == seen.teachers["teacher-2"].own.accuracy
    assert found["gap"] == pytest.approx(seen.teachers["teacher-2"].gap) and found["best"] == seen.best.value


def test_the_name_holds_what_the_score_depends_on():
    names = {Knowledge(s, t, u).name for s in (1, 2) for t in ("a", "b") for u in ((0.1,), (0.1, 0.2))}
    assert len(names) == 8
