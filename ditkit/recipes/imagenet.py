"""What every published ImageNet row shares: data, codec, optimizer, and the table lines of its scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ditkit.data import DataSettings
from ditkit.diffusion import SamplerSettings
from ditkit.pretrained import CodecSettings
from ditkit.recipes.recipe import Published
from ditkit.training import TrainSettings

FT_EMA = "stabilityai/sd-vae-ft-ema"
FT_MSE = "stabilityai/sd-vae-ft-mse"
EPOCH = 5004  # steps: 1,281,167 images in batches of 256, the last incomplete one dropped

SCORES = ("fid", "sfid", "inception_score", "precision", "recall", "accuracy")


def imagenet(size: int = 256, flip: bool = True) -> DataSettings:
    """The training set as class folders, ADM centre crop, mirrored with probability 1/2 (REPA: not)."""
    return DataSettings(source="imagenet/train", size=size, channels=3, flip=flip)


def sd_vae() -> CodecSettings:
    """Stable Diffusion's 4-channel KL autoencoder, factor 8, latents times 0.18215; a new posterior draw each visit.

    ft-ema and ft-mse share their encoder, so the choice matters for decoding only (REPA cached with ft-mse).
    """
    return CodecSettings(kind="kl", source=FT_EMA)


def adamw(steps: int) -> TrainSettings:
    """AdamW 1e-4 constant, no warm-up, no weight decay, no clipping, batch 256, EMA 0.9999 (DiT section 4)."""
    return TrainSettings(
        steps=steps, batch=256, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0, warmup=0, clip=None, ema=0.9999
    )


def row(table: str, steps: int, sampling: SamplerSettings, *scores: float | None, **facts: Any) -> Published:
    """A table line; `scores` in the order FID, sFID, IS, precision, recall, linear-probe accuracy, as far as given."""
    return Published(table=table, steps=steps, sampling=sampling, **dict(zip(SCORES, scores, strict=False)), **facts)


def rows(table: str, steps: Sequence[int], sampling: SamplerSettings, scores: Sequence[tuple], **facts: Any):
    """One line for each number of steps."""
    return tuple(row(table, n, sampling, *s, **facts) for n, s in zip(steps, scores, strict=True))
