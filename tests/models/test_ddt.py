"""DDT's own promises: the two halves, what is kept with s, positions, published sizes and initialisation."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch.nn.functional import silu

from ditkit.checkpoints import export_published
from ditkit.models import DDT, Condition, DDTSettings, SelfCondition, build_model, ddt_settings
from ditkit.nn.modulation import TokenModulation
from ditkit.nn.position import rope_table

BASE = {"encoder_blocks": 2, "decoder_blocks": 2, "width": 32, "heads": 4, "size": (8, 8), "num_classes": 5}
SPLITS = {
    "2_2": DDTSettings(**BASE),
    "3_1": DDTSettings(**{**BASE, "encoder_blocks": 3, "decoder_blocks": 1}),
    "improved_dit": DDTSettings(**{**BASE, "encoder_blocks": 0, "decoder_blocks": 3}),
    "checkpointing": DDTSettings(**BASE, checkpointing=True),
    "unconditional": DDTSettings(**{**BASE, "num_classes": 0}),
}
# precision of the weights, and of autocast
PRECISIONS = {"float32": (torch.float32, None), "autocast": (torch.float32, torch.bfloat16),
              "bfloat16": (torch.bfloat16, None)}  # fmt: skip
# arXiv 2504.05741, appendix A, and counts of the released code: blocks (encoder, decoder), parameters, SwiGLU width
PUBLISHED = [
    ("B/2", (8, 4), 130_262_800, 2048), ("L/2", (20, 4), 457_648_144, 2730), ("XL/2", (22, 6), 674_646_352, 3072),
    ("B/2", (0, 12), 130_249_744, 2048), ("L/2", (0, 24), 457_630_736, 2730), ("XL/2", (0, 28), 674_626_768, 3072),
]  # fmt: skip


@pytest.fixture(params=SPLITS, scope="module")
def case(request, network):
    settings = SPLITS[request.param]
    return settings, network(settings)


@pytest.fixture
def ddt(network):
    return network(SPLITS["2_2"])


# ------------------------------------------------------------------------------------------------ encode and decode


def test_forward_is_decode_of_encode(case, batch):
    settings, model = case
    for size in (settings.size, (6, 10)):
        x, t, cond = batch(settings, size=size)
        s = model.encode(x, t, cond)
        tokens = size[0] * size[1] // 4 if settings.encoder_blocks else 1
        assert s.shape == (3, tokens, 32)
        assert torch.equal(model(x, t, cond).sample, model.decode(x, s))
        assert torch.equal(model.encode(x, torch.tensor(0.3), cond), model.encode(x, torch.full((3,), 0.3), cond))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_kept_modulations_are_bit_equal(case, network, batch, precision):
    """Filled at the first call, found at the second; for the same x and for another one."""
    settings, _ = case
    weights, cast = PRECISIONS[precision]
    model = network(settings).to(weights)
    x, t, cond = batch(settings)
    other = x.flip(0) * 2
    with torch.no_grad(), torch.autocast("cpu", dtype=cast) if cast else nullcontext():
        s = model.encode(x, t, cond)
        kept = SelfCondition(s)
        assert torch.equal(model.decode(x, kept), model.decode(x, s))
        made = kept.modulations
        assert torch.equal(model.decode(other, kept), model.decode(other, s))
        assert torch.equal(model.decode(x, kept), model.decode(x, s))
    assert all(a is b for a, b in zip(made, kept.modulations, strict=True)), "made once"
    assert kept.s is s
    tokens = s.shape[1]
    assert [tuple(m.shape) for m in made] == [(3, tokens, 192)] * settings.decoder_blocks + [(3, tokens, 64)]


@pytest.mark.parametrize("name", ["2_2", "checkpointing"])
def test_kept_modulations_are_not_computed_again(name, network, batch):
    ddt = network(SPLITS[name])
    x, t, cond = batch(ddt.settings)
    calls = []
    for module in ddt.modules():
        if isinstance(module, TokenModulation):
            module.register_forward_hook(lambda m, _a, _o: calls.append(m))
    kept = SelfCondition(ddt.encode(x, t, cond))
    assert len(calls) == 2
    ddt.decode(x, kept)
    assert len(calls) == 2 + 3
    ddt.decode(2 * x, kept)
    assert len(calls) == 2 + 3
    ddt.decode(x, kept.s)
    assert len(calls) == 2 + 3 + 3


def test_decoder_sees_time_and_label_through_s_only(ddt, batch):
    x, t, cond = batch(ddt.settings)
    s = ddt.encode(x, t, cond)
    seen = []
    for name, module in ddt.named_modules():
        module.register_forward_hook(lambda _m, _a, _o, name=name: seen.append(name))
    ddt.decode(x, s)
    assert {name.split(".")[0] for name in seen} == {"patch", "blocks", "final"}
    assert {name.split(".")[1] for name in seen if name.startswith("blocks")} == {"2", "3"}
    seen.clear()
    ddt.encode(x, t, cond)
    assert {name.split(".")[0] for name in seen} == {"encoder_patch", "time", "label", "blocks"}
    assert {name.split(".")[1] for name in seen if name.startswith("blocks")} == {"0", "1"}


def test_captures_are_taken_before_the_silu(ddt, batch):
    """hidden[2], the last of the encoder, is what alignment sees; s adds the time and the SiLU."""
    x, t, cond = batch(ddt.settings)
    hidden = ddt(x, t, cond, capture=(1, 2, 3, 4)).hidden
    time = ddt.time(1 - t)[:, None]
    assert torch.equal(ddt.encode(x, t, cond), silu(time + hidden[2]))
    first = ddt.blocks[0](ddt.encoder_patch(x), silu(time + ddt.label(cond.label)[:, None]), ddt._rotation(x))[0]
    assert torch.equal(hidden[1], first)
    third = ddt.blocks[2](ddt.patch(x), ddt.encode(x, t, cond), ddt._rotation(x))[0]
    assert torch.equal(hidden[3], third)
    assert list(hidden) == [1, 2, 3, 4]


def test_improved_dit_is_conditioned_by_time_and_label(network, batch):
    model = network(SPLITS["improved_dit"])
    x, t, cond = batch(model.settings)
    s = model.encode(x, t, cond)
    assert torch.equal(s, silu(model.time(1 - t) + model.label(cond.label))[:, None])
    assert model.encoder_patch is None and not any(name.startswith("encoder_patch") for name in model.state_dict())


def test_gradient_flows_through_s(case, batch):
    """The encoder learns from the decoder's loss, through s and through modulations that are kept."""
    settings, model = case
    x, t, cond = batch(settings)
    parameters = dict(model.named_parameters())
    grads = []
    for keep in (False, True):
        s = model.encode(x, t, cond)
        s.retain_grad()
        out = model.decode(x, SelfCondition(s) if keep else s)
        grads.append(torch.autograd.grad(out.square().mean(), [s, *parameters.values()]))
    for name, plain, kept in zip(["s", *parameters], *grads, strict=True):
        assert plain.abs().sum() > 0 and torch.equal(plain, kept), name
    out = model(x, t, cond).sample.square().mean()
    whole = torch.autograd.grad(out, list(parameters.values()))
    assert all(torch.equal(a, b) for a, b in zip(whole, grads[0][1:], strict=True))


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.long)])
def test_both_halves_compile_as_one_graph(ddt, batch, backend):
    torch._dynamo.reset()
    x, t, cond = batch(ddt.settings)
    encode = torch.compile(ddt.encode, fullgraph=True, backend=backend)
    decode = torch.compile(ddt.decode, fullgraph=True, backend=backend)
    with torch.no_grad():
        s = ddt.encode(x, t, cond)
        kept = SelfCondition(s)
        assert torch.equal(encode(x, t, cond), s)
        assert torch.equal(decode(x, kept), ddt.decode(x, s)) and len(kept.modulations) == 3
        assert torch.equal(decode(2 * x, kept), ddt.decode(2 * x, s))
        assert torch.equal(decode(x, s), ddt.decode(x, s))


