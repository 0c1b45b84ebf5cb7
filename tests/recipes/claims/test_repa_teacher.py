"""The claim repa-teacher: what differs between its runs, what is asked of a teacher, and its rule."""

from __future__ import annotations

import json

import pytest

from ditkit.config import diff
from ditkit.pretrained import ViTSettings
from ditkit.recipes.claims.baselines import SIT, repa
from ditkit.recipes.claims.repa_teacher import TeacherQuality, judge, lengths, named
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED
from ditkit.training.teacher import TeacherTraining, train_teacher
from tests.recipes.claims.scored import quality
from tests.recipes.claims.tables import made_up, opened

STEPS = (0, 30, 150, 600)
SMALL = ViTSettings(channels=1, patch=2, grid=(4, 4), width=24, depth=1, heads=2)
KNOWN = dict(zip(map(named, STEPS), (0.7, 0.8, 0.9, 0.95), strict=True))


@pytest.fixture(scope="module")
def study():
    return opened("repa-teacher")


def table(study, distances, known=KNOWN, lost=()):
    """distances: by teacher, seed by seed."""

    def answer(trial, measure, seed):
        if isinstance(measure, TeacherQuality):
            return dict.fromkeys(("knn", "linear", "knn_10", "linear_10"), known[trial])
        return quality(5.0 if trial == SIT else distances[trial][seed])

    return made_up(study, answer, lost=lost)


def by_order(*seeds):
    """Distances of the four teachers from a row for each seed."""
    return {name: [row[i] for row in seeds] for i, name in enumerate(KNOWN)}


@pytest.mark.parametrize("name", ["repa-teacher", "repa-teacher-nt-xent"])
def test_runs_differ_in_their_teacher_alone(name):
    study = opened(name)
    plain, *aligned = study.trials
    assert [t.name for t in aligned] == list(KNOWN) and tuple(lengths(study.bed)) == STEPS
    assert plain.recipe.align is None
    assert {t.recipe.align.similarity.kind for t in aligned} == {"nt_xent" if name.endswith("nt-xent") else "cosine"}
    assert (aligned[-1].recipe == repa(study.bed)) == (name == "repa-teacher"), "the common baseline"
    for trial in aligned[:-1]:
        keys = {d.key for d in diff(trial.recipe, aligned[0].recipe)}
        assert all(key.startswith("teachers") for key in keys)
    assert study.bed.wanted["teacher-0"].steps == 0 and study.bed.wanted["teacher-600"].steps == 600


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        (((4, 3, 2, 1), (4, 3, 1, 2), (4, 3, 2, 1)), HOLDS),
        (((1, 2, 3, 4), (2, 1, 3, 4), (1, 2, 3, 4)), FAILS),
        (((4, 3, 2, 1), (1, 2, 3, 4), (4, 3, 2, 1)), UNDECIDED),
    ],
)
def test_the_rule(study, rows, verdict):
    found = judge(table(study, by_order(*rows)))
    assert found.verdict == verdict
    assert found.effect == pytest.approx([row[3] / row[0] for row in rows])
    assert found.ours["teacher's linear probe, 10 labels a class"] == pytest.approx(KNOWN)


def test_what_cannot_be_ranked_decides_nothing(study):
    rows = by_order((4, 3, 2, 1), (4, 3, 1, 2), (4, 3, 2, 1))
    alike = judge(table(study, rows, dict.fromkeys(KNOWN, 0.9)))
    assert alike.verdict == UNDECIDED and "No rank correlation" in alike.reason
    lost = judge(table(study, rows, lost=[(named(30), 1)]))
    assert lost.verdict == UNDECIDED and lost.ours["spearman"] == []


def test_a_teacher_is_probed_on_images_that_it_has_not_seen(study, tmp_path):
    bed = study.bed
    found = {}
    for steps in (0, 25):
        place = tmp_path / f"teacher-{steps}"
        training = TeacherTraining(steps=steps, batch=48, warmup=0, network=SMALL, projector_width=64)
        made = train_teacher(bed.source, training, place)
        assert made.facts["steps"] == steps and (made.facts["loss_last"] is None) == (steps == 0)
        run = tmp_path / f"run-{steps}"
        run.mkdir()
        told = {"teachers": [{"kind": "selftaught", "source": str(place)}]}
        (run / "recipe.json").write_text(json.dumps(told))
        measure = TeacherQuality(limit=200)
        found[steps] = measure(bed, run, seed=1)
        assert found[steps] == measure(bed, run, seed=2), "a fact of the teacher, whatever the run's seed"
    assert set(found[0]) == {"knn", "linear", "knn_10", "linear_10"}
    assert found[25]["knn_10"] > found[0]["knn_10"] + 0.03
    assert TeacherQuality(limit=200).name != TeacherQuality().name
    assert TeacherQuality(limit=200).cost(bed) == 400 < TeacherQuality().cost(bed)
