"""`spectrum`: of the velocity, the data estimate, hidden states and s, and of samples beside real images."""

import pytest
import torch

from ditkit.analysis.spectrum import high_share, on_grid, power
from ditkit.data import to_float
from ditkit.recipes.analyses.analysis import Found
from ditkit.recipes.analyses.spectrum import ANALYSIS


def test_shares_are_those_of_what_the_network_says(watched, analysed, tiny_ddt):
    subject = watched(tiny_ddt)
    r = analysed(ANALYSIS, subject, t="0.3", images=12, samples=False).result
    assert set(r.over_t) == {"velocity", "its target", "data estimate", "block 2", "block 3", "s"} and r.sampler == ""
    test, t, model = subject.test, torch.full((12,), 0.3), subject.loaded.model
    eps = subject.noise_of(subject.test)[:12]
    x = 0.7 * test.latents + 0.3 * eps
    with torch.no_grad():
        null = subject.null(test.cond)
        v, s = model(x, t, null).sample, model.encode(x, t, null)
    want = {"velocity": v, "its target": eps - test.latents, "data estimate": x - 0.3 * v, "s": on_grid(s, (4, 4))}
    for name, maps in want.items():
        found = high_share(power(maps))
        assert r.over_t[name][0].high == pytest.approx(found.value, rel=1e-4), name
        assert r.over_t[name][0].high_error == pytest.approx(found.error, rel=1e-3)
    real = high_share(power(to_float(test.images)))
    assert r.shares["real images"].high == pytest.approx(real.value) and set(r.shares) == {"real images"}
    assert len(r.spectra["real images"].frequency) == len(r.spectra["real images"].power) == 7
    assert len(ANALYSIS.show({"": analysed(ANALYSIS, subject, t=0.3, images=4, samples=False)}).panels) == 3


def test_samples_of_untrained_networks_are_told_apart_from_images(watched, analysed, tiny_run, tiny_ddt):
    a, b = (analysed(ANALYSIS, watched(run, n=30), t="0.2,0.8", images=30) for run in (tiny_run, tiny_ddt))
    assert set(a.result.over_t) == {"velocity", "its target", "data estimate", "block 1", "block 2"}
    assert a.result.sampler == "euler, 4 steps, no guidance"
    high, real = a.result.shares["samples"].high, a.result.shares["real images"].high
    assert high > real + 0.1, "noise is left in them"
    alone = ANALYSIS.show({"": a})
    assert "have more high frequency than real images" in alone.said[-1] and len(alone.panels) == 4
    assert alone.panels[2].log_y and [s.name for s in alone.panels[2].series] == ["real images", "samples"]
    both = ANALYSIS.show({"sit": a, "ddt": b})
    names = [[s.name for s in p.series] for p in both.panels]
    assert names[0] == ["sit: velocity", "ddt: velocity", "its target", "white noise"]
    assert names[1] == ["sit: block 1", "ddt: s", "white noise"]
    assert names[2] == ["real images", "sit: samples", "ddt: samples"]


def test_small_grids_have_no_spectrum_of_tokens(watched, analysed, tiny_run, monkeypatch):
    monkeypatch.setattr("ditkit.recipes.analyses.spectrum.LEAST", 5)  # the tiny network has 4 x 4 tokens
    found = analysed(ANALYSIS, watched(tiny_run), t="0.3,0.6", images=4, samples=False)
    assert set(found.result.over_t) == {"velocity", "its target", "data estimate"}
    shown = ANALYSIS.show({"": found})
    assert "no spectrum of tokens: its tokens stand on a grid of 4 x 4" in shown.said[0]
    assert [p.title for p in shown.panels] == ["Latents: share of high frequencies", "Images: power"]
    monkeypatch.setattr("ditkit.recipes.analyses.spectrum.LEAST", 9)
    assert ANALYSIS.fits(watched(tiny_run)) == "its latents of 8 x 8 are too small for a spectrum"


def test_change_over_t_is_of_pairs_and_a_model_twice_is_equal(watched, analysed, tiny_run):
    found = analysed(ANALYSIS, watched(tiny_run), t="0.2,0.9", images=12)
    r = found.result
    first, last = r.over_t["block 2"]
    assert r.changes["block 2"].difference == pytest.approx(last.high - first.high)
    still = r.model_copy(update={"changes": {"block 2": r.changes["block 2"].model_copy(update={"limits": (-1, 1)})}})
    assert ANALYSIS.show({"": Found(still)}).said[1].endswith(": the change is within noise.")
    said = ANALYSIS.show({"a": found, "b": found}).said[-1]
    assert "In the share of high frequencies of samples a and b are equal" in said and "another seed" in said


def test_text_models_sample_the_captions(watched, analysed, tiny_text):
    r = analysed(ANALYSIS, watched(tiny_text, n=4), t=0.5, images=4).result
    assert r.images == 4 and "block 1" in r.over_t and "samples" in r.shares
