"""`path`: a straight flow is straight, errors fall with steps, guidance is a setting."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ditkit.diffusion import SampleNoise
from ditkit.protocols import Output
from ditkit.recipes.analyses.path import ANALYSIS, flow_of


class Straight(nn.Module):
    """v = the label everywhere, 10 under the null condition."""

    def null(self, cond):
        return cond.with_label(torch.full_like(cond.label, 10))

    def forward(self, x, t, cond, *, capture=()):
        return Output(torch.ones_like(x) * (1 + cond.label.to(x).view(-1, 1, 1, 1)))


def test_a_straight_flow(watched, analysed, tiny_run):
    subject = watched(tiny_run)
    subject.loaded = replace(subject.loaded, model=Straight())
    r = analysed(ANALYSIS, subject, paths=6, fine=16, counts="1,4").result
    assert r.straightness == pytest.approx(0, abs=1e-10) and r.length == pytest.approx(1, abs=1e-5) and r.turn < 0.1
    for solver, spent in (("euler", [1, 4]), ("heun", [2, 8])):
        assert max(r.solvers[solver].errors) < 1e-5 and r.solvers[solver].evaluations == spent
    assert len(r.times) == 17 and r.times[0] == 1 and r.times[-1] == 0 and len(r.turn_rate) == 16
    assert r.solvers["heun"].order is None and r.reference_error < 1e-5, "rounding has no order"
    said = " ".join(ANALYSIS.show({"": analysed(ANALYSIS, subject, paths=4, fine=16, counts="1,2,4")}).said)
    assert (
        "as long as straight lines" in said and "heun ends off the fine run by" in said and "no order: too few" in said
    )
    said = " ".join(ANALYSIS.show({"": analysed(ANALYSIS, subject, paths=2, fine=8, counts=1, solvers="euler")}).said)
    assert "euler ends off the fine run by" in said and "in 1 step." in said and "heun" not in said


def test_the_fine_run_is_measured_too(watched, analysed, tiny_ddt):
    """A fine run that is far from converged gives no order, and says so."""
    found = analysed(ANALYSIS, watched(tiny_ddt, n=4), paths=4, fine=8, counts="1,2")
    r = found.result
    subject = watched(tiny_ddt, n=4)
    flow = flow_of(subject, torch.arange(4), None)
    noise = SampleNoise(0, range(4), (1, 8, 8)).initial()
    with torch.no_grad():
        a, b = flow.run(noise, "heun", 8)[0].flatten(1), flow.run(noise, "heun", 4)[0].flatten(1)
    assert r.reference_error == pytest.approx(float(((a - b).norm(dim=1) / a.norm(dim=1)).mean()), rel=1e-4)
    said = ANALYSIS.show({"": found}).said[-1]
    assert "the fine run, 8 steps of Heun, ends" in said and "a larger fine=N is surer" in said


def test_errors_fall_and_batches_do_not_matter(watched, analysed, tiny_ddt, monkeypatch):
    found = analysed(ANALYSIS, watched(tiny_ddt, n=9), paths=3, fine=32, counts="2,4,8")
    r = found.result
    for solver, order in (("euler", 1), ("heun", 2)):
        e = r.solvers[solver]
        assert e.errors == sorted(e.errors, reverse=True) and e.order == pytest.approx(order, abs=0.5)
    assert r.straightness > 0 and r.length > 1 and r.turn > 1
    monkeypatch.setattr("ditkit.analysis.straightness.STORED", 1)
    again = analysed(ANALYSIS, watched(tiny_ddt, n=9), paths=3, fine=32, counts="2,4,8").result
    assert again.straightness == pytest.approx(r.straightness, rel=1e-4)
    assert again.solvers["euler"].errors == pytest.approx(r.solvers["euler"].errors, rel=1e-3)
    both = ANALYSIS.show({"a": found, "b": found})
    assert "In S (bent or uneven travel) a and b are equal" in both.said[-1] and "another seed" in both.said[-1]
    assert [s.name for s in both.panels[2].series] == ["a: euler", "a: heun", "b: euler", "b: heun"]
    assert all(low > 0 for s in both.panels[2].series for low, _ in s.limits)


def test_guidance_is_a_setting(watched, analysed, tiny_ddt, tiny_text):
    plain, guided = (
        analysed(ANALYSIS, watched(tiny_ddt), paths=2, fine=8, counts=2, guidance=g).result for g in (None, 3.0)
    )
    assert guided.straightness != plain.straightness and guided.solvers["euler"].evaluations == [4]
    told = analysed(ANALYSIS, watched(tiny_ddt), paths=2, fine=8, counts=2, guidance=3)
    assert "straightness S under guidance 3 is" in ANALYSIS.show({"": told}).said[0]
    assert analysed(ANALYSIS, watched(tiny_text, n=3), paths=2, fine=8, counts=2, guidance=2).result.paths == 2
    with pytest.raises(ValueError, match="counts 8: give numbers of steps from 1 to below fine=8"):
        analysed(ANALYSIS, watched(tiny_ddt), fine=8, counts="1,8")
    with pytest.raises(ValueError, match="solvers 'rk5': choose from euler, heun"):
        analysed(ANALYSIS, watched(tiny_ddt), solvers="rk5")
