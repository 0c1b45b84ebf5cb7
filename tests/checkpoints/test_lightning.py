"""DDT's Lightning checkpoints: two networks, the trainer's projector, prefixes; what does not fit is one line."""

import pytest
import torch
from safetensors.torch import save_file

from ditkit.align import Projector
from ditkit.checkpoints import CheckpointError, export_published, load_published
from ditkit.models import DDT, Condition, DDTSettings, build_model, ddt_settings

TELL = {"encoder_blocks": 2, "size": (8, 8), "align_depth": 2}


@pytest.fixture(scope="module")
def networks():
    """Official keys of two random networks (ema, raw) and of their trainer's projector."""
    generator = torch.Generator().manual_seed(0)
    settings = DDTSettings(encoder_blocks=2, decoder_blocks=1, width=32, heads=2, size=(8, 8), num_classes=5)
    made = []
    for _ in range(2):
        model = DDT(settings, generator=generator)
        with torch.no_grad():
            for p in model.final.parameters():
                p.normal_(generator=generator)
        made.append(export_published(model, "ddt"))
    projector = Projector(32, 6, 32, generator=generator).state_dict()
    return *made, {f"diffusion_trainer.proj.0.{k}": v for k, v in projector.items()}


@pytest.fixture
def lightning(networks):
    """lightning(compiled) -> what the file holds beside optimizer states, loops and the like."""
    ema, raw, trainer = networks

    def make(compiled: str = "") -> dict:
        state = {f"denoiser.{compiled}{k}": v for k, v in raw.items()}
        state |= {f"ema_denoiser.{compiled}{k}": v for k, v in ema.items()}
        return {
            "epoch": 3, "global_step": 400_000, "pytorch-lightning_version": "2.5.0",
            "state_dict": {**state, **trainer},
            "loops": {"fit_loop": {"state_dict": {}}}, "optimizer_states": [{"state": {0: torch.zeros(2)}}],
            "callbacks": {}, "lr_schedulers": [],
        }  # fmt: skip

    return make


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def refused(checkpoint, source="ddt", match=None, **arguments):
    with pytest.raises(CheckpointError, match=match) as caught:
        load_published(checkpoint, source, **{**TELL, **arguments})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("compiled", ["", "_orig_mod."])
@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_either_network_with_the_projector(tmp_path, networks, lightning, weights, compiled):
    ema, raw, trainer = networks
    file = tmp_path / "XXX256.ckpt"
    torch.save(lightning(compiled), file)
    published = load_published(file, "ddt", weights=weights, **TELL)
    assert published.weights == weights and published.align_depth == 2 and len(published.projectors) == 1
    assert equal(export_published(published.model, "ddt"), ema if weights == "ema" else raw)
    x, cond = torch.randn(2, 4, 8, 8), Condition(label=torch.tensor([0, 5]))
    hidden = published.model(x, torch.tensor([0.1, 0.9]), cond, capture=(2,)).hidden[2]
    assert published.projectors[0](hidden).shape == (2, 16, 6)
    assert torch.equal(published.projectors[0][4].bias, trainer["diffusion_trainer.proj.0.4.bias"])


def test_with_projectors_export_writes_the_trainers_keys(tmp_path, networks, lightning):
    ema, _, trainer = networks
    published = load_published(lightning(), "ddt", **TELL)
    state = export_published(published.model, "ddt", published.projectors)
    assert equal(state, {**{f"ema_denoiser.{k}": v for k, v in ema.items()}, **trainer})
    save_file(state, tmp_path / "mine.safetensors")
    again = load_published(tmp_path / "mine.safetensors", "ddt", **TELL)
    assert again.weights == "ema" and equal(again.projectors.state_dict(), published.projectors.state_dict())
    refused(state, weights="raw", match=r"holds keys ema_denoiser\.\* but no denoiser\.\*; try the other weights=")


def test_one_network_is_told_from_two(networks, lightning):
    ema, raw, trainer = networks
    no_ema = {f"denoiser.{k}": v for k, v in raw.items()} | trainer
    refused({"state_dict": no_ema}, match=r"holds keys denoiser\.\* but no ema_denoiser\.\*")
    assert load_published(no_ema, "ddt", weights="raw", **TELL).weights == "raw"
    bare = load_published({"state_dict": ema}, "ddt", encoder_blocks=2)
    assert (bare.weights, bare.projectors, bare.align_depth) == ("flat", None, None)
    refused(ema, match="align_depth was given, but the checkpoint has no projectors")
    both = lightning()["state_dict"] | {"s_embedder.proj.bias": ema["s_embedder.proj.bias"]}
    refused(both, match=r"with and without ema_denoiser\.: s_embedder\.proj\.bias")
    twice = lightning()["state_dict"] | {f"ema_denoiser._orig_mod.{k}": v for k, v in ema.items()}
    refused(twice, match="is there twice, with and without a wrapper's prefix")


