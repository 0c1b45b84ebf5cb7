"""The claim sd3-shift: what differs between its runs, who judges which size, and its rule."""

from __future__ import annotations

import pytest
import torch

from ditkit.config import diff
from ditkit.recipes.claims.baselines import sit
from ditkit.recipes.claims.sd3_shift import ALPHA, HIGH, LOW, SHIFTS, ShiftedQuality, judge, name_of
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED
from ditkit.recipes.reproduce.measures import Quality
from tests.recipes.claims.scored import quality
from tests.recipes.claims.tables import made_up, opened, tiny


@pytest.fixture(scope="module")
def study():
    return opened("sd3-shift")


def test_runs_of_a_size_differ_in_the_shift_alone(study):
    by = {trial.name: trial.recipe for trial in study.trials}
    assert ALPHA == 2 and len(by) == 6
    assert by[name_of(LOW, 1)] == sit(study.bed), "the run that most claims share"
    for where, more in ((LOW, {"training.steps"}), (HIGH, set())):
        keys = {d.key for d in diff(by[name_of(where, 1)], by[name_of(where, 2)])}
        changed = keys - more
        assert changed and all(key.startswith("objective.density.") for key in changed)
        assert {d.key for d in diff(by[name_of(where, 2)], by[name_of(where, 4)])} == {"objective.density.factor"}


def test_enlarged_images_are_as_many_tokens(study):
    by = {trial.name: trial.recipe for trial in study.trials}
    low, high = by[name_of(LOW, 2)], by[name_of(HIGH, 2)]
    keys = {d.key for d in diff(low, high)}
    assert {key.partition(".")[0] for key in keys} == {"data", "model"}
    assert low.model.size == (8, 8) and high.model.size == (16, 16) and low.model.grid == high.model.grid == (4, 4)


def test_each_size_is_judged_at_its_own(study, monkeypatch):
    larger = next(t for t in study.trials if t.name == name_of(HIGH, 1)).measures[0].larger
    assert larger.bed.source.size == (16, 16) and larger.bed.source[0].image.shape == (1, 16, 16)
    asked = []

    def load(self, folder, step, weights="ema"):
        asked.append(self.source.size)
        raise LookupError

    monkeypatch.setattr(type(study.bed), "load", load)
    monkeypatch.setattr(type(study.bed), "begin", lambda self, show: asked.append("begin"))
    for measure in (ShiftedQuality(4, 1.0), ShiftedQuality(4, 2.0, larger), ShiftedQuality(4, 2.0, larger)):
        with pytest.raises(LookupError):
            measure(study.bed, None, 0)
    assert asked == [(8, 8), "begin", (16, 16), (16, 16)], "the judges are made once"


def test_the_sampler_is_shifted(study, monkeypatch, tmp_path):
    used = []
    loaded = study.trials[0]  # has the recipe, which is all that is read
    monkeypatch.setattr(type(study.bed), "load", lambda self, folder, step: loaded)
    monkeypatch.setattr(
        type(study.bed),
        "sample",
        lambda self, of, *, sampler, seed: (used.append((sampler.shift, seed)), torch.ones(1)),
    )
    monkeypatch.setattr(type(study.bed), "judge", lambda self, images, labels: {"classifier": 1.0})
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "validation_loss": 0.25}\n')
    found = ShiftedQuality(4, 2.0)(study.bed, tmp_path, 5)
    assert used == [(2.0, 5)] and found == {"classifier": 1.0, "validation_loss": 0.25}
    assert ShiftedQuality(4, 1.0).name == Quality(4).name != ShiftedQuality(4, 2.0).name, "scores are shared"


def table(study, low, high, lost=()):
    """low, high: distance with shift 2 over none, and what each further seed adds to it."""

    def answer(trial, measure, seed):
        where, shift = trial.split(", shift ")
        first, more = high if where == HIGH else low
        return quality(3.0 * (first + more * seed if shift == "2" else 1.0))

    return made_up(study, answer, lost=lost)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        ((0.95, 0.0), (0.8, 0.01), HOLDS),
        ((0.95, 0.0), (1.1, 0.01), FAILS),
        ((0.7, 0.0), (0.8, 0.01), FAILS),  # it pays, but more at the images' own size
        ((1.0, 0.0), (0.99, 0.01), UNDECIDED),
    ],
)
def test_the_rule(study, low, high, verdict):
    found = judge(table(study, low, high))
    assert found.verdict == verdict
    assert found.effect[1] == pytest.approx(sum(high))
    assert len(found.ours["training and sampling"][HIGH]) == len(SHIFTS)


def test_a_lost_run_is_not_the_best(study):
    found = judge(table(study, (1.0, 0.0), (0.8, 0.01), lost=[(name_of(HIGH, ALPHA), 1)]))
    assert found.verdict == UNDECIDED and found.ours["best"][HIGH] == [2.0, 1.0, 2.0]
    judge(table(study, (1.0, 0.0), (0.8, 0.01), lost=[(name_of(HIGH, 1.0), seed) for seed in range(3)]))


def test_latents_are_refused(tmp_path):
    q = tiny("sd3-shift", tmp_path, latents=True)
    with pytest.raises(ValueError, match="leave latents=true out"):
        q.claim.open(q)
