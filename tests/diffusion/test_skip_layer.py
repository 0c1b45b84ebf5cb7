"""Skip-layer guidance: its window, its three passes, and what they add up to."""

import pytest
import torch

from ditkit.config import SettingsError, read_settings
from ditkit.diffusion import CFG, DDPM, Denoise, Linear, SamplerSettings, SkipLayer, WithoutBlocks
from ditkit.diffusion.noise import philox_normal
from ditkit.protocols import Condition, Output

SHAPE = (3, 4, 2, 2)
START = philox_normal(0, (1,), SHAPE)
COND = Condition(text=torch.arange(1.0, 4).view(3, 1, 1), pooled=torch.ones(3, 2))


class Blocks(torch.nn.Module):
    """Twelve residual blocks that may be bypassed; text moves the state, null is zeros."""

    def __init__(self, variance=False):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.linspace(0.1, 0.4, 12))
        self.variance, self.calls = variance, []

    def forward(self, x, t, cond, *, capture=(), skip=()):
        self.calls.append((len(x), tuple(skip), cond.text[:, 0, 0].tolist()))
        for block in range(1, 13):
            if block not in skip:
                x = x + self.gain[block - 1] * torch.sin(x + cond.text.mean((1, 2)).view(-1, 1, 1, 1) / 5)
        return Output(torch.cat([x, x * 3], 1) if self.variance else x)

    def null(self, cond):
        return Condition(text=torch.zeros_like(cond.text), pooled=torch.zeros_like(cond.pooled))


def run(guidance, steps=10, solver="euler", **changes):
    model = Blocks()
    settings = SamplerSettings(solver=solver, steps=steps, guidance=guidance, **changes)
    latents, evaluations = settings.run(model, START, COND, path=Linear(), prediction="velocity")
    return latents, evaluations, model


def skipping(model):
    """The numbers of the steps with a pass without blocks (Euler: one guided evaluation a step)."""
    steps, found = -1, []
    for _, skip, _ in model.calls:
        if skip:
            found.append(steps)
        else:
            steps += 1
    return found


@torch.no_grad()
def by_hand(guidance, window, steps=10, negative=None):
    """Euler with v_u + s (v_c - v_u) + slg (v_c - v_skip) in `window`, CFG elsewhere."""
    model, x = Blocks(), START
    for i in range(steps):
        t = torch.full((3,), 1 - i / steps)
        c = model(x, t, COND).sample
        u = model(x, t, model.null(COND) if negative is None else negative).sample
        v = u + guidance.scale * (c - u)
        if i in window:
            v = v + guidance.skip_scale * (c - model(x, t, COND, skip=guidance.blocks).sample)
        x = x - v / steps
    return x


@pytest.mark.parametrize(
    ("start", "end", "steps", "window"),
    [
        (0.01, 0.20, 50, range(1, 10)), (0.01, 0.20, 28, range(1, 6)), (0.1, 0.5, 10, (2, 3, 4)),
        (0.0, 1.0, 10, range(1, 10)), (0.0, 0.1, 10, ()), (0.3, 0.3, 10, ()),
    ],
)  # fmt: skip
def test_the_window_is_strict_on_both_sides(start, end, steps, window):
    """Steps count from 0; Stability's preset of 50 steps acts in steps 1 to 9."""
    guidance = SkipLayer(scale=2.0, start=start, end=end)
    latents, evaluations, model = run(guidance, steps)
    assert skipping(model) == list(window) and evaluations == 2 * steps + len(window)
    assert torch.allclose(latents, by_hand(guidance, window, steps), atol=1e-4)


def test_the_official_preset():
    guidance = SkipLayer()
    assert guidance.blocks == (8, 9, 10), "layers 7, 8, 9 counted from 0"
    assert (guidance.skip_scale, guidance.start, guidance.end) == (2.5, 0.01, 0.20)
    diffusers = read_settings(SamplerSettings, {"guidance": {"kind": "skip_layer", "skip_scale": 2.8}})
    assert diffusers.guidance == SkipLayer(skip_scale=2.8)
    assert SamplerSettings.model_validate_json(diffusers.model_dump_json()) == diffusers
    with pytest.raises(SettingsError, match="blocks"):
        read_settings(SkipLayer, {"blocks": []})