def test_every_difference_in_keys_is_listed(networks, lightning):
    ema, _, trainer = networks
    state = lightning()["state_dict"]
    for key in ema:  # sizes are read from some of them
        part = {k: v for k, v in state.items() if k != f"ema_denoiser.{key}"}
        refused(part, match=key.replace(".", r"\."))
    for key in trainer:
        refused({k: v for k, v in state.items() if k != key}, match=key.replace(".", r"\."))
    extra = {f"{k}.weight": torch.zeros(1) for k in ("vae.decoder.conv_in", "diffusion_trainer.encoder.norm", "other")}
    extra["diffusion_trainer.proj.1.0.weight"] = torch.zeros(32, 32)  # the official trainer has one projector
    message = refused(state | extra)
    assert "unknown " + ", ".join(sorted(extra, key=str)) in message
    refused(state | {"diffusion_trainer.proj.0.6.bias": torch.zeros(1)}, match=r"unknown diffusion_trainer\.proj\.0\.6")
    broken = {**ema, "blocks.0.mlp.w2.weight": torch.zeros(3, 3)}
    refused(broken, match=r"blocks\.0\.mlp\.w2\.weight \(3, 3\) instead of \(32, 85\)", align_depth=None)


def test_families_and_arguments_are_told_apart(networks):
    ema, _, _ = networks
    baseline = {k: v for k, v in ema.items() if not k.startswith("s_embedder.")}
    tell = {"align_depth": None, "encoder_blocks": None}
    refused(ema, "improved-dit", match="looks like 'ddt'; load it with that source", **tell)
    refused(baseline, "ddt", match="looks like 'improved-dit'; load it with that source", **tell)
    refused(baseline, "improved-dit", match="encoder_blocks does not apply to source 'improved-dit'", align_depth=None)
    refused(ema, match="3 blocks of width 32 are no published size; give encoder_blocks=", **tell)
    refused(ema, match="encoder_blocks=3 leaves no decoder block of 3", align_depth=None, encoder_blocks=3)
    refused(ema, match="heads=4, but the qk-norm tensors say 2", align_depth=None, heads=4)
    refused(ema, match="a patch of 16 numbers is no 3 x 3 of some channels; give patch=", align_depth=None, patch=3)
    refused(ema, match=r"size \(9, 9\) is not a multiple of patch 2", align_depth=None, size=(9, 9))
    refused(ema, match="predicts velocity, not noise", align_depth=None, prediction="noise")
    convolution = {**ema, "x_embedder.proj.weight": torch.zeros(32, 4, 2, 2)}
    refused(convolution, match="has 4 dimensions, a Linear's has 2", align_depth=None)
    one = {**ema, "y_embedder.embedding_table.weight": torch.zeros(1, 32)}
    refused(one, match="give null=False", align_depth=None)
    tell = {"encoder_blocks": 2, "size": (8, 8)}
    assert load_published(ema, "ddt", null=False, **tell).settings.num_classes == 6
    whole = load_published(ema, "ddt", patch=4, **tell).settings  # 16 numbers: 2 x 2 of 4 channels, or 4 x 4 of 1
    assert (whole.patch, whole.channels) == (4, 1)


def test_depth_of_unpublished_sizes_has_to_be_told(lightning):
    refused(lightning(), align_depth=None, match="no published size; give align_depth=")
    refused(lightning(), align_depth=4, match="align_depth=4 does not fit 3 blocks")


@pytest.mark.parametrize(("source", "depths"), [("ddt", (8, 8, 8)), ("improved-dit", (4, 8, 8))])
def test_published_align_depths_and_splits(source, depths):
    """Baselines with projectors are REPA on these blocks, and align where REPA does."""
    for name, depth in zip(("B/2", "L/2", "XL/2"), depths, strict=True):
        settings = ddt_settings(name) if source == "ddt" else ddt_settings(name, encoder_blocks=0)
        with torch.device("meta"):
            model = build_model(settings)
            projectors = torch.nn.ModuleList([Projector(settings.width, 768, settings.width)])
        published = load_published(export_published(model, source, projectors), source)
        assert published.settings == settings and published.align_depth == depth and published.weights == "ema"
