"""`spatial`: numbers are those of the mathematics on the model's own tokens, and sentences say which block leads."""

import pytest
import torch

from ditkit.analysis.spatial import Structure, colour_regions, spatial_structure
from ditkit.pretrained import PretrainedMissing
from ditkit.recipes.analyses.analysis import Found
from ditkit.recipes.analyses.spatial import ANALYSIS, peak_of


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
    block = a.result.peaks["lds"][0].block
    assert f"at t = 0.4, local structure (LDS) is highest after block {block}" in alone.said[0]
    both = ANALYSIS.show({"sit": a, "ddt": b})
    assert [s.name for s in both.panels[0].series] == ["sit", "ddt", "toy-extractor-16-4x4-0"]
    assert list(both.panels[0].series[1].y) == [s.values["lds"] for s in b.result.scores[0]]
    assert both.said[0].startswith("sit: ") and any(line.startswith("ddt: ") for line in both.said)


def structure(lds):
    """Of so many images: this LDS, and nothing else."""
    flat = torch.zeros_like(lds)
    return Structure(lds, flat, flat, flat, torch.zeros(len(lds), 3))


def test_the_block_is_chosen_on_one_half_and_judged_image_by_image_on_the_other():
    images = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lucky = images.clone()
    lucky[::2] += 3  # where it is chosen
    lucky[1::2] -= 1
    seen = {1: structure(images), 2: structure(lucky), 3: structure(images - 1.01 + 0.001 * images.roll(1))}
    peak = peak_of("lds", seen)
    assert peak is not None and peak.block == 2 and peak.each == lucky[1::2].tolist()
    assert peak.value == pytest.approx(float(lucky[1::2].mean())) and peak.rivals == [1]
    assert peak_of("lds", {1: structure(torch.full((4,), torch.nan))}) is None


def test_small_grids_are_refused_and_what_is_undefined_is_said(watched, analysed, tiny_run):
    subject = watched(tiny_run)
    r = analysed(ANALYSIS, subject, t=0.5).result
    gone = r.model_copy(update={"peaks": {"lds": [None], "rmsc": r.peaks["rmsc"]}, "grid": (2, 2)})
    assert "local structure (LDS) is undefined on a grid of 2 x 2" in ANALYSIS.show({"": Found(gone)}).said[0]
    subject.loaded.settings = subject.loaded.settings.model_copy(update={"patch": 4})
    assert ANALYSIS.fits(subject) == "its tokens stand on a grid of 2 x 2: no map of 3 x 3"


def test_one_model_twice_is_equal(watched, analysed, tiny_run):
    a = analysed(ANALYSIS, watched(tiny_run), t=0.5)
    said = ANALYSIS.show({"a": a, "b": a}).said
    assert any(
        line.startswith("In local structure (LDS) a and b are equal") and "another seed" in line for line in said
    )


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
