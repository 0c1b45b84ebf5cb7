"""Codecs: pixels, the toy, and a tiny random AutoencoderKL from a folder."""

from __future__ import annotations

import json

import pytest
import torch

from ditkit.pretrained import CodecSettings, PixelCodec, PretrainedMissing, ToyCodec, load_codec
from ditkit.protocols import Codec

diffusers = pytest.importorskip("diffusers")


def tiny_vae(**more):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4, **blocks, **more
    ).eval()


def images(channels=3, size=16):
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("codec", [PixelCodec(3), PixelCodec(1), ToyCodec(3), ToyCodec(1)], ids=lambda c: c.id)
def test_protocol_and_round_trip(codec):
    """decode(sample(encode(x), None)) == x, with the shapes that the protocol promises."""
    channels = codec.channels // codec.factor**2
    x = images(channels)
    moments = codec.encode(x)
    latents = codec.sample(moments, None)
    assert isinstance(codec, Codec)
    assert latents.shape == (2, codec.channels, 16 // codec.factor, 16 // codec.factor)
    torch.testing.assert_close(codec.decode(latents), x, atol=1e-5, rtol=1e-5)


def test_pixels_ignore_noise_and_check_channels():
    codec = PixelCodec(3)
    assert torch.equal(codec.sample(codec.encode(images()), torch.ones(2, 3, 16, 16)), images())
    with pytest.raises(ValueError, match="1 channels, expected 3"):
        codec.encode(images(1))


def test_kl_codec_from_a_folder(tmp_path):
    """Moments hold mean and std, scale is the published 0.18215, noise is used as given, decoding undoes scaling."""
    vae = tiny_vae()
    vae.save_pretrained(tmp_path)
    codec = load_codec(str(tmp_path))
    assert isinstance(codec, Codec)
    assert (codec.channels, codec.factor, codec.scale, codec.shift) == (4, 4, 0.18215, 0.0)
    with torch.no_grad():
        posterior = vae.encode(images()).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(1))
        moments = codec.encode(images())
        torch.testing.assert_close(moments, torch.cat((posterior.mean, posterior.std), 1))
        wanted = (posterior.mean + posterior.std * noise) * 0.18215
        torch.testing.assert_close(codec.sample(moments, noise), wanted)
        torch.testing.assert_close(codec.decode(wanted), vae.decode(wanted / 0.18215).sample)
    assert not codec.decode(wanted).requires_grad
    grey = images(1)
    assert torch.equal(codec.encode(grey), codec.encode(grey.expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match="multiples of 4"):
        codec.encode(images(size=18))


def test_scale_and_shift_come_from_the_file_or_the_settings(tmp_path):
    """SD3's VAE has a shift; settings override, per channel too; both are applied exactly once."""
    tiny_vae(scaling_factor=1.5305, shift_factor=0.0609).save_pretrained(tmp_path)
    own = load_codec(str(tmp_path))
    assert (own.scale, own.shift) == (1.5305, 0.0609)
    settings = CodecSettings(kind="kl", source=str(tmp_path), scale=(1.0, 2.0, 3.0, 4.0), shift=0.5)
    codec = load_codec(CodecSettings.model_validate_json(settings.model_dump_json()))
    moments = own.encode(images())
    mean = moments[:, :4]
    torch.testing.assert_close(codec.sample(moments, None)[:, 3], (mean[:, 3] - 0.5) * 4.0)
    torch.testing.assert_close(codec.decode(codec.sample(moments, None)), own.decode(own.sample(moments, None)))


def test_a_whole_pipeline_folder_gives_its_vae(tmp_path):
    tiny_vae().save_pretrained(tmp_path / "vae")
    (tmp_path / "model_index.json").write_text("{}")
    assert load_codec(str(tmp_path)).id == load_codec(str(tmp_path / "vae")).id


def test_ids_tell_weights_apart(tmp_path):
    vae = tiny_vae()
    vae.save_pretrained(tmp_path / "a")
    with torch.no_grad():
        next(vae.decoder.parameters()).view(-1)[0] += 1e-3  # ft-mse and ft-ema differ in the decoder only
    vae.save_pretrained(tmp_path / "b")
    assert load_codec(str(tmp_path / "a")).id != load_codec(str(tmp_path / "b")).id
    assert load_codec("toy", channels=3).id != load_codec("toy", channels=1).id


def test_bad_folders_are_refused_in_one_line(tmp_path):
    from safetensors.torch import load_file, save_file

    tiny_vae().save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state.pop("decoder.conv_in.weight")
    save_file(state, path)
    with pytest.raises(PretrainedMissing, match="missing") as error:
        load_codec(str(tmp_path))
    assert "\n" not in str(error.value) and "--codec pixels" in str(error.value)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", "latent_channels": "x"}))
    with pytest.raises(PretrainedMissing):
        load_codec(str(tmp_path))


def test_settings_refuse_what_makes_no_sense():
    assert CodecSettings.parse("ft-mse").source == "stabilityai/sd-vae-ft-mse"
    assert CodecSettings.parse("pixels") == CodecSettings()
    with pytest.raises(ValueError, match="takes no source"):
        CodecSettings(kind="pixels", scale=0.5)
