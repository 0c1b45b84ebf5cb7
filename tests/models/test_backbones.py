"""SD3's comparison backbones: their sizes by formula, what each shares with MMDiT or PixArt, and that text is read."""

import pytest
import torch

from ditkit.models import (
    Condition,
    CrossDiTSettings,
    JointDiTSettings,
    MMDiTSettings,
    UViTSettings,
    build_model,
)
from ditkit.nn.attention import CrossAttention

TEXT = {"depth": 2, "heads": 4, "channels": 3, "text_width": 12, "pooled_width": 10, "text_length": 6}
BACKBONES = {
    "mmdit": MMDiTSettings(**TEXT, width=32, size=(8, 8)),
    "joint_dit": JointDiTSettings(**TEXT, width=32, size=(8, 8)),
    "cross_dit": CrossDiTSettings(**TEXT, width=32, size=(8, 8)),
    "uvit": UViTSettings(**TEXT, width=32, size=(8, 8), levels=(8, 16), patch=1),
}
NEW = [name for name in BACKBONES if name != "mmdit"]
NAMES = {"mmdit": "MMDiT", "joint_dit": "JointDiT", "cross_dit": "CrossDiT", "uvit": "UViT"}


def embeddings(s):
    """Patches, time, pooled text, text tokens."""
    first, numbers = (s.levels[0] if s.kind == "uvit" else s.width), s.patch**2 * s.channels
    time = (256 + 1) * s.width + (s.width + 1) * s.width
    pooled = (s.pooled_width + 1) * s.width + (s.width + 1) * s.width if s.pooled_width else 0
    return (numbers + 1) * first + time + pooled + (s.text_width + 1) * s.width


def transformer(s):
    """Attention 4 D^2, MLP 8 D^2, modulation 6 D^2, cross-attention 4 D^2; biases 15 D and 4 D."""
    cross = s.kind != "joint_dit"
    return s.depth * ((22 if cross else 18) * s.width**2 + (19 if cross else 15) * s.width)


def res_block(a, b, width):
    """Two norms, two 3 x 3 convolutions, shift and scale, and 1 x 1 where channels change."""
    return 2 * a + 9 * a * b + b + 2 * b * (width + 1) + 2 * b + 9 * b * b + b + (a != b) * (a * b + b)


def formula(s):
    numbers = s.patch**2 * s.channels
    if s.kind != "uvit":
        return embeddings(s) + transformer(s) + 2 * s.width * (s.width + 1) + (s.width + 1) * numbers
    levels = 0
    for c, below in zip(s.levels, (*s.levels[1:], s.width), strict=True):
        levels += s.level_blocks * (res_block(c, c, s.width) + res_block(2 * c, c, s.width))
        levels += (c + 1) * below + (below + 1) * c
    return embeddings(s) + transformer(s) + levels + 2 * s.levels[0] + (9 * s.levels[0] + 1) * numbers


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("change", [{}, {"depth": 3, "width": 48, "patch": 2, "pooled_width": 0}])
def test_numbers_of_parameters(name, change):
    settings = BACKBONES[name].model_copy(update=change)
    model = build_model(settings)
    assert sum(p.numel() for p in model.parameters()) == formula(settings)
    stored = sum(v.numel() for v in model.state_dict().values())
    assert stored - formula(settings) == settings.grid[0] * settings.grid[1] * settings.width  # the frozen positions


