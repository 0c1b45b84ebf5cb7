"""Published .pth files of plain ViTs: keys, heads, and what is in them that does not belong to the network."""

from __future__ import annotations

import os

import pytest
import torch
from torch.nn import functional as F

from ditkit.pretrained import PretrainedMissing, load_teacher
from ditkit.pretrained.vision import load_vision
from ditkit.pretrained.vit_file import convert_vit

WIDTH, GRID, PATCH = 384, 2, 16  # MoCo-v3's ViT-S: 12 heads, not 6


def timm_state(depth: int, cls: bool = True) -> dict[str, torch.Tensor]:
    """A timm-style ViT with a narrow MLP (the file decides), everything random."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return 0.05 * torch.randn(shape, generator=generator)

    state = {"pos_embed": draw(1, GRID * GRID + cls, WIDTH), "patch_embed.proj.weight": draw(WIDTH, 3, PATCH, PATCH)}
    state |= {"patch_embed.proj.bias": draw(WIDTH), "norm.weight": 1 + draw(WIDTH), "norm.bias": draw(WIDTH)}
    if cls:
        state["cls_token"] = draw(1, 1, WIDTH)
    shapes = {
        "attn.qkv": (3 * WIDTH, WIDTH),
        "attn.proj": (WIDTH, WIDTH),
        "mlp.fc1": (32, WIDTH),
        "mlp.fc2": (WIDTH, 32),
    }
    for i in range(depth):
        for name, shape in shapes.items():
            state[f"blocks.{i}.{name}.weight"], state[f"blocks.{i}.{name}.bias"] = draw(*shape), draw(shape[0])
        for name in ("norm1", "norm2"):
            state[f"blocks.{i}.{name}.weight"], state[f"blocks.{i}.{name}.bias"] = 1 + draw(WIDTH), draw(WIDTH)
    return state


def by_hand(t, x, heads):
    """A timm ViT on its own grid, final norm, class token dropped."""
    h = F.conv2d(x, t["patch_embed.proj.weight"], t["patch_embed.proj.bias"], stride=PATCH).flatten(2).transpose(1, 2)
    h = torch.cat((t["cls_token"].expand(len(h), -1, -1), h), 1) + t["pos_embed"]
    for i in range(sum(k.endswith("attn.qkv.bias") for k in t)):
        p = f"blocks.{i}."
        a = F.layer_norm(h, (WIDTH,), t[p + "norm1.weight"], t[p + "norm1.bias"], 1e-6)
        qkv = F.linear(a, t[p + "attn.qkv.weight"], t[p + "attn.qkv.bias"])
        q, k, v = qkv.reshape(len(h), -1, 3, heads, WIDTH // heads).permute(2, 0, 3, 1, 4)
        a = ((q @ k.transpose(-1, -2) * (WIDTH // heads) ** -0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        h = h + F.linear(a, t[p + "attn.proj.weight"], t[p + "attn.proj.bias"])
        m = F.layer_norm(h, (WIDTH,), t[p + "norm2.weight"], t[p + "norm2.bias"], 1e-6)
        m = F.gelu(F.linear(m, t[p + "mlp.fc1.weight"], t[p + "mlp.fc1.bias"]))
        h = h + F.linear(m, t[p + "mlp.fc2.weight"], t[p + "mlp.fc2.bias"])
    return F.layer_norm(h, (WIDTH,), t["norm.weight"], t["norm.bias"], 1e-6)[:, 1:]


def mocov3_file(path, state):
    """As released: inside "state_dict", prefixed, with heads, the momentum encoder, and the four slips of its keys."""
    slips = {"blocks.13.norm1.": "blocks.13.norm13.", "blocks.13.mlp.fc1.": "blocks.13.mlp.fc13."}
    slips |= {"blocks.14.norm2.": "blocks.14.norm14.", "blocks.14.mlp.fc2.": "blocks.14.mlp.fc14."}
    stored = {}
    for key, value in state.items():
        for right, wrong in slips.items():
            key = key.replace(right, wrong)
        stored["module.base_encoder." + key] = value
    stored["module.base_encoder.head.0.weight"] = torch.zeros(4, WIDTH)
    stored["module.momentum_encoder.norm.weight"] = torch.zeros(WIDTH)
    stored["module.predictor.0.weight"] = torch.zeros(4, 4)
    torch.save({"epoch": 300, "arch": "vit_small", "state_dict": stored, "optimizer": {"state": {}}}, path)


def test_mocov3_file_equals_the_hand_written_network(tmp_path):
    """15 blocks, so that the slips in blocks 13 and 14 are met; 12 heads of 32."""
    state = timm_state(15)
    mocov3_file(tmp_path / "mocov3_vits.pth", state)
    teacher = load_teacher(f"mocov3:{tmp_path / 'mocov3_vits.pth'}")
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    mean, std = torch.tensor((0.485, 0.456, 0.406))[:, None, None], torch.tensor((0.229, 0.224, 0.225))[:, None, None]
    wanted = by_hand(state, (images / 255 - mean) / std, heads=12)
    torch.testing.assert_close(teacher(images, grid=(2, 2)).tokens, wanted, atol=2e-5, rtol=1e-4)
    assert (by_hand(state, (images / 255 - mean) / std, heads=6) - wanted).abs().max() > 1e-4
    assert teacher.width == WIDTH and teacher.id.startswith("mocov3-")


def test_other_published_files(tmp_path):
    """DINOv1 is flat; I-JEPA sits under 'encoder' with 'module.' and has no class token; MAE has a decoder."""
    images = torch.randint(0, 256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    state = timm_state(2)
    torch.save(state, tmp_path / "dino.pth")
    assert load_vision("dinov1", str(tmp_path / "dino.pth"))(images, grid=(2, 2)).tokens.shape == (1, 4, WIDTH)
    config, converted = convert_vit({f"module.{k}": v for k, v in timm_state(2, cls=False).items()}, "mocov3")
    assert config["image_size"] == 32 and "embeddings.cls_token" not in converted
    config, converted = convert_vit(
        state | {"decoder_embed.weight": torch.zeros(2, 2), "mask_token": torch.zeros(1)}, "mocov3"
    )
    assert config["num_attention_heads"] == 12 and config["intermediate_size"] == 32
    assert not any("decoder" in key or "mask" in key for key in converted)


def test_foreign_files_are_refused_in_one_line(tmp_path):
    torch.save({"unheard.of": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(PretrainedMissing, match=r"unknown keys unheard\.of"):
        load_teacher(f"mocov3:{tmp_path / 'other.pth'}")
    with pytest.raises(PretrainedMissing, match="not from a file"):
        load_teacher(f"clip:{tmp_path / 'other.pth'}")
    lacking = timm_state(2)
    del lacking["blocks.1.mlp.fc2.weight"]
    torch.save(lacking, tmp_path / "lacking.pth")
    with pytest.raises((PretrainedMissing, ValueError), match="missing"):
        load_teacher(f"dinov1:{tmp_path / 'lacking.pth'}")


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL_FOLDER"],)


def test_no_code_of_a_file_is_run(tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL_FOLDER", str(tmp_path / "was-run"))
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(PretrainedMissing, match="more than tensors"):
        load_teacher(f"mocov3:{tmp_path / 'evil.pth'}")
    assert not (tmp_path / "was-run").exists()
