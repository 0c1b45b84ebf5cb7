"""SD3's VAE: sizes as published, and the keys of Stability's files."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from ditkit.pretrained import CodecSettings, PretrainedMissing, load_codec
from ditkit.pretrained.kl_file import convert_kl

diffusers = pytest.importorskip("diffusers")
LEVELS = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
SD3 = {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609, **LEVELS}
PLAIN = {"use_quant_conv": False, "use_post_quant_conv": False}


def original_keys(width: int, latent: int = 16, mult=(1, 2, 4, 4)) -> dict[str, tuple[int, ...]]:
    """The published VAE's keys and shapes, from the description of its layers."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name, *shape):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, (shape[0],)

    def block(name, before, after):
        layer(f"{name}.norm1", before)
        layer(f"{name}.conv1", after, before, 3, 3)
        layer(f"{name}.norm2", after)
        layer(f"{name}.conv2", after, after, 3, 3)
        if before != after:
            layer(f"{name}.nin_shortcut", after, before, 1, 1)

    def middle(name, channels):
        block(f"{name}.mid.block_1", channels, channels)
        block(f"{name}.mid.block_2", channels, channels)
        layer(f"{name}.mid.attn_1.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            layer(f"{name}.mid.attn_1.{part}", channels, channels, 1, 1)
        layer(f"{name}.norm_out", width if name == "decoder" else channels)

    widths = [width * m for m in mult]
    layer("encoder.conv_in", width, 3, 3, 3)
    for i, (before, after) in enumerate(zip([width, *widths], widths, strict=False)):
        block(f"encoder.down.{i}.block.0", before, after)
        block(f"encoder.down.{i}.block.1", after, after)
        if i < 3:
            layer(f"encoder.down.{i}.downsample.conv", after, after, 3, 3)
    middle("encoder", widths[-1])
    layer("encoder.conv_out", 2 * latent, widths[-1], 3, 3)
    layer("decoder.conv_in", widths[-1], latent, 3, 3)
    middle("decoder", widths[-1])
    before = widths[-1]
    for i in (3, 2, 1, 0):
        for j in range(3):
            block(f"decoder.up.{i}.block.{j}", before if j == 0 else widths[i], widths[i])
        before = widths[i]
        if i:
            layer(f"decoder.up.{i}.upsample.conv", before, before, 3, 3)
    layer("decoder.conv_out", 3, width, 3, 3)
    return shapes


def random_state(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {k: 0.1 * torch.randn(s, generator=generator) + (k.split(".")[-2][:4] == "norm") for k, s in shapes.items()}


def full_vae():
    with torch.device("meta"):
        return diffusers.AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **SD3, **PLAIN)


def test_sizes_are_the_published_ones():
    """83,819,683 parameters in 244 tensors, the same in both spellings; every converted shape fits."""
    vae, original = full_vae(), original_keys(128)
    assert sum(p.numel() for p in vae.parameters()) == 83_819_683 and len(vae.state_dict()) == len(original) == 244
    assert sum(p.numel() for p in vae.encoder.parameters()) == 34_274_208
    assert sum(p.numel() for p in vae.decoder.parameters()) == 49_545_475
    converted = convert_kl({k: torch.empty(s, device="meta") for k, s in original.items()})
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in vae.state_dict().items()}


def test_a_whole_sd3_file_serves_as_codec(tmp_path):
    """diffusers' own reader of such files finds the same weights; other tensors of the file are not looked at."""
    state = random_state(original_keys(32))
    whole = {f"first_stage_model.{k}": v.half() for k, v in state.items()}
    whole |= {"model.diffusion_model.pos_embed": torch.zeros(1, 4, 8), "text_encoders.x.encoder.weight": torch.ones(1)}
    save_file(whole, tmp_path / "sd3_medium.safetensors")
    codec = load_codec(CodecSettings.parse(str(tmp_path / "sd3_medium.safetensors")))
    assert (codec.channels, codec.factor, codec.scale, codec.shift) == (16, 8, 1.5305, 0.0609)
    assert not codec.vae.config.use_quant_conv and next(codec.vae.parameters()).dtype == torch.float32
    convert = pytest.importorskip("diffusers.loaders.single_file_utils").convert_ldm_vae_checkpoint
    theirs = convert({f"first_stage_model.{k}": v for k, v in state.items()}, dict(codec.vae.config))
    assert theirs.keys() == codec.vae.state_dict().keys()
    for key, value in codec.vae.state_dict().items():
        torch.testing.assert_close(value, theirs[key].half().float(), atol=0, rtol=0)
    codec.vae.save_pretrained(tmp_path / "pipeline" / "vae")
    again = load_codec(str(tmp_path / "pipeline"))
    assert (again.id, again.scale, again.shift) == (codec.id, codec.scale, codec.shift)
    x = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    latents = codec.sample(codec.encode(x), None)
    assert latents.shape == (1, 16, 2, 3)
    mean = codec.encode(x)[:, :16]
    torch.testing.assert_close(latents, (mean - 0.0609) * 1.5305)
    torch.testing.assert_close(codec.decode(latents), codec.vae.decode(mean).sample, atol=1e-4, rtol=1e-4)