@pytest.mark.parametrize("name", BACKBONES)
def test_masked_tokens_have_no_influence(name, network, batch):
    model = network(BACKBONES[name])
    x, t, cond = batch(model.settings)
    other = torch.where(cond.mask[..., None], cond.text, torch.full_like(cond.text, 50.0))
    same = Condition(text=other, mask=cond.mask, pooled=cond.pooled)
    assert torch.equal(model(x, t, cond).sample, model(x, t, same).sample)
    whole = Condition(text=other, pooled=cond.pooled)
    assert not torch.allclose(model(x, t, cond).sample, model(x, t, whole).sample, atol=1e-3)
    full = Condition(text=cond.text, mask=torch.ones_like(cond.mask), pooled=cond.pooled)
    none = Condition(text=cond.text, pooled=cond.pooled)
    assert torch.allclose(model(x, t, full).sample, model(x, t, none).sample, atol=2e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_sample_without_any_text_token(name, network, batch):
    """A dropped prompt's mask is empty: no 0 / 0, forwards or backwards, and the others are not touched."""
    model = network(BACKBONES[name])
    x, t, cond = batch(model.settings)
    mask = cond.mask.clone()
    mask[1] = False
    text = cond.text.clone().requires_grad_()
    out = model(x, t, Condition(text=text, mask=mask, pooled=cond.pooled)).sample
    out.square().sum().backward()
    assert out.isfinite().all() and text.grad.isfinite().all()
    assert not text.grad[1].any() and text.grad[0].any()
    assert torch.allclose(out[[0, 2]], model(x, t, cond).sample[[0, 2]], atol=2e-5)


def test_cross_attention_reads_nothing_where_nothing_counts():
    attention, context = CrossAttention(8, 2), torch.randn(2, 3, 8)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    out = attention(torch.randn(2, 5, 8), context, mask)
    assert torch.allclose(out[1], attention.proj.bias.expand(5, 8)) and not torch.allclose(out[0], out[1])


@pytest.mark.parametrize("name", NEW)
def test_the_start_is_zero_and_blocks_are_the_identity(name, batch):
    settings = BACKBONES[name]
    model = build_model(settings, generator=torch.Generator().manual_seed(1))
    x, t, cond = batch(settings)
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    out = model(x, t, cond, capture=(1, 2))
    tokens = seen[0][:, -out.hidden[1].shape[1] :]
    assert not out.sample.any()
    assert torch.equal(out.hidden[1], tokens) and torch.equal(out.hidden[2], tokens) and tokens.any()
    again = build_model(settings, generator=torch.Generator().manual_seed(1)).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("qk_norm", ["none", "rms"])
def test_joint_dit_is_mmdit_with_one_set_of_weights(qk_norm, network, batch):
    """The same numbers in both of MMDiT's sets give the same output; its last block has no use for some of them."""
    settings = BACKBONES["joint_dit"].model_copy(update={"qk_norm": qk_norm})
    model = network(settings)
    own = model.state_dict()
    shared = {key.replace("context.", "context.0."): value for key, value in own.items() if "blocks" not in key}
    shared["position"] = own["position"].view(*settings.grid, settings.width)
    for key, value in own.items():
        if key.startswith("blocks."):
            _, number, rest = key.split(".", 2)
            shared[f"blocks.{number}.image.{rest}"] = shared[f"blocks.{number}.text.0.{rest}"] = value
    two = build_model(BACKBONES["mmdit"].model_copy(update={"qk_norm": qk_norm})).eval()
    last = f"blocks.{settings.depth - 1}.text.0."
    unused = [key for key in shared if key.startswith((f"{last}mlp", f"{last}attention.proj"))]
    for key in unused:
        del shared[key]
    for name in ("weight", "bias"):  # of the last text: shift and scale only
        shared[f"{last}modulation.linear.{name}"] = shared[f"{last}modulation.linear.{name}"][: 2 * settings.width]
    two.load_state_dict(shared)
    x, t, cond = batch(settings)
    for given in (cond, Condition(text=cond.text, pooled=cond.pooled)):
        want, got = two(x, t, given, capture=(1, 2)), model(x, t, given, capture=(1, 2))
        assert torch.allclose(got.sample, want.sample, atol=1e-5)
        assert all(torch.allclose(got.hidden[i], want.hidden[i], atol=1e-5) for i in (1, 2))


def test_text_is_read_between_attention_and_mlp_without_gate(network, batch):
    """PixArt's place of the cross-attention: with closed gates the block adds it alone."""
    block = network(BACKBONES["cross_dit"]).blocks[0]
    h, c, text = torch.randn(2, 5, 32), torch.randn(2, 32), torch.randn(2, 3, 32)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block.modulation(c)
    after = h + gate_a * block.attention(block.norm1(h) * (1 + scale_a) + shift_a)
    after = after + block.cross(after, text)
    want = after + gate_m * block.mlp(block.norm2(after) * (1 + scale_m) + shift_m)
    assert torch.allclose(block(h, c, text), want, atol=1e-6)
    with torch.no_grad():
        block.modulation.linear.weight.zero_()
        block.modulation.linear.bias.zero_()
    assert torch.equal(block(h, c, text), h + block.cross(h, text))


@pytest.mark.parametrize("name", NEW)
def test_skipped_blocks_are_passed_by(name, network, batch):
    settings = BACKBONES[name].model_copy(update={"depth": 3})
    model = network(settings)
    x, t, cond = batch(settings)
    skipped = model(x, t, cond, skip=(2,), capture=(1, 2))
    assert torch.equal(skipped.hidden[1], skipped.hidden[2])
    shorter = build_model(settings.model_copy(update={"depth": 2})).eval()
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("blocks.1.")}
    shorter.load_state_dict({key.replace("blocks.2.", "blocks.1."): value for key, value in state.items()})
    assert torch.equal(skipped.sample, shorter(x, t, cond).sample)
    assert not torch.allclose(skipped.sample, model(x, t, cond).sample, atol=1e-3)


def test_uvit_hands_each_map_across(network, batch):
    """The last map of a level is read first on the way up; text meets the coarsest tokens only."""
    settings = BACKBONES["uvit"]
    model = network(settings)
    x, t, cond = batch(settings)
    made, read, tokens = [], [], []
    for level in model.down:
        for block in level.blocks:
            block.register_forward_hook(lambda _m, _a, out: made.append(out))
    for level in model.up:
        for block in level.blocks:
            block.register_forward_pre_hook(lambda _m, args: read.append(args[0]))
    model.blocks[0].register_forward_pre_hook(lambda _m, args: tokens.append(args[0]))
    model(x, t, cond)
    assert len(made) == len(read) == 4 and [m.shape[1:] for m in made[::2]] == [(8, 8, 8), (16, 4, 4)]
    for own, handed in zip(read, reversed(made), strict=True):
        assert torch.equal(own[:, handed.shape[1] :], handed) and own.shape[1] == 2 * handed.shape[1]
    assert tokens[0].shape == (3, 4, 32)
    before = [m.clone() for m in made]
    model(x, t, Condition(text=-cond.text, mask=cond.mask, pooled=cond.pooled))
    assert all(torch.equal(a, b) for a, b in zip(before, made[4:], strict=True))


