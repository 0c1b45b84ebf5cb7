"""What every network must do; a new model is one more line in CASES."""

import pytest
import torch

from ditkit.models import (
    DDT_SIZES,
    SIZES,
    CrossDiTSettings,
    DDTSettings,
    DiT,
    DiTSettings,
    JointDiTSettings,
    MMDiTSettings,
    UViTSettings,
    build_model,
    ddt_settings,
    dit_settings,
    reads_text,
)
from ditkit.nn.position import sincos_table
from ditkit.protocols import Condition, Decoupled, Denoiser

BASE = {"depth": 3, "width": 32, "heads": 4, "size": (8, 8), "num_classes": 5}
DDT_BASE = {"encoder_blocks": 2, "decoder_blocks": 1, "width": 32, "heads": 4, "size": (8, 8), "num_classes": 5}
DIT_CASES = {
    "adaln_zero": DiTSettings(**BASE),
    "adaln": DiTSettings(**BASE, conditioning="adaln"),
    "cross_attention": DiTSettings(**BASE, conditioning="cross_attention"),
    "in_context": DiTSettings(**BASE, conditioning="in_context"),
    "qk_layer": DiTSettings(**BASE, qk_norm="layer"),
    "qk_rms": DiTSettings(**BASE, qk_norm="rms", conditioning="cross_attention"),
    "learned": DiTSettings(**BASE, variance="learned", time_scale=999.0),
    "dropped": DiTSettings(**BASE, variance="dropped", time_scale=-1.0, time_offset=1.0),
    "one_class": DiTSettings(**{**BASE, "num_classes": 1}),
    "unconditional": DiTSettings(**{**BASE, "num_classes": 0}),
    "unconditional_in_context": DiTSettings(**{**BASE, "num_classes": 0}, conditioning="in_context"),
    "unconditional_cross": DiTSettings(**{**BASE, "num_classes": 0}, conditioning="cross_attention"),
    "pixels": DiTSettings(**{**BASE, "channels": 1, "size": (12, 8), "patch": 4}),
}
TEXT = {"depth": 3, "width": 32, "heads": 4, "channels": 4, "text_width": 12, "pooled_width": 10, "text_length": 6}
TEXT_CASES = {
    "mmdit": MMDiTSettings(**TEXT, size=(8, 8)),
    "mmdit_3_sets": MMDiTSettings(**TEXT, size=(8, 8), sets=3, text_split=2, qk_norm="rms"),
    "mmdit_x": MMDiTSettings(**TEXT, size=(8, 8), dual=(1, 2), qk_norm="rms", table=12, step=0.5, time_scale=1.0),
    "joint_dit": JointDiTSettings(**TEXT, size=(8, 8)),
    "joint_dit_unpooled": JointDiTSettings(**{**TEXT, "pooled_width": 0}, size=(8, 8), qk_norm="rms"),
    "cross_dit": CrossDiTSettings(**TEXT, size=(8, 8)),
    "cross_dit_pixels": CrossDiTSettings(**{**TEXT, "channels": 1}, size=(12, 8), patch=4, qk_norm="layer"),
    "uvit": UViTSettings(**TEXT, size=(8, 8), levels=(16,)),
    "uvit_2_levels": UViTSettings(**TEXT, size=(16, 24), levels=(8, 12), level_blocks=1, patch=2, qk_norm="rms"),
}
CASES = {
    **DIT_CASES,
    **TEXT_CASES,
    "ddt_3_1": DDTSettings(**{**DDT_BASE, "encoder_blocks": 3}),
    "ddt_1_2": DDTSettings(**{**DDT_BASE, "encoder_blocks": 1, "decoder_blocks": 2}),
    "improved_dit": DDTSettings(**{**DDT_BASE, "encoder_blocks": 0, "decoder_blocks": 3}),
    "ddt_unconditional": DDTSettings(**{**DDT_BASE, "num_classes": 0}),
    "ddt_pixels": DDTSettings(**{**DDT_BASE, "channels": 1, "size": (12, 8), "patch": 4}),
    "ddt_adaln_zero": DDTSettings(**DDT_BASE, adaln_zero=True),
    "ddt_other_time": DDTSettings(**DDT_BASE, time_scale=1.0, time_offset=0.0),
    "ddt_checkpointing": DDTSettings(**DDT_BASE, checkpointing=True),
}


