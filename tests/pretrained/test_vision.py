"""Published teachers with tiny random weights, against a transformer written out by hand on the saved tensors."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from ditkit.pretrained import PretrainedMissing, TeacherSettings, load_teacher
from ditkit.pretrained.load import TEACHERS
from ditkit.pretrained.preprocess import published_grid
from ditkit.pretrained.vision import FAMILIES, load_vision

transformers = pytest.importorskip("transformers")

WIDTH, DEPTH, HEADS = 24, 2, 3
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS}
MLP = {"intermediate_size": 40}
# kind -> (config class, model class, patch, native grid of the position table, further settings)
TINY = {
    "dinov2": ("Dinov2Config", "Dinov2Model", 7, 5, {"mlp_ratio": 2}),
    "dinov2_reg": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", 7, 5, {"num_register_tokens": 4}),
    "dinov1": ("ViTConfig", "ViTModel", 8, 3, MLP),
    "mae": ("ViTMAEConfig", "ViTMAEModel", 8, 3, MLP | {"mask_ratio": 0.75}),
    "clip": ("CLIPVisionConfig", "CLIPVisionModel", 7, 4, MLP),
    "siglip": ("SiglipVisionConfig", "SiglipVisionModel", 8, 4, MLP),
    "ijepa": ("IJepaConfig", "IJepaModel", 7, 4, MLP),
}
SUFFIX = {  # hub key fragments: query, key, value, out, norm1, norm2, fc1, fc2
    "vit": "attention.attention.query attention.attention.key attention.attention.value attention.output.dense "
    "layernorm_before layernorm_after intermediate.dense output.dense",
    "dinov2": "attention.attention.query attention.attention.key attention.attention.value attention.output.dense "
    "norm1 norm2 mlp.fc1 mlp.fc2",
    "clip": "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj layer_norm1 layer_norm2 "
    "mlp.fc1 mlp.fc2",
}


def randomise(model) -> None:
    """Every parameter away from its initial value: zeros and ones would hide mistakes."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3 + (1.0 if "norm" in name and p.ndim == 1 else 0.0))


@pytest.fixture(params=sorted(TINY))
def tiny(request, tmp_path):
    """(kind, folder with a saved tiny model, its tensors)."""
    kind = request.param
    config, model, patch, native, more = TINY[kind]
    config = getattr(transformers, config)(**SIZES, **more, patch_size=patch, image_size=patch * native)
    model = getattr(transformers, model)(config)
    randomise(model)
    model.save_pretrained(tmp_path)
    return kind, str(tmp_path), load_file(tmp_path / "model.safetensors")


def images(height=40, width=40, channels=3):
    return torch.randint(0, 256, (2, channels, height, width), generator=torch.Generator().manual_seed(1)).byte()


