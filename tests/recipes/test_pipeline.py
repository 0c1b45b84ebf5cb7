"""`convert --to diffusers`: StableDiffusion3Pipeline opens the folder and makes our images from the same noise."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ditkit.checkpoints import CheckpointError
from ditkit.diffusion import CFG, Flow, Linear, SampleNoise, SamplerSettings
from ditkit.evaluation import Request
from ditkit.evaluation.generate import sample_latents
from ditkit.models import MMDiTSettings, build_model
from ditkit.pretrained import CodecSettings, TextSettings
from ditkit.recipes import recipe
from ditkit.recipes.converting import to_published
from ditkit.recipes.load import Loaded

_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parents[1] / "pretrained" / "tiny_text.py")
_tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_tiny)

SHIFT = 3.0
SAMPLER = SamplerSettings(solver="euler", steps=4, spacing="sd3", shift=SHIFT, guidance=CFG(scale=4.0))
PROMPTS = ("a red circle", "two cats")


@pytest.fixture(scope="module")
def diffusers():
    pytest.importorskip("transformers")
    return pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def parts(diffusers, tmp_path_factory):
    """Folders of a tiny random VAE (16 channels, factor 2) and of the text stack, with and without T5."""
    place = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    diffusers.AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=["DownEncoderBlock2D"] * 2, norm_num_groups=4,
        up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609,
        use_quant_conv=False, use_post_quant_conv=False, sample_size=16,
    ).save_pretrained(place / "vae")  # fmt: skip
    _tiny.tiny_sd3_text(place / "text")
    _tiny.tiny_sd3_text(place / "no_t5", t5=False)
    return place


def made(parts, *, text: TextSettings | None, codec: CodecSettings, sampling=SAMPLER, **model) -> Loaded:
    """A tiny random MMDiT around these parts, as a run leaves it."""
    sizes = {"depth": 2, "width": 32, "heads": 4, "size": (8, 8), "channels": 16, "text_width": 32, "pooled_width": 20}
    settings = MMDiTSettings(**{**sizes, **model})
    network = build_model(settings, generator=torch.Generator().manual_seed(1)).eval()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
    # the recipe's own text encoder gives way without a check of widths: nothing is trained here
    own = recipe("t2i.scenes").model_copy(
        update={"model": settings, "text": text, "codec": codec, "sampling": sampling,
                "objective": Flow(path=Linear(), prediction="velocity", drop=0.1)}
    )  # fmt: skip
    return Loaded(network, Linear(), "velocity", None, None, settings, "ditkit", "ema", own, 1)


def whole(parts, **changes) -> Loaded:
    text = TextSettings(kind="sd3", source=str(parts / "text"))
    return made(parts, **{"text": text, "codec": CodecSettings(kind="kl", source=str(parts / "vae")), **changes})


def ours(loaded: Loaded, prompts=PROMPTS, size=(8, 8)) -> tuple[torch.Tensor, torch.Tensor]:
    """(images in [0, 1] before rounding, the noise that they began from)."""
    request = Request(n=len(prompts), prompts=tuple(prompts), mode="prompts", seed=3, size=size)
    noise = SampleNoise(3, list(range(len(prompts))), (16, *size)).initial()
    latents, _ = sample_latents(loaded, loaded.recipe.sampling, request, 0)
    return (loaded.codec.decode(latents.float()) / 2 + 0.5).clamp(0, 1), noise


def opened(diffusers, folder):
    """As the notes say: what is None has to be named."""
    index = json.loads((folder / "model_index.json").read_text())
    none = [k for k, part in index.items() if part == [None, None] and k not in ("image_encoder", "feature_extractor")]
    pipeline = diffusers.StableDiffusion3Pipeline.from_pretrained(folder, **dict.fromkeys(none))
    assert pipeline.scheduler.config.shift == SHIFT and all(getattr(pipeline, name) is None for name in none)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def theirs(diffusers, folder, noise, prompts=PROMPTS, **call) -> torch.Tensor:
    pipeline = opened(diffusers, folder)
    factor = pipeline.vae_scale_factor
    height, width = (side * factor for side in noise.shape[2:])
    arguments = {"latents": noise, "output_type": "pt", "height": height, "width": width, **call}
    return pipeline(list(prompts), **arguments).images


@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
def test_the_pipeline_makes_our_images(diffusers, parts, tmp_path, size):
    loaded = whole(parts, qk_norm="rms", dual=(1,))
    notes = to_published(loaded, "diffusers", tmp_path / "pipeline")
    assert notes == [
        f"open it with StableDiffusion3Pipeline.from_pretrained({str(tmp_path / 'pipeline')!r})",
        "call it with num_inference_steps=4, guidance_scale=4, max_sequence_length=77",
    ]
    images, noise = ours(loaded, size=size)
    again = theirs(diffusers, tmp_path / "pipeline", noise, num_inference_steps=4, guidance_scale=4,
                   max_sequence_length=77)  # fmt: skip
    assert images.std() > 0.01 and (images[0] - images[1]).abs().mean() > 0.01
    torch.testing.assert_close(again, images, rtol=0, atol=2e-4)


def test_an_even_grid_is_given_as_levels(diffusers, parts, tmp_path):
    sampling = SamplerSettings(solver="euler", steps=5, shift=SHIFT)
    loaded = whole(parts, sampling=sampling)
    *_, note = to_published(loaded, "diffusers", tmp_path / "pipeline")
    assert "sigmas=[1 - i / 5 for i in range(5)], guidance_scale=1, max_sequence_length=77" in note
    images, noise = ours(loaded)
    again = theirs(diffusers, tmp_path / "pipeline", noise, sigmas=[1 - i / 5 for i in range(5)], guidance_scale=1,
                   max_sequence_length=77)  # fmt: skip
    torch.testing.assert_close(again, images, rtol=0, atol=2e-4)


def test_without_t5(diffusers, parts, tmp_path):
    loaded = whole(parts, text=TextSettings(kind="sd3", source=str(parts / "no_t5"), widths=(8, 12, 32)))
    told = to_published(loaded, "diffusers", tmp_path / "pipeline")
    assert told[0] == "no text_encoder_3 in it: zeros stand for T5, there and here"
    assert told[1].endswith("pipeline', text_encoder_3=None, tokenizer_3=None)")
    index = json.loads((tmp_path / "pipeline" / "model_index.json").read_text())
    assert index["text_encoder_3"] == index["tokenizer_3"] == index["image_encoder"] == [None, None]
    images, noise = ours(loaded)
    call = {"num_inference_steps": 4, "guidance_scale": 4, "max_sequence_length": 77}
    torch.testing.assert_close(theirs(diffusers, tmp_path / "pipeline", noise, **call), images, rtol=0, atol=2e-4)


def test_own_scale_and_shift_of_the_codec(diffusers, parts, tmp_path):
    codec = CodecSettings(kind="kl", source=str(parts / "vae"), scale=0.5, shift=-0.25)
    loaded = whole(parts, codec=codec)
    to_published(loaded, "diffusers", tmp_path / "pipeline")
    config = json.loads((tmp_path / "pipeline" / "vae" / "config.json").read_text())
    assert (config["scaling_factor"], config["shift_factor"]) == (0.5, -0.25)
    images, noise = ours(loaded)
    call = {"num_inference_steps": 4, "guidance_scale": 4, "max_sequence_length": 77}
    torch.testing.assert_close(theirs(diffusers, tmp_path / "pipeline", noise, **call), images, rtol=0, atol=2e-4)
    each = whole(parts, codec=codec.model_copy(update={"scale": (0.5,) * 16}))
    with pytest.raises(CheckpointError, match="a scale or shift for each channel"):
        to_published(each, "diffusers", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_run_of_its_own_text_and_pixels(diffusers, parts, tmp_path):
    """The transformer and the scheduler alone: embeddings go in, latents come out."""
    loaded = made(parts, text=TextSettings(kind="toy", width=20, length=5), codec=CodecSettings(kind="pixels"),
                  text_width=20, channels=3)  # fmt: skip
    told = to_published(loaded, "diffusers", tmp_path / "pipeline")
    assert told[0] == "no vae in it: the codec is pixels, so that it gives latents only"
    assert "(text encoder: toy): give prompt_embeds, pooled_prompt_embeds" in told[1]
    assert told[2] == "padding is masked here and would be attended there: give embeddings without it"
    assert "vae=None, text_encoder=None, tokenizer=None, text_encoder_2=None" in told[3]
    assert told[4] == "call it with num_inference_steps=4, guidance_scale=4, output_type='latent'"
    pipeline = opened(diffusers, tmp_path / "pipeline")
    cond, other = (loaded.text([prompt]) for prompt in ("red circle", "blue square"))
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    given = {
        f"{sign}{name}": value
        for sign, c in (("", cond), ("negative_", other))
        for name, value in (("prompt_embeds", c.text[:, c.mask[0]]), ("pooled_prompt_embeds", c.pooled))
    }
    with torch.no_grad():
        got = pipeline(
            **given, latents=noise, num_inference_steps=4, guidance_scale=4, output_type="latent", height=64, width=64
        ).images
    assert cond.mask.sum() == other.mask.sum() == 2 < cond.mask.numel()
    sampler = SAMPLER.model_copy(update={"guidance": CFG(scale=4.0).against(other)})
    want, _ = sampler.run(loaded.model, noise, cond, path=Linear(), prediction="velocity")
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_what_no_pipeline_can_be(parts, tmp_path):
    loaded = whole(parts)
    with pytest.raises(CheckpointError, match="predicts velocity, not data"):
        to_published(replace(loaded, prediction="data"), "diffusers", tmp_path / "out")
    with pytest.raises(CheckpointError, match="three sets of weights"):
        to_published(whole(parts, sets=3), "diffusers", tmp_path / "out")
    with pytest.raises(FileExistsError, match="exists already"):
        to_published(loaded, "diffusers", parts)
    gone = whole(parts, codec=CodecSettings(kind="kl", source=str(tmp_path / "gone")))
    with pytest.raises(RuntimeError, match="cannot load codec"):
        to_published(gone, "diffusers", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