@pytest.fixture(params=CASES, scope="module")
def case(request, network):
    settings = CASES[request.param]
    return settings, network(settings)


@pytest.fixture(params=DIT_CASES, scope="module")
def dit(request, network):
    settings = CASES[request.param]
    return settings, network(settings)


def test_surface(case, batch):
    settings, model = case
    x, t, cond = batch(settings)
    assert isinstance(model, Denoiser) and model.settings == settings
    assert isinstance(model, Decoupled) == isinstance(settings, DDTSettings)
    out = model(x, t, cond, capture=(1, settings.depth))
    channels = settings.channels * (2 if settings.variance == "learned" else 1)
    assert out.sample.shape == (3, channels, *settings.size)
    tokens = settings.grid[0] * settings.grid[1]
    assert {k: v.shape for k, v in out.hidden.items()} == dict.fromkeys((1, settings.depth), (3, tokens, 32))
    assert model(x, t, cond).hidden == {}


def test_capture_changes_nothing(case, batch):
    settings, model = case
    x, t, cond = batch(settings)
    every = tuple(range(1, settings.depth + 1))
    assert torch.equal(model(x, t, cond).sample, model(x, t, cond, capture=every).sample)


def test_each_row_stands_alone(case, batch):
    settings, model = case
    x, t, cond = batch(settings, n=4)
    whole = model(x, t, cond).sample
    for i in range(4):
        alone = model(x[i : i + 1], t[i : i + 1], cond.index(slice(i, i + 1))).sample
        assert torch.allclose(alone, whole[i : i + 1], atol=2e-5)


def test_everything_matters(case, batch):
    """Time, label and image each move the output: a network that ignored one would pass many other tests."""
    settings, model = case
    x, t, cond = batch(settings)
    out = model(x, t, cond).sample
    assert not torch.allclose(out, model(x, (t + 0.3) % 1, cond).sample, atol=1e-3)
    assert not torch.allclose(out, model(x.flip(-1), t, cond).sample, atol=1e-3)
    if len(cond):
        assert not torch.allclose(out, model(x, t, model.null(cond)).sample, atol=1e-3)


def test_null(case, batch):
    settings, model = case
    _, _, cond = batch(settings)
    null = model.null(cond)
    assert len(null) == len(cond)
    if settings.num_classes:
        assert null.label.tolist() == [settings.num_classes] * 3
    elif reads_text(settings):
        assert null.tensors.keys() == cond.tensors.keys() and not any(v.any() for v in null.tensors.values())
    else:
        assert null == cond


def test_scalar_time(case, batch):
    settings, model = case
    x, _, cond = batch(settings)
    assert torch.equal(model(x, torch.tensor(0.3), cond).sample, model(x, torch.full((3,), 0.3), cond).sample)


