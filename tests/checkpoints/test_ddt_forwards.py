"""DDT and its improved DiT baseline through the shipped converters: outputs, states, gradients, golden numbers.

Their time is one minus ours and their velocity the negative of ours; s is the same tensor.
"""

import pytest
import torch
from torch.nn import functional as F

from ditkit.checkpoints import export_published, load_published
from ditkit.diffusion import CFG, Linear, SamplerSettings, Sharing
from ditkit.models import DDT, Condition, DDTSettings
from ditkit.nn.position import rope_table
from ditkit.protocols import SelfCondition

T, Y = 1 - torch.tensor([0.25, 0.75]), Condition(label=torch.tensor([3, 1000]))


def _ddt(reference):
    case = reference("ddt_forward")
    return case, load_published(case.state, "ddt", encoder_blocks=case.meta["constructor"]["num_encoder_blocks"]).model


def _baseline(reference):
    case = reference("ddt_improved_dit_forward")
    return case, load_published(case.state, "improved-dit").model


def _labels(case):
    return Condition(label=case.inputs["y"])


def _gradients_match(case, model, source):
    """Every official parameter's gradient norm; moved rows and reshaped patches have the same norm."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.grad)
    gradients, recorded = export_published(model, source), case.meta["info"]["grad_norms"]
    assert gradients.keys() == recorded.keys()
    for key, want in recorded.items():
        assert gradients[key].norm().item() == pytest.approx(want, rel=1e-3), key


@pytest.mark.parametrize("made", [_ddt, _baseline])
def test_sizes_come_from_the_tensors(reference, made):
    case, model = made(reference)
    official, s = case.meta["constructor"], model.settings
    read = {
        "num_groups": s.heads, "hidden_size": s.width, "num_blocks": s.depth, "patch_size": s.patch,
        "in_channels": s.channels, "num_classes": s.num_classes, "num_encoder_blocks": s.encoder_blocks,
    }  # fmt: skip
    assert read == {"num_encoder_blocks": 0, **official} and s.mlp_ratio == 4


def test_ddt_forward_and_self_condition(reference):
    case, model = _ddt(reference)
    x, t, y = case.inputs["x"], 1 - case.inputs["t"], _labels(case)
    s = model.encode(x, t, y)
    case.close("s", s)
    case.close("v", -model(x, t, y).sample)
    case.close("v", -model.decode(x, s))
    case.close("null.v", -model(x, t, model.null(y)).sample)


@pytest.mark.parametrize("wrap", [lambda s: s, SelfCondition])
def test_ddt_reuse_of_s_knows_neither_time_nor_label(reference, wrap):
    case, model = _ddt(reference)
    s = wrap(case.outputs["s"])  # recorded, for one x; decoded with another at two other times
    case.close("reuse.v", -model.decode(case.inputs["x2"], s))
    case.close("reuse_other_t.v", -model.decode(case.inputs["x2"], s))


def test_other_sizes(reference):
    case, model = _ddt(reference)
    x, t, y = case.inputs["x_ns"], 1 - case.inputs["t"], _labels(case)
    case.close("nonsquare.v", -model(x, t, y).sample)
    case.close("nonsquare.s", model.encode(x, t, y))
    settings = model.settings
    cos, sin = rope_table(x.shape[2] // 2, x.shape[3] // 2, settings.width // settings.heads)
    case.close("nonsquare.rope_real", cos)
    case.close("nonsquare.rope_imag", sin)
    case, model = _baseline(reference)
    case.close("nonsquare.v", -model(case.inputs["x_ns"], 1 - case.inputs["t"], _labels(case)).sample)


def test_improved_dit_forward(reference):
    case, model = _baseline(reference)
    case.close("v", -model(case.inputs["x"], 1 - case.inputs["t"], _labels(case)).sample)


@pytest.mark.parametrize(("made", "source"), [(_ddt, "ddt"), (_baseline, "improved-dit")])
def test_gradients(reference, made, source):
    case, model = made(reference)
    out = -model(case.inputs["x"], 1 - case.inputs["t"], _labels(case)).sample
    (out * case.inputs["cotangent"]).mean().backward()
    _gradients_match(case, model, source)


@pytest.mark.parametrize(("channels", "patch"), [(3, 2), (4, 4), (1, 2)])
def test_patches_are_unfolded_and_folded(channels, patch):
    """torch's unfold and fold, where channels are not P P: the recordings have 4 of both."""
    settings = DDTSettings(encoder_blocks=1, decoder_blocks=1, width=32, heads=2, patch=patch, channels=channels)
    model, size = DDT(settings), (4 * patch, 2 * patch)
    torch.nn.init.normal_(model.final.linear.weight)
    torch.nn.init.normal_(model.final.linear.bias)
    state, seen = export_published(model, "ddt"), []
    model.final.linear.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    x = torch.randn(2, channels, *size)
    out = model(x, T, Y).sample
    pieces = F.unfold(x, patch, stride=patch).transpose(1, 2)
    for ours, official in ((model.patch, "x_embedder.proj"), (model.encoder_patch, "s_embedder.proj")):
        expected = F.linear(pieces, state[f"{official}.weight"], state[f"{official}.bias"])
        assert torch.allclose(ours(x), expected, atol=1e-5)
    tokens = F.linear(seen[0], state["final_layer.linear.weight"], state["final_layer.linear.bias"])
    assert torch.allclose(-out, F.fold(tokens.transpose(1, 2), size, patch, stride=patch), atol=1e-5)
    again = load_published(state, "ddt", encoder_blocks=1, patch=patch)
    assert again.settings == settings and torch.equal(again.model(x, T, Y).sample, out)