def test_an_s_that_is_not_of_x_is_refused(ddt, network, batch):
    x, t, cond = batch(ddt.settings)
    s = ddt.encode(x, t, cond)
    for wrong in (s[:1], s[:, :1], s[..., :16], SelfCondition(s[:2])):
        with pytest.raises(ValueError, match=r"^DDT\.decode: s is .* and this x \(3, 4, 8, 8\) needs \(3, 16, 32\)$"):
            ddt.decode(x, wrong)
    with pytest.raises(ValueError, match=r"needs \(3, 24, 32\)"):
        ddt.decode(torch.zeros(3, 4, 8, 12), s)
    with pytest.raises(ValueError, match=r"needs \(3, 1, 32\)"):
        network(SPLITS["improved_dit"]).decode(x, s)
    kept = SelfCondition(s)
    ddt.decode(x, kept)
    with pytest.raises(ValueError, match="keeps 3 modulations, this decoder makes 2"):
        network(SPLITS["3_1"]).decode(x, kept)
    with pytest.raises(ValueError, match=r"needs cond\.label"):
        ddt.encode(x, t, Condition())
    with pytest.raises(ValueError, match="9 x 8 is not a multiple of patch 2"):
        ddt.encode(torch.zeros(3, 4, 9, 8), t, cond)