def test_activation_checkpointing_gives_equal_gradients(case, batch):
    settings, model = case
    x, t, cond = batch(settings)
    other = build_model(settings.model_copy(update={"checkpointing": not settings.checkpointing}))
    other.load_state_dict(model.state_dict())
    grads = []
    for network_ in (model, other):
        out = network_(x, t, cond, capture=(2,))
        loss = out.sample.square().mean() + out.hidden[2].mean()
        grads.append(torch.autograd.grad(loss, list(network_.parameters()), allow_unused=True))
    for a, b in zip(*grads, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_every_parameter_has_a_gradient(case, batch):
    settings, model = case
    x, t, cond = batch(settings)
    model.zero_grad()
    model(x, t, cond).sample.square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    model.zero_grad()


def test_compiles_as_one_graph(case, batch):
    settings, model = case
    torch._dynamo.reset()
    x, t, cond = batch(settings)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        got, want = compiled(x, t, cond, capture=(2,)), model(x, t, cond, capture=(2,))
    assert torch.equal(got.sample, want.sample) and torch.equal(got.hidden[2], want.hidden[2])


def test_bf16_autocast_keeps_time_and_position(case, batch):
    """A time of 8 significant bits is another time: under autocast the conditioning must be the float32 one."""
    settings, model = case
    x, t, cond = batch(settings)
    seen = {}
    handles = [
        model.time.register_forward_pre_hook(lambda _m, args: seen.setdefault("t", []).append(args[0])),
        model.time.register_forward_hook(lambda _m, _a, out: seen.setdefault("time", []).append(out)),
    ]
    plain = model(x, t, cond, capture=(1,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(x, t, cond, capture=(1,))
        tokens = model.patch(x)
        position = model._rotation(x)[0] if isinstance(settings, DDTSettings) else model.position
    for handle in handles:
        handle.remove()
    for first, second in seen.values():
        assert second.dtype == torch.float32 and torch.equal(first, second)
    assert tokens.dtype == torch.bfloat16 and half.hidden[1].dtype == torch.float32  # the residual stream
    assert position.dtype == torch.float32
    scale = plain.sample.abs().mean()
    assert (plain.sample - half.sample.float()).abs().mean() < 0.05 * scale


def test_other_sizes_use_a_crop_of_the_same_table(dit, batch):
    """A non-square input equals a model whose position table was cropped by hand."""
    settings, model = dit
    p = settings.patch
    rows, columns = settings.grid[0] + 2, settings.grid[1] + 1
    x, t, cond = batch(settings, size=(rows * p, columns * p))
    table = sincos_table(rows + 3, columns + 2, settings.width).unflatten(0, (rows + 3, columns + 2))
    by_hand = DiT(settings.model_copy(update={"size": (rows * p, columns * p)}))
    state = {**model.state_dict(), "position": table[:rows, :columns].flatten(0, 1)}
    by_hand.load_state_dict(state)
    assert torch.equal(model(x, t, cond).sample, by_hand.eval()(x, t, cond).sample)
    turned = model(x.transpose(-1, -2), t, cond).sample
    assert turned.shape[-2:] == (columns * p, rows * p)


def test_native_size_uses_the_stored_table(dit, batch):
    settings, model = dit
    x, t, cond = batch(settings)
    before = model(x, t, cond).sample
    saved = model.position.clone()
    model.position.neg_()
    after = model(x, t, cond).sample
    model.position.copy_(saved)
    assert not torch.allclose(before, after, atol=1e-3)


def test_pure_bfloat16_weights(case, network, batch):
    settings, _ = case
    model = network(settings).to(torch.bfloat16)
    x, t, cond = batch(settings)
    assert model(x, t, cond).sample.dtype == torch.bfloat16
    assert model(x.double(), t.double(), cond).sample.dtype == torch.bfloat16


def test_float64_weights(case, network, batch):
    """All but the sinusoid and RoPE's angles is float64 then: float32 is within its own rounding of it."""
    settings, model = case
    x, t, cond = batch(settings)
    want, wide = model(x, t, cond, capture=(1,)), network(settings).double()(x, t, cond, capture=(1,))
    assert wide.sample.dtype == wide.hidden[1].dtype == torch.float64
    assert torch.allclose(want.sample.double(), wide.sample, atol=1e-4)


def test_any_size(case, batch):
    """Every multiple of a token's side, non-square too, and no direction is taken for the other."""
    settings, model = case
    rows, columns, side = settings.grid[0] + 2, settings.grid[1] + 1, settings.size[0] // settings.grid[0]
    x, t, cond = batch(settings, size=(rows * side, columns * side))
    out = model(x, t, cond, capture=(2,))
    assert out.sample.shape[-2:] == x.shape[-2:] and out.hidden[2].shape[1] == rows * columns
    turned = model(x.transpose(-1, -2), t, cond).sample.transpose(-1, -2)
    assert not torch.allclose(out.sample, turned, atol=1e-3)


@pytest.mark.parametrize("name", ["adaln_zero", "ddt_1_2", "improved_dit"])
def test_bad_calls_say_what_is_wrong(name, network, batch):
    settings = CASES[name]
    model = network(settings)
    unconditional = network(settings.model_copy(update={"num_classes": 0}))
    x, t, cond = batch(settings)
    with pytest.raises(ValueError, match="9 x 8 is not a multiple of patch 2"):
        model(torch.zeros(3, 4, 9, 8), t, cond)
    with pytest.raises(ValueError, match=r"needs cond\.label"):
        model(x, t, Condition())
    with pytest.raises(ValueError, match=r"capture \[0, 4\] names no block; blocks count from 1 to 3"):
        model(x, t, cond, capture=(0, 2, 4))
    with pytest.raises(ValueError, match="is unconditional"):
        unconditional(x, t, cond)
    for text in ({"text": torch.zeros(3, 2, 4)}, {"pooled": torch.zeros(3, 4)}):
        with pytest.raises(ValueError, match="knows no text"):
            model(x, t, Condition(label=cond.label, **text))
        with pytest.raises(ValueError, match="knows no text"):
            unconditional(x, t, Condition(**text))
    with pytest.raises(ValueError, match="given no label"):
        model.null(Condition())
    with pytest.raises(ValueError, match="null_label=False"):
        network(settings.model_copy(update={"null_label": False})).null(cond)


def test_sizes_and_settings():
    assert len(SIZES) == 12 and set(SIZES) == {f"{s}/{p}" for s in ("S", "B", "L", "XL") for p in (2, 4, 8)}
    s = dit_settings("XL/2", num_classes=3)
    assert (s.depth, s.width, s.heads, s.patch, s.num_classes) == (28, 1152, 16, 2, 3)
    assert DiTSettings.model_validate_json(s.model_dump_json()) == s
    with pytest.raises(ValueError, match="no size 'H/2'; choose from S/2"):
        dit_settings("H/2")


def test_ddt_sizes_and_settings():
    assert list(DDT_SIZES) == ["B/2", "L/2", "XL/2"]
    s = ddt_settings("XL/2", num_classes=3)
    assert (s.encoder_blocks, s.decoder_blocks, s.depth, s.width, s.heads, s.patch) == (22, 6, 28, 1152, 16, 2)
    assert DDTSettings.model_validate_json(s.model_dump_json()) == s
    for blocks in (0, 6, 11):
        assert ddt_settings("B/2", encoder_blocks=blocks).decoder_blocks == 12 - blocks
    other = ddt_settings("B/2", encoder_blocks=3, decoder_blocks=2)
    assert (other.encoder_blocks, other.decoder_blocks, other.width) == (3, 2, 768)
    with pytest.raises(ValueError, match=r"decoder_blocks\n.*greater than 0"):
        ddt_settings("B/2", encoder_blocks=12)
    with pytest.raises(ValueError, match="no size 'S/2'; choose from B/2, L/2, XL/2"):
        ddt_settings("S/2")


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (DiTSettings, {"heads": 5}, "not a multiple of heads"),
        (DiTSettings, {"width": 30, "heads": 2}, "multiple of 4"),
        (DiTSettings, {"size": (9, 8)}, "not a multiple of patch"),
        (DDTSettings, {"heads": 5}, "not heads 5 times a multiple of 4"),
        (DDTSettings, {"width": 36, "heads": 6}, "not heads 6 times a multiple of 4"),
        (DDTSettings, {"size": (8, 9)}, "not a multiple of patch"),
        (DDTSettings, {"decoder_blocks": 0}, "greater than 0"),
    ],
)
def test_wrong_settings(kind, wrong, message):
    base = BASE if kind is DiTSettings else DDT_BASE
    with pytest.raises(ValueError, match=message):
        kind(**{**base, **wrong})


def test_in_context_and_cross_attention_orders_are_ours(network, batch):
    """Tokens: image, then time, then label; captured tokens never contain the extra ones."""
    model = network(CASES["in_context"])
    x, t, cond = batch(model.settings)
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    model(x, t, cond)
    image, extra = seen[0][:, :16], seen[0][:, 16:]
    assert torch.allclose(image, model.patch(x) + model.position)
    assert torch.allclose(extra[:, 0], model.time(t)) and torch.equal(extra[:, 1], model.label(cond.label))