def test_passes():
    """One batch of both branches, then the conditional one alone without the blocks."""
    _, _, model = run(SkipLayer(scale=3.0, blocks=(2, 5), start=0, end=1), steps=2)
    assert model.calls == [(6, (), [1, 2, 3, 0, 0, 0])] * 2 + [(3, (2, 5), [1, 2, 3])]


def test_without_its_parts():
    plain, spent, _ = run(SkipLayer(scale=3.0, skip_scale=0.0))
    cfg, _, _ = run(CFG(scale=3.0))
    assert torch.equal(plain, cfg) and spent == 20
    latents, spent, model = run(SkipLayer(scale=1.0, end=0.5))
    assert spent == 10 + 4 and all(len(texts) == 3 for _, _, texts in model.calls), "no unconditional pass"
    assert torch.allclose(latents, by_hand(SkipLayer(scale=1.0), (1, 2, 3, 4)), atol=1e-4)


def test_negative_condition():
    negative = Condition(text=torch.full((1, 1, 1), 9.0), pooled=torch.zeros(1, 2))
    guidance = SkipLayer(scale=2.0, end=0.5)
    latents, _, model = run(guidance.against(negative))
    assert model.calls[0][2] == [1, 2, 3, 9, 9, 9]
    assert torch.allclose(latents, by_hand(guidance, (1, 2, 3, 4), negative=negative.index([0, 0, 0])), atol=1e-4)
    assert guidance.against(negative).model_dump() == guidance.model_dump()
    with pytest.raises(ValueError, match="has 2 rows, the batch has 3"):
        run(guidance.against(negative.index([0, 0])))


def test_steps_are_counted_not_evaluations():
    """Heun's corrector belongs to its step; a visited DDPM table has as many steps as visits."""
    _, _, model = run(SkipLayer(scale=1.0, start=0.1, end=0.4), solver="heun")
    assert sum(bool(skip) for _, skip, _ in model.calls) == 4, "steps 2 and 3, two evaluations each"
    for solver, visits in (("ddim", 10), ("euler", 10)):
        model = Blocks()
        settings = SamplerSettings(solver=solver, steps=10, guidance=SkipLayer(scale=1.0, start=0.0, end=0.5))
        settings.run(model, START, COND, path=DDPM(), prediction="noise")
        assert sum(bool(skip) for _, skip, _ in model.calls) == 4 and len(model.calls) == visits + 4


def test_steps_must_be_known():
    with pytest.raises(ValueError, match="not an adaptive one"):
        run(SkipLayer(), solver="dopri5")
    lone = Denoise(Blocks(), COND, path=Linear(), prediction="velocity", guidance=SkipLayer())
    with pytest.raises(ValueError, match="counts steps"):
        lone(START, 0.5, 3)
    lone.steps = 50
    assert lone(START, 0.5, 3).value.shape == SHAPE and lone.evaluations == 3


def test_variance_logits_stay_the_conditional_ones():
    model = Blocks(variance=True)
    denoise = Denoise(
        model, COND, path=Linear(), prediction="noise", guidance=SkipLayer(), times=torch.linspace(1, 0, 51)
    )
    plain = Denoise(model, COND, path=Linear(), prediction="noise")(START, 0.5, 0)
    estimate = denoise(START, 0.5, 3)
    assert torch.allclose(estimate.variance, plain.variance, atol=1e-5)
    assert not torch.allclose(estimate.value, plain.value, atol=0.1)


def test_without_blocks_is_a_denoiser():
    model = Blocks().double()
    less = WithoutBlocks(model, (1, 12))
    assert next(iter(less.parameters())).dtype == torch.float64 and torch.equal(less.null(COND).text, COND.text * 0)
    want = model(START.double(), torch.ones(3), COND, skip=(1, 12)).sample
    assert torch.equal(less(START.double(), torch.ones(3), COND).sample, want)
    denoise = Denoise(model, COND, path=Linear(), prediction="velocity")
    assert torch.equal(denoise.passes(START, torch.tensor(1.0), COND, model=less)[0], want.float())

    class Rigid(torch.nn.Module):
        def forward(self, x, t, cond, *, capture=()):
            return Output(x)

    with pytest.raises(ValueError, match="Rigid cannot bypass blocks"):
        WithoutBlocks(Rigid(), (1,))