# --------------------------------------------------------------------------------------------- positions and precision


def test_positions_interpolate(ddt):
    """At twice the sides the corners stay where they are, and what lies between moves closer together."""
    coarse, fine = (ddt._rotation(torch.zeros(1, 4, n, n))[0].unflatten(0, (n // 2, n // 2)) for n in (8, 16))
    for row in (0, -1):
        for column in (0, -1):
            assert torch.allclose(coarse[row, column], fine[row, column], atol=1e-6)
    step = math.acos(fine[0, 1, 2].item())  # pair 2: the second column frequency, 10000^(-1/2)
    assert step == pytest.approx(16 / 7 / 100, rel=1e-3)
    assert math.acos(coarse[0, 1, 2].item()) == pytest.approx(16 / 3 / 100, rel=1e-3)


def test_rows_and_columns_are_those_of_the_latent(ddt):
    rotation = ddt._rotation(torch.zeros(1, 4, 8, 12))
    for got, want, turned in zip(rotation, rope_table(4, 6, 8), rope_table(6, 4, 8), strict=True):
        assert torch.equal(got, want) and not torch.equal(got, turned)


def test_there_is_no_other_position(ddt):
    """No table in the weights; without RoPE the network could not tell one token from another."""
    assert all(name.split(".")[0] in ("patch", "encoder_patch", "time", "label", "blocks", "final")
               for name in ddt.state_dict())  # fmt: skip
    assert not list(ddt.buffers())
    x = torch.full((1, 4, 8, 8), 0.5)
    x[..., :2, :2] = -2.0  # one token differs, so attention has something to place
    out = ddt(x, torch.tensor([0.5]), Condition(label=torch.tensor([1]))).sample
    near, far = out[0, :, 0:2, 2:4], out[0, :, 6:8, 6:8]
    assert not torch.allclose(near, far, atol=1e-4)


def test_self_condition_is_float32_under_autocast(ddt, batch):
    x, t, cond = batch(ddt.settings)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = ddt(x, t, cond, capture=(1, 2, 3, 4)).hidden
        assert ddt.encode(x, t, cond).dtype == torch.float32
    assert {h.dtype for h in hidden.values()} == {torch.float32}  # the residual stream of both halves


def test_network_time_is_one_minus_t(ddt, batch):
    """Exact for a t of float64 as well: rounded to float32 once, before the map."""
    x, _, cond = batch(ddt.settings)
    seen = []
    ddt.time.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    t = torch.tensor([0.0, 0.1, 1.0])
    ddt.encode(x, t, cond)
    ddt.encode(x, t.double(), cond)
    assert torch.equal(seen[0], 1 - t) and torch.equal(seen[1], seen[0])


# ----------------------------------------------------------------------------------------------- sizes, initialisation


@pytest.mark.parametrize(("name", "blocks", "parameters", "hidden"), PUBLISHED)
def test_published_sizes(name, blocks, parameters, hidden):
    settings = ddt_settings(name) if blocks[0] else ddt_settings(name, encoder_blocks=0)
    assert (settings.encoder_blocks, settings.decoder_blocks) == blocks
    with torch.device("meta"):
        model = DDT(settings)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert settings.hidden == hidden and model.blocks[0].mlp.gate.weight.shape[0] == hidden
    x, cond = torch.empty(2, 4, 32, 32, device="meta"), Condition(label=torch.empty(2, dtype=torch.long, device="meta"))
    assert model(x, torch.empty(2, device="meta"), cond).sample.shape == x.shape


def _tiny(generator=None, **overrides):
    base = {"encoder_blocks": 2, "decoder_blocks": 1, "width": 192, "heads": 6, "size": (16, 16), "num_classes": 100}
    return build_model(DDTSettings(**{**base, **overrides}), generator=generator)


@pytest.mark.parametrize(("source", "family", "blocks"), [("ddt", "ddt", 2), ("improved-dit", "improved_dit", 0)])
def test_recorded_statistics(reference, source, family, blocks):
    """The released initialisation, tensor by tensor."""
    case = reference("init_stats")
    recorded = case.meta["info"][family]
    depth = 1 + max(int(key.split(".")[1]) for key in recorded if key.startswith("blocks."))
    model = _tiny(torch.Generator().manual_seed(1234), encoder_blocks=blocks, decoder_blocks=depth - blocks)
    state = export_published(model, source)
    assert state.keys() == recorded.keys()
    for key, want in recorded.items():
        got = state[key].double()
        assert list(got.shape) == want["shape"], key
        if "constant" in want:
            assert torch.equal(got, torch.full_like(got, want["constant"])), key
            continue
        enough = 2 / math.sqrt(got.numel())  # some standard errors
        assert got.std().item() == pytest.approx(want["std"], rel=max(0.03, enough)), key
        assert got.mean().item() == pytest.approx(want["mean"], abs=2 * enough * want["std"]), key
        if "normal" not in want["looks_like"]:  # bounded, and the largest value comes close to the bound
            assert got.abs().max().item() == pytest.approx(max(want["max"], -want["min"]), rel=0.04), key
    case.close(f"{family}.std", torch.stack([state[key].std() for key in recorded]))


@pytest.mark.parametrize("adaln_zero", [False, True])
@pytest.mark.parametrize("blocks", [2, 0])
def test_output_is_zero_at_the_start(adaln_zero, blocks):
    model = _tiny(adaln_zero=adaln_zero, encoder_blocks=blocks)
    out = model(torch.randn(2, 4, 16, 16), torch.tensor([0.1, 0.9]), Condition(label=torch.tensor([0, 100])))
    assert torch.equal(out.sample, torch.zeros(2, 4, 16, 16))


def test_blocks_start_as_the_identity_with_adaln_zero_only():
    """The paper says AdaLN-Zero; the released code (our default) leaves block modulations as PyTorch makes them."""
    h, c = torch.randn(2, 64, 192), torch.randn(2, 64, 192)
    for zero in (True, False):
        model = _tiny(adaln_zero=zero)
        rotation = model._rotation(torch.zeros(1, 4, 16, 16))
        for block in model.blocks:
            out = block(h, c, rotation)[0]
            assert torch.equal(out, h) if zero else (out - h).abs().mean() > 0.01
    assert DDTSettings(**BASE).adaln_zero is False


def test_the_generator_decides():
    first, second, other = (_tiny(torch.Generator().manual_seed(seed)).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], second[key]) for key in first)
    for key in ("blocks.0.mlp.down.weight", "blocks.2.attention.proj.bias", "time.mlp.0.bias", "label.table.weight",
                "encoder_patch.project.weight", "blocks.1.modulation.linear.weight"):  # fmt: skip
        assert not torch.equal(first[key], other[key]), key
    again = _tiny()
    again.initialise(torch.Generator().manual_seed(3))
    assert all(torch.equal(first[key], value) for key, value in again.state_dict().items())