def test_a_lone_vae_must_be_told_whose_it_is(tmp_path):
    """16 channels are SD3's and others'; 4 channels with quantisation layers are SD's."""
    file = tmp_path / "vae.safetensors"
    save_file(random_state(original_keys(32)), file)
    with pytest.raises(PretrainedMissing, match=r"codec\.scale and codec\.shift") as error:
        load_codec(str(file))
    assert "\n" not in str(error.value)
    codec = load_codec(CodecSettings(kind="kl", source=str(file), scale=1.5305, shift=0.0609))
    assert (codec.scale, codec.shift) == (1.5305, 0.0609)
    shapes = original_keys(32, latent=4)
    shapes |= {"quant_conv.weight": (8, 8, 1, 1), "quant_conv.bias": (8,)}
    shapes |= {"post_quant_conv.weight": (4, 4, 1, 1), "post_quant_conv.bias": (4,)}
    save_file(random_state(shapes), file)
    codec = load_codec(str(file))
    assert (codec.channels, codec.scale, codec.shift, codec.vae.config.use_quant_conv) == (4, 0.18215, 0.0, True)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("text", "no readable"),
        ("other", "holds no VAE"),
        ("missing", "missing: encoder.mid_block"),
        ("level", "missing from its VAE"),
        ("unknown", "unknown tensors"),
        ("size", "size mismatch"),
    ],
)
def test_wrong_files_are_refused_in_one_line(damage, says, tmp_path):
    file = tmp_path / "x.safetensors"
    state = {f"first_stage_model.{k}": v for k, v in random_state(original_keys(32)).items()}
    if damage == "missing":
        del state["first_stage_model.encoder.mid.attn_1.q.weight"]
    if damage == "level":
        del state["first_stage_model.encoder.down.1.block.0.conv1.weight"]
    if damage == "unknown":
        state["first_stage_model.decoder.extra.weight"] = torch.zeros(1)
    if damage == "size":
        state["first_stage_model.encoder.conv_out.weight"] = torch.zeros(3, 3)
    save_file(state if damage != "other" else {"x": torch.zeros(1)}, file)
    if damage == "text":
        file.write_text("no tensors")
    with pytest.raises(PretrainedMissing, match=says) as error:
        load_codec(str(file))
    assert "\n" not in str(error.value) and "x.safetensors" in str(error.value)


def test_the_short_name(monkeypatch):
    """`--codec sd3` is the published pipeline, whose vae folder is asked for when its root is no VAE."""
    settings = CodecSettings.parse("sd3")
    assert settings == CodecSettings(kind="kl", source="stabilityai/stable-diffusion-3-medium-diffusers")
    asked = []

    def load_config(place, *, subfolder="", **_):
        asked.append((place, subfolder))
        if not subfolder:
            raise OSError("no config.json there")
        return {"_class_name": "AutoencoderKL"}

    def from_pretrained(place, *, subfolder, **_):
        assert (place, subfolder) == (settings.source, "vae")
        vae = diffusers.AutoencoderKL(block_out_channels=(32,) * 4, **SD3, **PLAIN)
        return vae, {"missing_keys": []}

    monkeypatch.setattr(diffusers.AutoencoderKL, "load_config", load_config)
    monkeypatch.setattr(diffusers.AutoencoderKL, "from_pretrained", from_pretrained)
    assert load_codec(settings).shift == 0.0609
    assert asked == [(settings.source, ""), (settings.source, "vae")]
