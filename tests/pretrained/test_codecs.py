"""Codecs through diffusers: each against diffusers' own calls, with its own scale and shift."""

from __future__ import annotations

import json

import pytest
import torch

from ditkit.pretrained import CodecSettings, PretrainedMissing, load_codec
from ditkit.pretrained.open_codec import NAMES
from ditkit.protocols import Codec

diffusers = pytest.importorskip("diffusers")


def kl(**more):
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    shape = {"block_out_channels": (8, 8, 16), "layers_per_block": 1, "norm_num_groups": 4} | blocks
    return diffusers.AutoencoderKL(**shape, **more)


def tiny(**more):
    widths, encoder, decoder = (8,) * 3, (1, 1, 2), (2, 1, 1)
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=widths, decoder_block_out_channels=widths, num_encoder_blocks=encoder,
        num_decoder_blocks=decoder, **more,
    )  # fmt: skip


def dc(**more):
    return diffusers.AutoencoderDC(
        latent_channels=8, attention_head_dim=4, encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16), encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_qkv_multiscales=((), (), (5,)), decoder_qkv_multiscales=((), (), (5,)), **more,
    )  # fmt: skip


def rae(**more):
    """Encoder of 28 pixels in patches of 7, decoder of 16 pixels in patches of 4: the two sizes differ, as released."""
    shape = {"encoder_hidden_size": 64, "encoder_patch_size": 7, "encoder_input_size": 28, "patch_size": 4}
    layers = {"encoder_num_hidden_layers": 1, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    widths = {"decoder_hidden_size": 16, "decoder_intermediate_size": 32}
    return diffusers.AutoencoderRAE(encoder_type="mae", **shape, **layers, **widths, **more)


def saved(folder, make, **more):
    """The network, with fixed random weights, and its folder."""
    torch.manual_seed(0)
    vae = make(**more).eval()
    vae.save_pretrained(folder)
    return vae


def images(height=16, width=24, channels=3):
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def theirs(vae, x, kind):
    """diffusers' way there and back: (latents as a diffusion model sees them, images), as its pipelines call it."""
    scale, shift = vae.config.get("scaling_factor", 1.0), vae.config.get("shift_factor") or 0.0
    if kind == "rae":
        latents = vae.encode((x + 1) / 2).latent
        return latents, vae.decode(latents).sample * 2 - 1
    found = vae.encode(x)
    raw = {"kl": lambda: found.latent_dist.mode(), "tiny": lambda: found.latents, "dc": lambda: found.latent}[kind]()
    latents = (raw - shift) * scale
    return latents, vae.decode(latents / scale + shift).sample


CASES = [
    pytest.param(kl, "kl", {"latent_channels": 4}, (4, 4, 0.18215, 0.0), id="sd"),
    pytest.param(
        kl, "kl", {"latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False,
                   "use_post_quant_conv": False}, (16, 4, 1.5305, 0.0609), id="sd3",
    ),
    pytest.param(
        kl, "kl", {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False,
                   "use_post_quant_conv": False}, (16, 4, 0.3611, 0.1159), id="flux",
    ),
    pytest.param(tiny, "tiny", {"latent_channels": 4}, (4, 4, 1.0, 0.0), id="taesd"),
    pytest.param(
        tiny, "tiny", {"latent_channels": 16, "scaling_factor": 1.5, "shift_factor": 0.25}, (16, 4, 1.5, 0.25),
        id="tiny-scaled",
    ),
    pytest.param(dc, "dc", {"scaling_factor": 0.41407}, (8, 4, 0.41407, 0.0), id="dc-ae"),
    pytest.param(rae, "rae", {}, (64, 4, 1.0, 0.0), id="rae"),
    pytest.param(
        rae, "rae",
        {"latents_mean": torch.linspace(-1, 1, 64).view(64, 1, 1), "latents_std": torch.full((64, 1, 1), 2.0)},
        (64, 4, 1.0, 0.0), id="rae-normalised",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("make", "kind", "more", "facts"), CASES)
@torch.no_grad()
def test_a_codec_equals_diffusers(tmp_path, make, kind, more, facts):
    vae = saved(tmp_path, make, **more)
    settings = CodecSettings.parse(str(tmp_path))
    assert settings.kind == kind, "config.json tells"
    codec = load_codec(settings)
    assert isinstance(codec, Codec)
    assert (codec.channels, codec.factor, codec.scale, codec.shift) == facts
    x = images() if kind != "rae" else images(16, 16)
    wanted, back = theirs(vae, x, kind)
    latents = codec.sample(codec.encode(x), None)
    assert latents.shape == (2, facts[0], 4, x.shape[3] // 4)
    torch.testing.assert_close(latents, wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(codec.decode(latents), back, atol=1e-5, rtol=1e-5)
    assert codec.decode(latents).shape == x.shape


@pytest.mark.parametrize(("make", "side"), [(kl, 24), (tiny, 24), (dc, 24), (rae, 16)])
def test_grey_images_and_sides(tmp_path, make, side):
    saved(tmp_path, make)
    codec = load_codec(str(tmp_path))
    grey = images(16, side, channels=1)
    assert torch.equal(codec.encode(grey), codec.encode(grey.expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match="16x18 images"):
        codec.encode(images(16, 18))


@pytest.mark.parametrize(("make", "more"), [(tiny, {}), (dc, {}), (rae, {})])
def test_without_posterior_noise_is_ignored_and_ids_name_kind_and_weights(tmp_path, make, more):
    saved(tmp_path, make, **more)
    codec = load_codec(str(tmp_path))
    x = images(16, 16)
    moments = codec.encode(x)
    assert moments.shape[1] == codec.channels
    assert torch.equal(codec.sample(moments, torch.ones_like(moments)), codec.sample(moments, None))
    kind = CodecSettings.parse(str(tmp_path)).kind
    assert codec.id.startswith(f"{kind}-") and codec.id == load_codec(str(tmp_path)).id
    torch.manual_seed(1)
    make(**more).save_pretrained(tmp_path / "other")
    assert load_codec(str(tmp_path / "other")).id != codec.id
    own = load_codec(CodecSettings(kind=kind, source=str(tmp_path), scale=3.0, shift=0.5))
    torch.testing.assert_close(own.sample(moments, None), (moments - 0.5) * 3.0)
    torch.testing.assert_close(own.decode(own.sample(moments, None)), codec.decode(codec.sample(moments, None)))


def test_an_rae_works_at_one_size(tmp_path):
    saved(tmp_path, rae)
    codec = load_codec(str(tmp_path))
    with pytest.raises(ValueError, match=r"32x16 images; this autoencoder works at 16x16 only: --size 16"):
        codec.encode(images(32, 16))


def test_statistics_per_channel_are_read_from_the_config(tmp_path):
    """latents_mean and latents_std as diffusers' SDXL pipeline undoes them; the default scaling_factor is nobody's."""
    mean, std = (0.5, -1.0, 2.0, 0.0), (2.0, 4.0, 0.5, 1.0)
    for name, factor, scale in (("playground", 0.5, 0.5), ("glm", 0.18215, 1.0)):
        vae = saved(tmp_path / name, kl, latents_mean=mean, latents_std=std, scaling_factor=factor)
        codec = load_codec(str(tmp_path / name))
        raw = vae.encode(images()).latent_dist.mode()
        statistics = (torch.tensor(v).view(1, 4, 1, 1) for v in (mean, std))
        m, s = statistics
        torch.testing.assert_close(codec.sample(codec.encode(images()), None), (raw - m) / s * scale)
        latents = codec.sample(codec.encode(images()), None)
        torch.testing.assert_close(codec.decode(latents), vae.decode(latents * s / scale + m).sample)


@torch.no_grad()
def test_the_posterior_mean_by_setting(tmp_path):
    vae = saved(tmp_path, kl, latent_channels=4)
    settings = CodecSettings(kind="kl", source=str(tmp_path), posterior="mean")
    codec, drawn = load_codec(settings), load_codec(str(tmp_path))
    moments = codec.encode(images())
    assert moments.shape[1] == codec.channels, "nothing to draw: no caller draws noise"
    torch.testing.assert_close(moments, vae.encode(images()).latent_dist.mean)
    assert torch.equal(codec.sample(moments, None), drawn.sample(drawn.encode(images()), None))
    assert codec.id == f"{drawn.id}-mean", "a run with the one refuses to go on with the other"
    assert torch.equal(codec.decode(codec.sample(moments, None)), drawn.decode(codec.sample(moments, None)))


def test_names_kinds_and_folders_parse(tmp_path):
    for name, (kind, source) in NAMES.items():
        assert CodecSettings.parse(name) == CodecSettings(kind=kind, source=source)
    assert {"ft-ema", "ft-mse", "sd3", "flux", "taesd", "taesd3", "taef1", "dc-ae-f32c32"} <= NAMES.keys()
    assert CodecSettings.parse("tiny:somebody/else") == CodecSettings(kind="tiny", source="somebody/else")
    assert CodecSettings.parse("tiny:taesd") == CodecSettings.parse("taesd")
    assert CodecSettings.parse("somebody/else").kind == "kl", "what cannot be told is AutoencoderKL"
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderDC"}))
    assert CodecSettings.parse(str(tmp_path)).kind == "dc", "a pipeline's"
    assert [CodecSettings(kind=kind).place for kind in ("kl", "pixels", "toy")] == [NAMES["ft-ema"][1], "", ""]
    for kind in ("tiny", "dc", "rae", "pixels", "toy"):
        with pytest.raises(ValueError, match="takes no posterior"):
            CodecSettings(kind=kind, posterior="mean")


def test_a_pipelines_folder_of_every_kind(tmp_path):
    saved(tmp_path / "vae", tiny, latent_channels=4)
    (tmp_path / "model_index.json").write_text("{}")
    assert load_codec(str(tmp_path)).id == load_codec(str(tmp_path / "vae")).id


def test_what_is_wrong_is_one_line(tmp_path):
    saved(tmp_path / "tiny", tiny)
    saved(tmp_path / "rows", rae, reshape_to_2d=False)
    (tmp_path / "empty").mkdir()
    for settings, said in (
        (CodecSettings(kind="kl", source=str(tmp_path / "tiny")), f"write tiny:{tmp_path / 'tiny'}"),
        (CodecSettings(kind="rae", source=str(tmp_path / "rows")), "reshape_to_2d"),
        (CodecSettings(kind="dc", source=str(tmp_path / "empty")), "cannot load codec"),
        (CodecSettings(kind="tiny", source=str(tmp_path / "gone")), "no folder of that name"),
        (CodecSettings.parse("taesd"), "not in the hub's cache"),
        (CodecSettings.parse("dc-ae-f32c32"), "not in the hub's cache"),
    ):
        with pytest.raises(PretrainedMissing, match="--codec pixels") as error:
            load_codec(settings)
        assert said in str(error.value) and "\n" not in str(error.value)
    path = tmp_path / "tiny" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(PretrainedMissing) as error:
        load_codec(str(tmp_path / "tiny"))
    assert "\n" not in str(error.value)


def test_diffusers_missing_names_the_extra(tmp_path, monkeypatch):
    import sys

    saved(tmp_path, tiny)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(PretrainedMissing, match=r"needs diffusers \(pip install 'ditkit\[hf\]'\)"):
        load_codec(CodecSettings(kind="tiny", source=str(tmp_path)))
