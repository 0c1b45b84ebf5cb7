"""MMDiT: counts of the facts, initialisations, sets of weights, grids. Recorded outputs: tests/checkpoints."""

import math
from dataclasses import replace

import pytest
import torch

from ditkit.align import Projector
from ditkit.checkpoints import export_published
from ditkit.models import (
    SD3_SIZES,
    Condition,
    MMDiT,
    MMDiTSettings,
    build_model,
    example_condition,
    mmdit_settings,
    repa_mmdit_settings,
)

BASE = {"depth": 3, "width": 32, "heads": 4, "size": (8, 8), "channels": 4, "text_width": 24, "pooled_width": 12}


def count(settings):
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(settings).parameters())


@pytest.mark.parametrize(
    "settings, parameters",
    [
        (SD3_SIZES["sd3-medium"], 2_028_328_000),
        (SD3_SIZES["sd3.5-medium"], 2_243_171_520),
        (SD3_SIZES["sd3.5-large"], 8_056_627_520),
        (mmdit_settings(15), 496_066_624),
        (mmdit_settings(18), 856_159_552),
        (mmdit_settings(22), 1_562_387_264),
        (mmdit_settings(30), 3_962_392_384),
        (repa_mmdit_settings(), 512_415_504 - 7_344_896),  # the published count includes the projector
    ],
)
def test_parameters_of_the_published_sizes(settings, parameters):
    assert count(settings) == parameters


def test_a_third_set_of_weights_costs_what_the_second_does():
    """Blocks and embedding of a text: 18 D^2 + 15 D a block, 5 D^2 + 5 D in the last, D (text_width + 1) once."""
    d, width, text = 4, 256, 48
    two, three = (count(mmdit_settings(d, sets=sets, text_width=text)) for sets in (2, 3))
    assert three - two == (d - 1) * (18 * width**2 + 15 * width) + 5 * width**2 + 5 * width + width * (text + 1)


FAMILIES = {
    "mmditx": ("sd3", mmdit_settings(3, qk_norm="rms", dual=(1,), text_width=128, pooled_width=64, table=12,
                                     size=(16, 16), init="torch")),
    "repa_mmdit": ("repa-mmdit", repa_mmdit_settings(3)),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_released_initialisation(reference, family):
    """PyTorch's defaults everywhere; norms of queries and keys, which the released code leaves unset, are 1."""
    case, (source, settings) = reference("init_stats"), FAMILIES[family]
    generator = torch.Generator().manual_seed(1234)
    projectors = None
    if source == "repa-mmdit":
        projectors = torch.nn.ModuleList([Projector(96, 96, 128, "torch", generator=generator)])
    state = export_published(MMDiT(settings, generator=generator), source, projectors)
    state = {k.removeprefix("model.diffusion_model."): v for k, v in state.items()}
    recorded = case.meta["info"][family]
    assert state.keys() == recorded.keys()
    for i, (key, want) in enumerate(recorded.items()):
        got = state[key].double()
        assert list(got.shape) == want["shape"], key
        if "torch.empty" in want.get("note", ""):
            assert torch.equal(got, torch.ones_like(got)), key
        elif key != "pos_embed" and got.numel() > 500:
            std = case.outputs[f"{family}.std"][i].item()
            assert std == pytest.approx(want["std"], abs=1e-5)
            assert got.std().item() == pytest.approx(std, rel=0.1), key
            assert got.mean().item() == pytest.approx(want["mean"], abs=4 * std / math.sqrt(got.numel()) + 0.002), key
            if "uniform" in want.get("looks_like", ""):
                assert got.abs().max().item() == pytest.approx(max(want["max"], -want["min"]), rel=0.02), key


def test_initialisation_as_dit():
    """Blocks are the identity, the output is zero, norms of queries and keys are 1, whatever the sets."""
    generator = torch.Generator().manual_seed(0)
    for sets in (2, 3):
        model = MMDiT(MMDiTSettings(**BASE, sets=sets, text_split=2, qk_norm="rms", dual=(1, 2)), generator=generator)
        x, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 24, generator=generator)
        cond = Condition(text=text, pooled=torch.randn(2, 12, generator=generator))
        out = model(x, torch.tensor([0.1, 0.9]), cond, capture=(1, 3))
        assert torch.equal(out.sample, torch.zeros(2, 4, 8, 8))
        assert torch.equal(out.hidden[1], out.hidden[3]) and out.hidden[1].abs().mean() > 0.1
        norms = [p for name, p in model.named_parameters() if "_norm.weight" in name]
        assert norms and all(torch.equal(p, torch.ones_like(p)) for p in norms)


