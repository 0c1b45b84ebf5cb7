"""Attention, patches and norms against formulas written out."""

import pytest
import torch
from torch import nn

from ditkit.nn.attention import Attention, CrossAttention
from ditkit.nn.mlp import SwiGLU
from ditkit.nn.modulation import Modulation, TokenModulation, modulate
from ditkit.nn.norm import RMSNorm, head_norm
from ditkit.nn.patch import PatchEmbed, unpatchify
from ditkit.nn.position import rope_table


def _rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("qk_norm", ["none", "layer", "rms"])
@pytest.mark.parametrize("head", [8, 72])  # 72 is XL's: no power of two, which some kernels ask for
def test_attention_is_softmax_of_scaled_products(qk_norm, head):
    layer, x = Attention(3 * head, 3, qk_norm=qk_norm), _rand(2, 5, 3 * head)
    q, k, v = layer.qkv(x).chunk(3, dim=-1)
    heads = []
    for i in range(3):
        part = slice(head * i, head * i + head)
        qi, ki = layer.q_norm(q[..., part]), layer.k_norm(k[..., part])
        heads.append(torch.softmax(qi @ ki.transpose(1, 2) / head**0.5, dim=-1) @ v[..., part])
    assert torch.allclose(layer(x), layer.proj(torch.cat(heads, dim=-1)), atol=1e-6)


def test_attention_with_rotation_is_softmax_of_complex_products():
    """DDT: no qkv bias, RMSNorm of queries and keys, then RoPE: complex pairs, Re(q conj(k)) in the softmax."""
    layer, x = Attention(24, 3, qk_norm="rms", qkv_bias=False), _rand(2, 6, 24)
    with torch.no_grad():
        layer.q_norm.weight.copy_(1 + 0.3 * _rand(8, seed=1))
        layer.k_norm.weight.copy_(1 + 0.3 * _rand(8, seed=2))
    cos, sin = rope_table(2, 3, 8)
    turn = torch.complex(cos, sin)  # (N, h / 2)

    def normed(v, norm):
        v = v / (v.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
        return torch.view_as_complex(v.unflatten(-1, (4, 2)).contiguous()) * turn

    q, k, v = (x @ layer.qkv.weight.T).chunk(3, dim=-1)
    heads = []
    for i in range(3):
        part = slice(8 * i, 8 * i + 8)
        qi, ki = normed(q[..., part], layer.q_norm), normed(k[..., part], layer.k_norm)
        scores = (qi @ ki.conj().transpose(1, 2)).real / 8**0.5
        heads.append(torch.softmax(scores, dim=-1) @ v[..., part])
    want = layer.proj(torch.cat(heads, dim=-1))
    assert layer.qkv.bias is None and layer.proj.bias is not None
    assert torch.allclose(layer(x, (cos, sin)), want, atol=1e-6)
    assert not torch.allclose(layer(x), want, atol=1e-3)


def test_cross_attention_to_one_token_is_its_value():
    layer, x, context = CrossAttention(16, 2), _rand(2, 5, 16), _rand(2, 1, 16, seed=1)
    value = layer.kv(context)[..., 16:]
    assert torch.allclose(layer(x, context), layer.proj(value).expand(2, 5, 16), atol=1e-6)


def test_cross_attention_has_four_square_matrices():
    assert sum(p.numel() for p in CrossAttention(32, 4).parameters() if p.ndim == 2) == 4 * 32 * 32


def test_head_norms():
    layer, rms = head_norm("layer", 8), head_norm("rms", 8)
    assert isinstance(layer, nn.LayerNorm) and layer.eps == 1e-5 and layer.elementwise_affine
    assert isinstance(rms, RMSNorm) and rms.eps == 1e-6
    assert not list(head_norm("none", 8).parameters())
    x = _rand(3, 8)
    assert torch.allclose(rms(x), x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt(), atol=1e-6)
    assert rms(x.bfloat16()).dtype == torch.bfloat16


def test_rms_norm_is_computed_in_float32():
    """In bfloat16, autocast or not, one rounding at the end; float64 stays float64."""
    layer, x = RMSNorm(64), _rand(5, 64) * 3
    with torch.no_grad():
        layer.weight.copy_(1 + 0.3 * _rand(64, seed=1))
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.weight.double()
    assert torch.allclose(layer(x.double()), exact, rtol=0, atol=1e-14)
    single, half = layer(x), layer(x.bfloat16().float()).bfloat16()
    assert torch.equal(layer(x.bfloat16()), half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), single) and torch.equal(layer(x.bfloat16()), half)
    tiny = torch.full((1, 64), 1e-4)  # eps counts: rms 1e-4 is beside sqrt(1e-6)
    assert torch.allclose(RMSNorm(64)(tiny), tiny / (1e-8 + 1e-6) ** 0.5)


def test_swiglu_by_hand():
    layer, x = SwiGLU(8, 12), _rand(2, 3, 8)
    gate, up = x @ layer.gate.weight.T, x @ layer.up.weight.T
    want = (gate * torch.sigmoid(gate) * up) @ layer.down.weight.T
    assert torch.allclose(layer(x), want, atol=1e-6)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "gate.weight": (12, 8), "up.weight": (12, 8), "down.weight": (8, 12),
    }  # fmt: skip


@pytest.mark.parametrize("qk_norm", ["layer", "rms"])
def test_attention_under_autocast_with_qk_norm(qk_norm):
    """The norms answer in float32; queries, keys and values must meet in one dtype again."""
    layer, x = Attention(24, 3, qk_norm=qk_norm), _rand(2, 5, 24)
    full = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(x)
    assert half.dtype == torch.bfloat16
    assert 0 < (half.float() - full).abs().max() < 0.02 * full.abs().max()


def test_patches_are_row_major_and_channels_fastest():
    embed = PatchEmbed(2, 8, 2)
    with torch.no_grad():
        embed.project.weight.copy_(torch.eye(8).view(8, 2, 2, 2))  # token entries (channel, row, column)
        embed.project.bias.zero_()
    x = torch.arange(2 * 4 * 6).float().view(1, 2, 4, 6)
    tokens = embed(x)
    assert torch.equal(tokens[0, 1].view(2, 2, 2), x[0, :, 0:2, 2:4])  # second token: next column
    assert torch.equal(tokens[0, 3].view(2, 2, 2), x[0, :, 2:4, 0:2])  # fourth token: next row
    channel_fastest = tokens.view(1, 6, 2, 2, 2).permute(0, 1, 3, 4, 2).flatten(2)
    assert torch.equal(unpatchify(channel_fastest, 2, 3, 2), x)


def test_modulation_has_its_own_silu():
    layer, c = Modulation(8, 3), _rand(2, 8)
    expected = (nn.functional.silu(c) @ layer.linear.weight.T + layer.linear.bias).chunk(3, dim=-1)
    got = layer(c)
    assert len(got) == 3 and all(torch.allclose(g[:, 0], e, atol=1e-6) for g, e in zip(got, expected, strict=True))


def test_token_modulation_has_no_silu():
    """DDT takes the SiLU before; one vector a token, or one a sample."""
    layer = TokenModulation(8, 3)
    for s in (_rand(2, 5, 8), _rand(2, 1, 8)):
        want = s @ layer.linear.weight.T + layer.linear.bias
        assert layer(s).shape == (2, s.shape[1], 24) and torch.allclose(layer(s), want, atol=1e-6)


def test_modulate_is_identity_at_zero():
    x = _rand(2, 3, 4)
    assert torch.equal(modulate(x, torch.zeros(2, 1, 4), torch.zeros(2, 1, 4)), x)
