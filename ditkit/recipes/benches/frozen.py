"""The frozen networks of a recipe for measuring: as published where they are on this machine, else with random weights.

Random ones have the size of what is published, so that they are as fast; what they answer means nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ditkit.pretrained import (
    CodecSettings,
    Inception,
    KLCodec,
    PretrainedMissing,
    SelfTaught,
    TeacherSettings,
    VisionTeacher,
    load_codec,
    load_extractor,
    load_teacher,
)
from ditkit.pretrained.inception import Network
from ditkit.pretrained.missing import optional
from ditkit.recipes.benches.random_job import teacher_width, untrained
from ditkit.recipes.recipe import Recipe

SD_VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 256}
DEPTHS = {384: 12, 768: 12, 1024: 24, 1280: 32, 1536: 40}  # of vision transformers, by their width
HEAD = 64  # width of an attention head in all of them


class Frozen(NamedTuple):
    """A network, and what it is: its id, or of what size its random weights are."""

    network: Any  # a Codec, a GridExtractor or an Extractor
    what: str


def frozen_codec(settings: CodecSettings, channels: int, device: torch.device) -> Frozen:
    """The codec, of latents with `channels`. PretrainedMissing for one that is not here, but for KL autoencoders."""
    try:
        found = load_codec(settings, device, channels=channels if settings.kind == "pixels" else 3)
        return Frozen(found, found.id)
    except PretrainedMissing:
        if settings.kind != "kl":
            raise
    diffusers = optional("diffusers", "a KL autoencoder of random weights", "AutoencoderKL")
    levels = len(SD_VAE["block_out_channels"])  # type: ignore[arg-type]
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels, **SD_VAE,
    )  # fmt: skip
    return Frozen(KLCodec(vae).to(device), f"random weights, as SD's autoencoder with {channels} channels")


def frozen_teacher(settings: TeacherSettings, recipe: Recipe, device: torch.device) -> Frozen:
    """The recipe's teacher; of random weights a DINOv2 of its width, or what `ditkit teacher` would train."""
    try:
        found = load_teacher(settings, device)
        return Frozen(found, found.id)
    except PretrainedMissing:
        if settings.kind == "selftaught":
            own = SelfTaught.untrained(untrained(recipe)).to(device)
            return Frozen(own, "random weights, as `ditkit teacher` makes it")
    width = teacher_width(settings, recipe)
    transformers = optional("transformers", "a vision transformer of random weights", "Dinov2Model")
    config = transformers.Dinov2Config(
        hidden_size=width, num_hidden_layers=DEPTHS[width], num_attention_heads=width // HEAD, image_size=518
    )
    model = transformers.Dinov2Model(config)
    return Frozen(VisionTeacher(model, "dinov2").to(device), f"random weights, as a DINOv2 of width {width}")


def frozen_extractor(name: str, device: torch.device) -> Frozen:
    """What images are scored with; Inception of random weights where it is not here."""
    try:
        found = load_extractor(name, device)
        return Frozen(found, found.id)
    except PretrainedMissing:
        if name != "inception":
            raise
    return Frozen(Inception(Network().state_dict()).to(device), "random weights, as Inception")