def test_three_equal_sets_are_two(network, batch):
    """The two texts have their own weights; with the same ones in both, nothing tells them apart."""
    two = network(MMDiTSettings(**BASE, qk_norm="rms"))
    three = MMDiT(MMDiTSettings(**BASE, qk_norm="rms", sets=3, text_split=2)).eval()
    state = dict(two.state_dict())
    for key, value in two.state_dict().items():
        state[key.replace(".text.0.", ".text.1.").replace("context.0.", "context.1.")] = value
    three.load_state_dict(state)
    x, t, cond = batch(two.settings)
    assert torch.allclose(two(x, t, cond).sample, three(x, t, cond).sample, atol=1e-6)
    with torch.no_grad():
        three.context[1].weight.neg_()
    assert not torch.allclose(three(x, t, cond).sample, two(x, t, cond).sample, atol=1e-3)
    with torch.no_grad():  # the embedding of the second text sees its negative: the sign is where the split says
        three.context[1].weight.copy_(-state["context.1.weight"])
    signs = torch.ones(cond.text.shape[1])[:, None]
    signs[2:] = -1
    mirrored = replace(cond, text=cond.text * signs)
    assert torch.allclose(three(x, t, mirrored).sample, two(x, t, cond).sample, atol=1e-6)


def test_second_attention_is_of_the_image_alone_and_reads_the_old_tokens(network, batch):
    """Where only the second attention's gate is open, a block is h + gate2 Attn2(modulate(LN h)) and text is idle."""
    model = network(MMDiTSettings(**BASE, dual=(1,)))
    block, d = model.blocks[0].image, 32
    with torch.no_grad():
        for gate in (2, 5):  # of the joint attention and of the MLP
            block.modulation.linear.weight[gate * d : (gate + 1) * d] = 0
            block.modulation.linear.bias[gate * d : (gate + 1) * d] = 0
    x, t, cond = batch(model.settings)
    other = Condition(text=cond.text.flip(1).neg(), pooled=cond.pooled)
    first, second = (model(x, t, c, capture=(1, 2)).hidden for c in (cond, other))
    assert torch.equal(first[1], second[1]) and not torch.allclose(first[2], second[2], atol=1e-3)
    h = model.patch(x) + model._crop(*model.settings.grid)
    assert (first[1] - h).abs().max() > 0.01


@pytest.mark.parametrize("size", [(8, 8), (12, 8), (6, 14), (16, 24)])
def test_a_table_and_a_grid_made_for_the_size_are_the_same(network, batch, size):
    """Native 4 x 4 tokens: the crop of a stored table is the table-free grid, M even."""
    free = network(MMDiTSettings(**BASE, step=0.5))
    x, t, cond = batch(free.settings, size=size)
    for side in (12, 14, 20):
        stored = MMDiT(free.settings.with_({"table": side})).eval()
        state = {k: v for k, v in free.state_dict().items() if k != "position"}
        stored.load_state_dict({**state, "position": stored.position})
        assert torch.equal(stored(x, t, cond).sample, free(x, t, cond).sample)


def test_text_of_any_length_and_no_gradient_to_masked_tokens(network, batch):
    model = network(MMDiTSettings(**BASE))
    x, t, cond = batch(model.settings)
    for length in (0, 1, 9):
        text = torch.randn(3, length, 24)
        assert model(x, t, Condition(text=text, pooled=cond.pooled)).sample.shape == x.shape
    mask = torch.ones(cond.text.shape[:2], dtype=torch.bool)
    mask[:, -2:] = False
    text = cond.text.clone().requires_grad_()
    model(x, t, Condition(text=text, mask=mask, pooled=cond.pooled)).sample.square().sum().backward()
    assert torch.equal(text.grad[:, -2:], torch.zeros_like(text.grad[:, -2:])) and text.grad[:, :-2].abs().min() > 0
    short = Condition(text=cond.text[:, :-2], pooled=cond.pooled)
    with_mask = Condition(text=cond.text, mask=mask, pooled=cond.pooled)
    assert torch.allclose(model(x, t, with_mask).sample, model(x, t, short).sample, atol=1e-6)


def test_null_is_zeros_and_keeps_the_mask_empty(network, batch):
    model = network(MMDiTSettings(**BASE))
    _, _, cond = batch(model.settings)
    null = model.null(cond)
    assert not null.text.any() and not null.pooled.any() and null.text.shape == cond.text.shape
    example = example_condition(model.settings, 2)
    assert example.text.shape == (2, 154, 24) and example.pooled.shape == (2, 12)


@pytest.mark.parametrize("wrong, message", [
    ({"dual": (0,)}, "names no block; blocks count from 1 to 3"),
    ({"dual": (4,)}, "names no block"),
    ({"table": 3}, "needs 4 positions a side; the table has 3"),
    ({"heads": 5}, "not a multiple of heads"),
    ({"size": (9, 8)}, "not a multiple of patch"),
])  # fmt: skip
def test_wrong_settings_of_an_mmdit(wrong, message):
    with pytest.raises(ValueError, match=message):
        MMDiTSettings(**{**BASE, **wrong})
