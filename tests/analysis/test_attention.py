"""Attention as recorded: entropies of known rows, models untouched bit by bit, every family's queries and keys."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from ditkit.analysis.attention import Trace, attention_rows, recordable, recording
from ditkit.models import (
    Condition,
    CrossDiTSettings,
    DDTSettings,
    DiTSettings,
    JointDiTSettings,
    MMDiTSettings,
    build_model,
    reads_text,
)

SIZE = {"width": 32, "heads": 4, "size": (8, 8), "patch": 2}
TEXT = {**SIZE, "depth": 2, "channels": 4, "text_width": 12, "pooled_width": 10, "text_length": 6}
MODELS = {
    "dit": DiTSettings(**SIZE, depth=2, num_classes=5),
    "dit_qk": DiTSettings(**SIZE, depth=2, num_classes=5, qk_norm="layer"),
    "in_context": DiTSettings(**SIZE, depth=2, num_classes=5, conditioning="in_context"),
    "ddt": DDTSettings(**SIZE, encoder_blocks=2, decoder_blocks=1, num_classes=5),
    "improved_dit": DDTSettings(**SIZE, encoder_blocks=0, decoder_blocks=2, num_classes=5),
    "mmdit": MMDiTSettings(**TEXT),
    "mmdit_3_sets": MMDiTSettings(**TEXT, sets=3, text_split=2, qk_norm="rms"),
    "mmdit_x": MMDiTSettings(**TEXT, dual=(1,), qk_norm="rms"),
    "joint_dit": JointDiTSettings(**TEXT),
    "cross_dit": CrossDiTSettings(**TEXT),
}
N = 16


def prepare(settings):
    """A model in which nothing is zero, with a batch of 3 for it: (model, x, t, cond)."""
    generator = torch.Generator().manual_seed(5)
    model = build_model(settings).eval().requires_grad_(False)
    for p in model.parameters():
        p.copy_(torch.randn(p.shape, generator=generator) * 0.15)
    x, t = torch.randn(3, 4, 8, 8, generator=generator), torch.rand(3, generator=generator)
    if reads_text(settings):
        cond = Condition(
            text=torch.randn(3, 6, 12, generator=generator), pooled=torch.randn(3, 10, generator=generator),
            mask=torch.arange(6) <= torch.tensor([[5], [1], [2]]),
        )  # fmt: skip
    else:
        cond = Condition(label=torch.tensor([0, 1, 2]))
    return model, x, t, cond


@pytest.mark.parametrize("name", MODELS)
def test_the_model_says_the_same_bit_by_bit_and_hooks_are_gone(name):
    settings = MODELS[name]
    model, x, t, cond = prepare(settings)
    every = tuple(range(1, settings.depth + 1))
    plain = model(x, t, cond, capture=every)
    with recording(model, N, text_first=settings.kind == "joint_dit") as traces:
        assert recordable(model)
        watched = model(x, t, cond)
    assert torch.equal(plain.sample, watched.sample) and len(traces) == settings.depth
    assert torch.equal(model(x, t, cond).sample, plain.sample) and int(traces[0].count.max()) == 3
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for block, trace in enumerate(traces, start=1):
        assert trace.heads.shape == (4,) and (trace.heads > 0).all() and (trace.heads < 1).all()
        assert math.isfinite(trace.largest_logit)
        first_of_half = name == "ddt" and block == 3  # a decoder begins with the patches
        if block > 1 and not first_of_half:
            before = plain.hidden[block - 1]
            assert trace.rms == pytest.approx(float(before.double().square().mean().sqrt()), rel=1e-6)
            assert trace.largest_activation == float(before.abs().max())
        joint = name.startswith("mmdit") or name == "joint_dit"
        assert (0 < trace.weight_on_text < 1) == joint
        assert (trace.text_entropy is None) == (not joint and name != "in_context")


@pytest.mark.parametrize("name", ["dit_qk", "in_context", "ddt", "mmdit", "mmdit_3_sets", "joint_dit"])
def test_rows_are_those_that_the_attention_used(name, monkeypatch):
    """What scaled_dot_product_attention is really given, with the identity as values, answers its weights."""
    settings = MODELS[name]
    model, x, t, cond = prepare(settings)
    weights = []

    def spy(q, k, v, attn_mask=None):
        eye = torch.eye(k.shape[2]).expand(*k.shape[:2], -1, -1)
        weights.append(scaled_dot_product_attention(q, k, eye, attn_mask=attn_mask))
        return scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)

    for module in ("ditkit.nn.attention", "ditkit.models.mmdit"):
        monkeypatch.setattr(f"{module}.scaled_dot_product_attention", spy)
    with recording(model, N, text_first=name == "joint_dit") as traces:
        model(x, t, cond)
    assert len(weights) == len(traces)
    for used, trace in zip(weights, traces, strict=True):
        image = slice(-N, None) if reads_text(settings) else slice(0, N)
        keys = (used > 0).any(2).any(1).sum(1).view(3, 1, 1)  # attended keys of each sample
        entropy = torch.special.entr(used).sum(-1) / keys.log()
        assert torch.allclose(trace.heads, entropy[:, :, image].mean((0, 2)).double(), atol=1e-5)
        if reads_text(settings):
            assert trace.weight_on_text == pytest.approx(float(used[:, :, image, :-N].sum(-1).mean()), abs=1e-5)
            rows = entropy[:, :, :-N].mean(1)[cond.mask]  # what padding asks for is nobody's attention
            assert trace.text_entropy == pytest.approx(float(rows.mean()), abs=1e-5)


def test_known_rows():
    q, k = torch.zeros(2, 3, 5, 4), torch.randn(2, 3, 8, 4, generator=torch.Generator().manual_seed(0))
    even = attention_rows(q, k, text=2)
    assert torch.allclose(even.entropy, torch.full((3, 5), 2.0, dtype=torch.float64)) and even.logit == 0
    assert torch.allclose(even.text, torch.full((3, 5), 0.5, dtype=torch.float64))
    mask = torch.arange(8).expand(2, 8) < torch.tensor([[8], [4]])
    assert torch.allclose(attention_rows(q, k, mask).entropy, even.entropy), "even over the keys that count"
    assert torch.allclose(attention_rows(q, k, torch.arange(8).expand(2, 8) < 1).entropy, torch.zeros(3, 5).double())
    one = torch.eye(8)[:5].expand(2, 3, 5, 8) * 100
    peaked = attention_rows(one, torch.eye(8).expand(2, 3, 8, 8))
    assert float(peaked.entropy.max()) < 1e-10 and peaked.logit == pytest.approx(100 / math.sqrt(8))


def test_padding_neither_asks_nor_is_asked():
    """Three texts, of which two are padding that shouts, before three images."""
    q, k = torch.zeros(2, 1, 6, 4), torch.zeros(2, 1, 6, 4)
    mask = torch.tensor([[True, False, False, True, True, True]]).expand(2, -1)
    q[:, :, 1:3], k[:, :, 3] = 50.0, 50.0
    rows = attention_rows(q, k, mask, 3, mask)
    trace = Trace()
    for _ in range(2):
        trace.add_rows(rows, slice(3, 6))
    assert rows.logit == 0 and rows.count.tolist() == [2, 0, 0, 2, 2, 2]
    assert trace.text_entropy == pytest.approx(1) and trace.heads.tolist() == pytest.approx([1])
    assert trace.weight_on_text == pytest.approx(0.25)


def test_pieces_add_up(monkeypatch):
    g = torch.Generator().manual_seed(1)
    q, k = torch.randn(5, 2, 6, 4, generator=g), torch.randn(5, 2, 7, 4, generator=g)
    whole = attention_rows(q, k, text=3)
    monkeypatch.setattr("ditkit.analysis.attention.AT_ONCE", 1)
    parts = attention_rows(q, k, text=3)
    assert torch.allclose(whole.entropy, parts.entropy) and torch.allclose(whole.text, parts.text)
    assert whole.logit == parts.logit and parts.count.tolist() == [5] * 6


def test_larger_queries_make_larger_logits_and_lower_entropy_but_for_a_norm():
    """SD3's argument: growing weights sharpen attention, and a norm of queries and keys takes their size out."""
    for name, stays in (("dit", False), ("dit_qk", True)):
        model, x, t, cond = prepare(MODELS[name])
        found = []
        for _ in range(2):
            with recording(model, N) as traces:
                model(x, t, cond)
            found.append(traces[0])
            for block in model.blocks:
                block.attention.qkv.weight[: 2 * 32] *= 20
        if stays:
            assert found[1].largest_logit == pytest.approx(found[0].largest_logit, rel=0.05)
        else:
            assert found[1].largest_logit > 100 * abs(found[0].largest_logit)
            assert float(found[1].heads.mean()) < 0.7 * float(found[0].heads.mean())


def test_batches_add_up_and_what_is_no_transformer_is_told():
    model, x, t, cond = prepare(MODELS["dit"])
    with recording(model, N) as whole:
        model(x, t, cond)
    with recording(model, N) as parts:
        for rows in (slice(0, 2), slice(2, 3)):
            model(x[rows], t[rows], cond.index(rows))
    for a, b in zip(whole, parts, strict=True):
        assert torch.allclose(a.heads, b.heads, atol=1e-6) and a.rms == pytest.approx(b.rms, rel=1e-6)
        assert int(b.count[0]) == 3 and a.largest_logit == pytest.approx(b.largest_logit, rel=1e-5)
    assert not recordable(nn.Linear(2, 2))