@pytest.mark.parametrize("name", BACKBONES)
def test_bad_text_says_what_is_wrong(name, network, batch):
    settings = BACKBONES[name]
    model, called = network(settings), NAMES[name]
    x, t, cond = batch(settings)
    side = {"uvit": "patch x 2\\^levels = 4"}.get(name, "patch 2")
    with pytest.raises(ValueError, match=rf"^{called}: latent size 9 x 8 is not a multiple of {side}$"):
        model(torch.zeros(3, 3, 9, 8), t, cond)
    with pytest.raises(ValueError, match=rf"^{called}: this model needs cond\.text \(B, L, 12\)$"):
        model(x, t, Condition(pooled=cond.pooled))
    with pytest.raises(ValueError, match=rf"^{called}: cond\.text is \(3, 6, 5\), expected \(B, L, 12\)$"):
        model(x, t, Condition(text=cond.text[..., :5], pooled=cond.pooled))
    with pytest.raises(ValueError, match=rf"^{called}: this model needs cond\.pooled \(B, 10\), got none$"):
        model(x, t, Condition(text=cond.text))
    with pytest.raises(ValueError, match=rf"^{called}: this model reads text, and cond has a label"):
        model(x, t, Condition(label=torch.zeros(3, dtype=torch.long), text=cond.text, pooled=cond.pooled))
    for part in ("text", "pooled"):
        given = {"text": cond.text, "pooled": cond.pooled} | {part: getattr(cond, part)[:1]}
        with pytest.raises(ValueError, match=rf"^{called}: x has 3 samples, and cond\.{part} has 1$"):
            model(x, t, Condition(**given))
    for mask in (cond.mask.float(), cond.mask[:, :-1]):
        with pytest.raises(ValueError, match=rf"^{called}: cond\.mask is .*, expected torch\.bool \(3, 6\)$"):
            model(x, t, Condition(text=cond.text, pooled=cond.pooled, mask=mask))
    for blocks in ({"capture": (0, 1)}, {"skip": (3,)}):
        with pytest.raises(ValueError, match=rf"^{called}: \[\d\] names no block; blocks count from 1 to 2$"):
            model(x, t, cond, **blocks)


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": 5}, "width 32 is not a multiple of heads 5"),
        ({"width": 30, "heads": 2}, "width 30 is not a multiple of 4"),
        ({"size": (9, 8)}, r"size \(9, 8\) is not a multiple of patch"),
        ({"text_width": 0}, "greater than 0"),
    ],
)
def test_wrong_settings_of_backbones(name, wrong, message):
    settings = BACKBONES[name]
    assert type(settings).model_validate_json(settings.model_dump_json()) == settings
    with pytest.raises(ValueError, match=message):
        type(settings)(**{**settings.model_dump(), **wrong})


def test_uvit_needs_a_level():
    with pytest.raises(ValueError, match="at least 1 item"):
        UViTSettings(**TEXT, width=32, size=(8, 8), levels=())
    with pytest.raises(ValueError, match=r"size \(8, 8\) is not a multiple of patch x 2\^levels = 16"):
        UViTSettings(**TEXT, width=32, size=(8, 8), levels=(8, 8, 8), patch=2)


@pytest.mark.parametrize("name", BACKBONES)
def test_learns_which_image_a_caption_names(name):
    """Two captions that differ in one token, two images: at t = 1, where x is noise, only the text can tell."""
    update = {"patch": 1 if name == "uvit" else 2, "channels": 1, "pooled_width": 0}
    settings = BACKBONES[name].model_copy(update=update)
    model = build_model(settings, generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0)
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randn(2, 6, 12, generator=draw)
    tokens[1, :2] = tokens[0, :2]
    mask = torch.arange(6).expand(2, 6) < 3
    pattern = torch.ones(1, 8, 8)
    pattern[:, :, ::2] = -1
    images = torch.stack([pattern, -pattern])
    which = torch.arange(16) % 2
    cond = Condition(text=tokens[which], mask=mask[which])
    for _ in range(40):
        eps = torch.randn(16, 1, 8, 8, generator=draw)
        t = torch.rand(16, generator=draw).mul(0.5).add(0.5)
        x = images[which] + t[:, None, None, None] * (eps - images[which])
        loss = (model(x, t, cond).sample - (eps - images[which])).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    eps = torch.randn(16, 1, 8, 8, generator=draw)
    with torch.no_grad():
        guess = eps - model(eps, torch.ones(16), cond).sample
    right = (guess * images[which]).mean(dim=(1, 2, 3))
    assert right.min() > 0 and right.mean() > 0.5, right  # an untrained one: mean 0, deviation 1 / 8
