"""`spatial`: numbers are those of the mathematics on the model's own tokens, and sentences say which block leads."""

import pytest
import torch

from ditkit.analysis.spatial import colour_regions, spatial_structure
from ditkit.pretrained import PretrainedMissing
from ditkit.recipes.analyses.spatial import ANALYSIS


def test_scores_are_those_of_the_tokens(watched, analysed, tiny_run):
    subject = watched(tiny_run)
    r = analysed(ANALYSIS, subject, t="0.2,0.8").result
    assert (r.images, r.grid, r.t, r.blocks) == (12, (4, 4), [0.2, 0.8], [1, 2])
    x = subject.noised(subject.test.latents, 0.8, subject.noise_of(subject.test))
    with torch.no_grad():
        cond = subject.null(subject.test.cond)
        tokens = subject.loaded.model(x, torch.full((12,), 0.8), cond, capture=(2,)).hidden[2]
    want = spatial_structure(tokens, (4, 4), colour_regions(subject.test.images, (4, 4)))
    got = r.scores[1][1]
    for score in ("lds", "cds", "rmsc", "region"):
        column = getattr(want, score)
        assert got.values[score] == pytest.approx(float(column.nanmean()), abs=1e-5), score
        assert got.errors[score] == pytest.approx(float(column.std() / 12**0.5), abs=1e-5)
    (name,) = r.teachers
    assert name == "toy-extractor-16-4x4-0" and r.teachers[name].values["region"] > 0.1, "cells of one colour are alike"


def test_one_model_is_shown_over_time_and_two_at_the_middle(watched, analysed, tiny_run, tiny_ddt):
    a, b = (analysed(ANALYSIS, watched(run, name), t="0.4,0.9") for run, name in ((tiny_run, "sit"), (tiny_ddt, "ddt")))
    alone = ANALYSIS.show({"": a})
    assert len(alone.panels) == 5
    assert [s.name for s in alone.panels[0].series] == ["t = 0.4", "t = 0.9", "toy-extractor-16-4x4-0"]
    lds = [s.values["lds"] for s in a.result.scores[0]]
    assert f"at t = 0.4, local structure (LDS) is highest after block {1 + lds.index(max(lds))}" in alone.said[0]
    both = ANALYSIS.show({"sit": a, "ddt": b})
    assert [s.name for s in both.panels[0].series] == ["sit", "ddt", "toy-extractor-16-4x4-0"]
    assert list(both.panels[0].series[1].y) == [s.values["lds"] for s in b.result.scores[0]]
    assert both.said[0].startswith("sit: ") and any(line.startswith("ddt: ") for line in both.said)


def test_blocks_times_and_missing_teachers(watched, analysed, tiny_run, monkeypatch):
    subject = watched(tiny_run)
    assert analysed(ANALYSIS, subject, blocks="2", t=0.5).result.blocks == [2]
    with pytest.raises(ValueError, match="blocks=3: blocks of this model count from 1 to 2"):
        analysed(ANALYSIS, subject, blocks=3)
    with pytest.raises(ValueError, match=r"t 0\.1, 2: give times from 0"):
        analysed(ANALYSIS, subject, t="0.1,2")

    def missing(*_):
        raise PretrainedMissing("teacher 'dinov2'", "it is not here")

    monkeypatch.setattr("ditkit.recipes.analyses.subject.load_teacher", missing)
    found = analysed(ANALYSIS, watched(tiny_run), t=0.5)
    assert not found.result.teachers and found.result.missing.startswith(
        "Without a teacher of the recipe: cannot load teacher 'dinov2'"
    )
    assert found.result.missing in ANALYSIS.show({"": found}).said
