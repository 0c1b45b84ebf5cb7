"""Guidance: which passes run, how they combine, and what they cost."""

import pytest
import torch

from ditkit.diffusion.guidance import CFG, Autoguidance, extrapolate, first3, inside
from ditkit.diffusion.noise import philox_normal
from ditkit.diffusion.path import Linear
from ditkit.diffusion.sample import Denoise, SamplerSettings, sample
from ditkit.protocols import Condition, Output

SHAPE = (3, 4, 2, 2)
NULL = 10


class Labelled:
    """A small non-linear network that depends on x, t and the label; variance=True doubles its channels."""

    def __init__(self, gain=1.0, variance=False):
        self.gain, self.variance, self.batches = gain, variance, []

    def __call__(self, x, t, cond, *, capture=()):
        self.batches.append(cond.label.tolist())
        shift = (cond.label.to(x.dtype) / 7).view(-1, 1, 1, 1)
        out = self.gain * torch.sin(2 * x + shift) + t.to(x.dtype).view(-1, 1, 1, 1) * shift
        return Output(torch.cat([out, shift * torch.ones_like(out)], 1) if self.variance else out)

    def null(self, cond):
        return cond.with_label(torch.full_like(cond.label, NULL))


COND = Condition(label=torch.tensor([1, 2, 3]))
START = philox_normal(0, (1,), SHAPE)


def run(model, guidance, steps=8, solver="euler", cond=COND, **changes):
    settings = SamplerSettings(solver=solver, steps=steps, guidance=guidance, **changes)
    return settings.run(model, START, cond, path=Linear(), prediction="velocity")


def by_hand(model, active, scale, steps=8, channels=4, opposite=None, weak=None):
    """Euler with guidance as a plain loop over t = 1, 7/8, ... in which `active(t)` steps are guided."""
    x = START
    for k in range(steps):
        t = torch.full((len(x),), 1 - k / steps)
        v = model(x, t, COND).sample
        if active(1 - k / steps):
            u = (weak or model)(x, t, COND if weak else (opposite or model.null(COND))).sample
            v = torch.cat([(u + scale * (v - u))[:, :channels], v[:, channels:]], 1)
        x = x - v / steps
    return x


# times 1, 7/8, ... 1/8, exact in binary; 1/4 and 3/4 are grid points, so that open and closed intervals differ
INTERVALS = {
    "everywhere": (dict(), lambda t: True, 8),
    "closed": (dict(low=0.25, high=0.75), lambda t: 0.25 <= t <= 0.75, 5),
    "strict": (dict(low=0.25, high=0.75, closed=False), lambda t: 0.25 < t < 0.75, 3),
    "strict from the noise": (dict(closed=False), lambda t: 0 < t < 1, 7),
    "never": (dict(low=0.26, high=0.37), lambda t: False, 0),
}


@pytest.mark.parametrize("name", INTERVALS)
@pytest.mark.parametrize("channels", [None, 3])
def test_cfg_in_an_interval_is_the_hand_written_loop(name, channels):
    options, active, guided = INTERVALS[name]
    model = Labelled()
    latents, evaluations = run(model, CFG(scale=3.0, channels=channels, **options))
    assert torch.allclose(latents, by_hand(Labelled(), active, 3.0, channels=channels or 4), atol=1e-5)
    assert evaluations == 8 + guided
    assert sum(len(labels) == 6 for labels in model.batches) == guided  # both passes in one call
    assert all(labels[3:] == [NULL] * 3 for labels in model.batches if len(labels) == 6)
    assert (
        not torch.allclose(latents, by_hand(Labelled(), active, 2.5, channels=channels or 4), atol=1e-3) or not guided
    )


def test_ends_of_the_interval():
    assert inside(0.7, 0.3, 0.7, True) and not inside(0.7, 0.3, 0.7, False)
    assert inside(0.3, 0.3, 0.7, True) and not inside(0.3, 0.3, 0.7, False)
    assert not inside(0.71, 0.3, 0.7, True) and inside(0.5, 0.3, 0.7, False)


def test_one_pass_without_guidance():
    plain, evaluations = run(Labelled(), None)
    assert evaluations == 8
    for guidance in (CFG(scale=1.0), CFG(scale=1.0, low=0.3, skip_outside=False), Autoguidance(scale=1.0)):
        latents, evaluations = run(Labelled(), guidance)
        assert torch.equal(latents, plain) and evaluations == 8


def test_both_passes_outside_on_demand():
    """DDT evaluates both halves at every step; outside its interval the result is the conditional one."""
    skipped, few = run(Labelled(), CFG(scale=3.0, high=0.55))
    kept, all_of_them = run(Labelled(), CFG(scale=3.0, high=0.55, skip_outside=False))
    assert torch.allclose(skipped, kept, atol=1e-6) and (few, all_of_them) == (12, 16)


def test_guidance_is_decided_where_the_step_starts():
    """REPA's Heun: the corrector follows the predictor's decision; decide="evaluation" asks again."""
    model, other = Labelled(), Labelled()
    settings = dict(scale=2.0, low=0.2, high=0.8)
    _, by_step = run(model, CFG(**settings), steps=6, solver="heun")
    _, by_time = run(other, CFG(**settings, decide="evaluation"), steps=6, solver="heun")
    rows = [len(labels) for labels in model.batches]
    assert rows == [3, 3, 3, 3, 6, 6, 6, 6, 6, 6, 3] and by_step == 17  # t = 2/3 of the second step's end: unguided
    assert [len(labels) for labels in other.batches] == [3, 3, 3, 6, 6, 6, 6, 6, 6, 3, 3] and by_time == 17