# -------------------------------------------------------------------------------------------------- golden numbers


def _filled(source, encoder, decoder):
    """Official keys, sorted; tensor i gets 0.05 sin(0.1 k + i), and norm weights 1 more."""
    settings = DDTSettings(encoder_blocks=encoder, decoder_blocks=decoder, width=64, heads=4, size=(8, 8))
    state = export_published(DDT(settings), source)
    for i, key in enumerate(sorted(state)):
        k = torch.arange(state[key].numel(), dtype=torch.float64)
        one = 1.0 if "norm" in key and key.endswith("weight") else 0.0
        state[key] = (0.05 * torch.sin(0.1 * k + i) + one).float().view(state[key].shape)
    extra = {"encoder_blocks": encoder} if encoder else {}
    return load_published(state, source, **extra).model


def _x():
    return torch.sin(0.05 * torch.arange(2 * 4 * 8 * 8, dtype=torch.float64)).float().view(2, 4, 8, 8)


def _agrees(got, total, mean_abs, first, last):
    """Sum, mean of |.|, first 4 and last 2 numbers, as far as they were published."""
    got = got.detach().double()
    assert got.sum().item() == pytest.approx(total, abs=1e-4)
    assert got.abs().mean().item() == pytest.approx(mean_abs, abs=2e-6)
    assert torch.allclose(got.flatten()[:4], torch.tensor(first, dtype=torch.float64), atol=2e-6)
    assert torch.allclose(got.flatten()[-2:], torch.tensor(last, dtype=torch.float64), atol=2e-6)


def test_golden_ddt():
    model = _filled("ddt", 2, 1)
    out = (0.817953, 0.941859, 0.806230, 0.927776), (1.148297, 1.041539)
    _agrees(-model(_x(), T, Y).sample, 482.525406, 0.942432, *out)
    s = (0.055461, 0.010252, 0.003146, 0.021114), (0.095452, 0.111531)
    _agrees(model.encode(_x(), T, Y), -0.310297, 0.064065, *s)


def test_golden_improved_dit():
    out = (0.453083, 0.377749, 0.449298, 0.374764), (-0.486789, -0.505148)
    _agrees(-_filled("improved-dit", 0, 3)(_x(), T, Y).sample, -79.791031, 0.284246, *out)


EULER = [
    ({"last": 0.04}, 263.422048, 0.727032, (0.380904, 0.488634, 0.480276, 0.587081), (0.844385, 0.845280)),
    (
        {"last": 0.04, "sharing": Sharing(rule="every:2", evaluations=5, encode=(0, 2, 4))},
        260.356105, 0.723697, (0.371628, 0.479248, 0.471116, 0.577813), (0.842255, 0.844324),
    ),
    ({"shift": 1.5}, 258.677590, 0.722406, (0.376824, 0.483017, 0.475862, 0.581105), (0.827270, 0.828929)),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "total", "mean_abs", "first", "last"), EULER)
def test_golden_euler(changes, total, mean_abs, first, last):
    guidance = CFG(scale=2.0, low=0.0, high=0.7, closed=False, skip_outside=False)  # their (0.3, 1)
    sampler = SamplerSettings(solver="euler", steps=5, guidance=guidance, **changes)
    cond = Condition(label=torch.tensor([3, 5]))
    out, spent = sampler.run(_filled("ddt", 2, 1), _x(), cond, path=Linear(), prediction="velocity")
    _agrees(out, total, mean_abs, first, last)
    assert spent == 10