def pixels_by_hand(kind, x, size):
    """The published order of operations, written out."""
    x = x.float() / 255
    if x.shape[1] == 1:
        x = x.repeat(1, 3, 1, 1)
    mean, std = {
        "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        "siglip": ((0.5,) * 3, (0.5,) * 3),
    }.get(kind, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    mean, std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
    if kind in ("clip", "siglip"):
        return (F.interpolate(x, size=size, mode="bicubic") - mean) / std
    return F.interpolate((x - mean) / std, size=size, mode="bicubic")


def position_by_hand(table, grid, classes):
    side = math.isqrt(table.shape[0] - classes)
    if (side, side) == grid:
        return table
    kept, rest = table[:classes], table[classes:]
    rest = rest.T.reshape(1, -1, side, side)
    rest = F.interpolate(rest, size=grid, mode="bicubic", antialias=True)[0].flatten(1).T
    return torch.cat((kept, rest))


def tokens_by_hand(kind, t, x, grid):
    """All tokens after the last block (and final norm where the published features have one)."""
    style = {"dinov2": "dinov2", "dinov2_reg": "dinov2", "clip": "clip", "siglip": "clip"}.get(kind, "vit")
    epsilon = 1e-5 if kind == "clip" else 1e-6  # as published, whatever the config says

    def linear(name, h):
        return h @ t[name + ".weight"].T + t[name + ".bias"]

    def norm(name, h):
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, correction=0) + epsilon).sqrt()
        return h * t[name + ".weight"] + t[name + ".bias"]

    conv = "embeddings.patch_embedding" if style == "clip" else "embeddings.patch_embeddings.projection"
    patch = t[conv + ".weight"].shape[-1]
    h = F.unfold(x, patch, stride=patch).transpose(1, 2) @ t[conv + ".weight"].flatten(1).T
    h = h + t.get(conv + ".bias", torch.zeros(WIDTH))
    table = t.get("embeddings.position_embedding.weight", t.get("embeddings.position_embeddings"))
    cls = t.get("embeddings.cls_token", t.get("embeddings.class_embedding"))
    table = position_by_hand(table.reshape(-1, WIDTH), grid, int(cls is not None))
    if cls is not None:
        h = torch.cat((cls.reshape(1, 1, WIDTH).expand(len(h), -1, -1), h), 1)
    h = h + table
    if "embeddings.register_tokens" in t:
        registers = t["embeddings.register_tokens"].expand(len(h), -1, -1)
        h = torch.cat((h[:, :1], registers, h[:, 1:]), 1)
    if kind == "clip":
        h = norm("pre_layrnorm", h)
    for i in range(DEPTH):
        p = f"encoder.layers.{i}." if style == "clip" else f"encoder.layer.{i}."
        q, k, v, o, n1, n2, f1, f2 = (p + s for s in SUFFIX[style].split())
        s1, s2 = (t.get(f"{p}layer_scale{j}.lambda1", torch.ones(WIDTH)) for j in (1, 2))
        a = norm(n1, h)
        heads = [linear(n, a).unflatten(-1, (HEADS, -1)).transpose(1, 2) for n in (q, k, v)]
        weights = (heads[0] @ heads[1].transpose(-1, -2) * (WIDTH // HEADS) ** -0.5).softmax(-1)
        h = h + s1 * linear(o, (weights @ heads[2]).transpose(1, 2).flatten(2))
        m = linear(f1, norm(n2, h))
        gelu = {"clip": lambda m: m * torch.sigmoid(1.702 * m), "siglip": lambda m: F.gelu(m, approximate="tanh")}
        h = h + s2 * linear(f2, gelu.get(kind, F.gelu)(m))
    if kind in ("mae", "clip"):
        return h
    return norm("post_layernorm" if kind == "siglip" else "layernorm", h)


@pytest.mark.parametrize("grid", [(3, 3), (4, 4), (4, 6)])
def test_features_equal_the_hand_written_network(tiny, grid):
    """Native and other grids, square or not: preprocessing, positions, blocks, norm, prefix tokens dropped."""
    kind, folder, tensors = tiny
    teacher = load_vision(kind, folder)
    found = teacher(images(), grid=grid)
    patch = TINY[kind][2]
    pixels = pixels_by_hand(kind, images(), (grid[0] * patch, grid[1] * patch))
    wanted = tokens_by_hand(kind, tensors, pixels, grid)
    prefix = {"dinov2_reg": 5, "siglip": 0, "ijepa": 0}.get(kind, 1)
    torch.testing.assert_close(found.tokens, wanted[:, prefix:], atol=2e-4, rtol=1e-4)
    pooled = wanted.mean(1) if prefix == 0 else wanted[:, 0]
    torch.testing.assert_close(found.pooled, pooled, atol=2e-4, rtol=1e-4)
    assert found.grid == grid and found.tokens.shape == (2, grid[0] * grid[1], WIDTH)
    assert teacher.width == WIDTH and not found.tokens.requires_grad


def test_repeated_calls_are_equal_and_grey_is_repeated(tiny):
    """MAE must neither mask nor shuffle; grey images count as RGB."""
    kind, folder, _ = tiny
    teacher = load_vision(kind, folder)
    first, second = teacher(images(), grid=(3, 3)), teacher(images(), grid=(3, 3))
    assert torch.equal(first.tokens, second.tokens)
    grey = images(channels=1)
    assert torch.equal(teacher(grey, grid=(3, 3)).tokens, teacher(grey.expand(-1, 3, -1, -1), grid=(3, 3)).tokens)
    with pytest.raises(ValueError, match="4 channels"):
        teacher(images(channels=4))


def test_kind_is_read_from_the_folder_and_named_in_the_id(tiny):
    kind, folder, _ = tiny
    teacher = load_teacher(folder)
    assert teacher.id.startswith(kind + "-") and teacher.id == load_vision(kind, folder).id


@pytest.mark.parametrize("tiny", ["dinov2"], indirect=True)
def test_another_grid_differs_from_the_path_of_transformers(tiny):
    """transformers resamples DINOv2's positions without antialias: other targets than the published ones."""
    kind, folder, _ = tiny
    native = transformers.Dinov2Model.from_pretrained(folder).eval()
    pixels = pixels_by_hand(kind, images(), (21, 21))
    with torch.no_grad():
        theirs = native(pixels).last_hidden_state[:, 1:]
    ours = load_vision(kind, folder)(images(), grid=(3, 3)).tokens
    assert (ours - theirs).abs().max() > 1e-2
    same = pixels_by_hand(kind, images(), (35, 35))  # the table's own grid: no resampling, so they agree
    with torch.no_grad():
        theirs = native(same).last_hidden_state[:, 1:]
    torch.testing.assert_close(load_vision(kind, folder)(images(), grid=(5, 5)).tokens, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_folder_with_both_towers_gives_the_image_tower(tmp_path, name):
    """OpenAI's and Google's hub folders hold text towers too."""
    vision = SIZES | MLP | {"patch_size": 8, "image_size": 32}
    text = SIZES | MLP | {"vocab_size": 50, "max_position_embeddings": 8, "projection_size": WIDTH}
    kind = {"clip": ("CLIPConfig", "CLIPModel"), "siglip": ("SiglipConfig", "SiglipModel")}[name]
    model = getattr(transformers, kind[1])(getattr(transformers, kind[0])(vision_config=vision, text_config=text))
    randomise(model)
    model.save_pretrained(tmp_path)
    tensors = {k.removeprefix("vision_model."): v for k, v in load_file(tmp_path / "model.safetensors").items()}
    found = load_teacher(str(tmp_path))(images(), grid=(4, 4)).tokens
    wanted = tokens_by_hand(name, tensors, pixels_by_hand(name, images(), (32, 32)), (4, 4))
    torch.testing.assert_close(found, wanted[:, int(name == "clip") :], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("tiny", ["dinov1"], indirect=True)
def test_wrong_kind_and_lost_weights_are_refused_in_one_line(tiny, tmp_path):
    kind, folder, tensors = tiny
    with pytest.raises(PretrainedMissing, match="it is a vit model, not dinov2") as error:
        load_vision("dinov2", folder)
    assert "\n" not in str(error.value)
    from safetensors.torch import save_file

    tensors.pop("encoder.layer.1.output.dense.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PretrainedMissing, match="weights are missing"):
        load_vision(kind, folder)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(PretrainedMissing, match="ditkit teacher"):
        load_vision(kind, folder)


def test_default_grids_are_the_published_ones():
    """256 -> 16 x 16 (224 pixels for patch 14), 512 -> 32 x 32 (448); small images of one's own still get 16 x 16."""
    assert published_grid((256, 256)) == (16, 16) and published_grid((512, 512)) == (32, 32)
    assert published_grid((64, 64)) == (16, 16) and published_grid((256, 512)) == (16, 32)


def test_published_names():
    for name, (kind, source) in TEACHERS.items():
        assert TeacherSettings.parse(name) == TeacherSettings(kind=kind, source=source) and kind in FAMILIES
        assert TeacherSettings.parse(name.upper()) == TeacherSettings.parse(name)
    assert TeacherSettings.parse("mocov3:some/file.pth") == TeacherSettings(kind="mocov3", source="some/file.pth")
    with pytest.raises(PretrainedMissing, match="published as a file"):
        load_teacher(TeacherSettings(kind="mocov3"))
    with pytest.raises(ValueError, match="needs source"):
        TeacherSettings(kind="selftaught")