def test_explicit_negative_condition():
    negative = Condition(label=torch.tensor([7, 8, 9]))
    latents, _ = run(Labelled(), CFG(scale=3.0).against(negative))
    assert torch.allclose(latents, by_hand(Labelled(), lambda t: True, 3.0, opposite=negative), atol=1e-5)
    shared, _ = run(Labelled(), CFG(scale=3.0).against(Condition(label=torch.tensor([7]))))
    same = Condition(label=torch.tensor([7, 7, 7]))
    assert torch.allclose(shared, by_hand(Labelled(), lambda t: True, 3.0, opposite=same), atol=1e-5)
    with pytest.raises(ValueError, match="has 2 rows, the batch has 3"):
        run(Labelled(), CFG(scale=3.0).against(Condition(label=torch.tensor([7, 8]))))
    assert CFG(scale=3.0).against(negative).model_dump() == CFG(scale=3.0).model_dump()  # not data


def test_nothing_to_guide():
    class Unconditional:
        def __call__(self, x, t, cond, *, capture=()):
            return Output(-x)

    with pytest.raises(ValueError, match="condition is empty"):
        run(Unconditional(), CFG(scale=2.0), cond=None)
    assert run(Unconditional(), None, cond=None)[1] == 8


def test_autoguidance():
    """The weaker model sees the same condition; it runs only inside the interval, and costs one evaluation there."""
    strong, weak = Labelled(), Labelled(gain=0.5)
    latents, evaluations = run(strong, Autoguidance(scale=2.0, low=0.45).against(weak))
    assert torch.allclose(latents, by_hand(Labelled(), lambda t: t >= 0.45, 2.0, weak=Labelled(gain=0.5)), atol=1e-5)
    assert evaluations == 13 and len(weak.batches) == 5 and all(labels == [1, 2, 3] for labels in weak.batches)
    settings = SamplerSettings(steps=8, guidance=Autoguidance(scale=2.0, low=0.45))
    again, _ = settings.run(strong, START, COND, path=Linear(), prediction="velocity", autoguide=weak)
    assert torch.equal(again, latents)
    with pytest.raises(ValueError, match="no weaker model"):
        run(strong, Autoguidance(scale=2.0))


@pytest.mark.parametrize("guidance", [CFG(scale=4.0), first3(4.0), Autoguidance(scale=4.0).against(Labelled(gain=0.3))],
                         ids=["all", "first3", "autoguidance"])  # fmt: skip
def test_variance_logits_are_the_conditional_ones(guidance):
    """Guiding logits would leave [-1, 1]; and the published preset leaves the fourth channel alone too."""
    model = Labelled(variance=True)
    denoise = Denoise(model, COND, path=Linear(), prediction="noise", guidance=guidance)
    estimate = denoise(START, 0.5, 0)
    plain = Denoise(model, COND, path=Linear(), prediction="noise")(START, 0.5, 0)
    assert estimate.value.shape == estimate.variance.shape == SHAPE
    assert torch.equal(estimate.variance, plain.variance)
    assert torch.equal(estimate.value[:, 3:], plain.value[:, 3:]) == (getattr(guidance, "channels", None) == 3)
    assert not torch.allclose(estimate.value[:, :3], plain.value[:, :3], atol=1e-2)


def test_extrapolation():
    weak, strong = torch.zeros(1, 4, 1, 1), torch.ones(1, 4, 1, 1)
    assert extrapolate(weak, strong, 2.5, 4).flatten().tolist() == [2.5] * 4
    assert extrapolate(weak, strong, 2.5, 3).flatten().tolist() == [2.5] * 3 + [1.0]
    assert extrapolate(weak, strong, 0.0, 4).flatten().tolist() == [0.0] * 4  # the unconditional side


def test_ones_own_guidance_is_a_function():
    """Anything callable guides: here, away from two conditions at once."""
    others = Condition(label=torch.tensor([5, 5, 5])), Condition(label=torch.tensor([6, 6, 6]))

    def both(denoise, x, t, cond):
        c, a, b = denoise.passes(x, t, cond, *others)
        return c + 0.5 * (c - a) + 0.5 * (c - b)

    model = Labelled()
    denoise = Denoise(model, COND, path=Linear(), prediction="velocity", guidance=both)
    denoise(START, 0.5, 0)
    assert denoise.evaluations == 3 and denoise.calls == [(9, 0.5)] and model.batches == [[1, 2, 3, 5, 5, 5, 6, 6, 6]]
    latents = sample(model, START, COND, path=Linear(), prediction="velocity", solver="euler", times=[1.0, 0.0],
                     guidance=both)  # fmt: skip
    assert latents.isfinite().all()


def test_settings_read_back():
    settings = SamplerSettings(guidance=first3(4.0))
    assert SamplerSettings.model_validate_json(settings.model_dump_json()) == settings
    settings = SamplerSettings(guidance={"kind": "autoguidance", "scale": 2.2})
    assert isinstance(settings.guidance, Autoguidance)
