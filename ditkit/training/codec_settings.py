"""How a small KL autoencoder of one's own is shaped and trained."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field

from ditkit.config import Settings
from ditkit.training.codec_loss import Distance

FACTORS = (1, 2, 4, 8, 16, 32)


class CodecTraining(Settings):
    """Shape and training of diffusers' AutoencoderKL; the defaults suit a CPU and small images."""

    channels: int = Field(4, ge=1, description="Of the latents: SD has 4, SD3 and FLUX have 16.")
    factor: Literal[1, 2, 4, 8, 16, 32] | None = Field(
        None, description="Pixels a latent cell; None: 2 up to 16 pixels, 4 up to 64, 8 above."
    )
    width: int | None = Field(
        None,
        ge=4,
        description="Channels of the first level; the second has twice, others four times as many. None: 16 up to 16 "
        "pixels, 32 up to 64, 64 above.",
    )
    blocks: int = Field(1, ge=1, description="Residual blocks a level of the encoder; the decoder has one more.")
    attention: bool = Field(True, description="Attention between the two middle blocks.")

    steps: int = Field(1000, ge=1, description="Optimiser steps.")
    batch: int = Field(64, ge=1, description="Images a step.")
    lr: float = Field(1e-3, gt=0, description="AdamW's peak; half a cosine to 0 after the warm-up.")
    warmup: int = Field(50, ge=0, description="Steps of linear warm-up, a tenth of all at most.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's decoupled weight decay.")
    clip: float | None = Field(1.0, gt=0, description="Largest gradient norm.")
    ema: float = Field(0.999, ge=0, lt=1, description="Decay of the averaged weights, which are what is written.")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast, for a GPU.")
    flip: bool = Field(False, description="Mirror each visit of an image with probability 1/2.")
    workers: int = Field(0, ge=0, description="Processes that decode ahead.")

    loss: Distance = Field("l1", description="Of pixels: l1 or l2, a mean over image values in [-1, 1].")
    kl_weight: float = Field(1e-6, ge=0, description="Of the KL term a image value; latent diffusion's is 1e-6.")
    feature_weight: float = Field(0.1, ge=0, description="Of 1 - cosine between a teacher's tokens, with --teacher.")

    normalise: Literal["global", "channel"] = Field(
        "global", description="Scale and shift that end the training: one of each, or one a latent channel."
    )
    statistics: int = Field(10_000, ge=1, description="Training images, spread evenly, that scale and shift are of.")
    hold_out: bool = Field(True, description="Keep one fifth of the images for the test; else all are trained on.")
    save_every: int = Field(500, ge=1, description="Steps between saved states, from which a stopped run goes on.")
    log_every: int = Field(20, ge=1, description="Steps a row of metrics.jsonl.")
    seed: int = Field(0, ge=0, description="Of weights, order and draws.")

    def fitted(self, size: tuple[int, int]) -> CodecTraining:
        """With the factor and width that images of (H, W) ask for, where none is set: a CPU has to train them."""
        side = max(size)
        factor, width = (2, 16) if side <= 16 else (4, 32) if side <= 64 else (8, 64)
        return self.model_copy(update={"factor": self.factor or factor, "width": self.width or width})

    def network(self) -> dict[str, Any]:
        """The arguments of AutoencoderKL: RGB in and out. Factor and width must be known (`fitted`)."""
        assert self.factor is not None and self.width is not None
        width = self.width
        levels = FACTORS.index(self.factor) + 1
        widths = tuple(width * min(2**i, 4) for i in range(levels))
        return {
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": self.channels,
            "block_out_channels": widths,
            "layers_per_block": self.blocks,
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
            "norm_num_groups": math.gcd(width, 32),
            "mid_block_add_attention": self.attention,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
            "force_upcast": False,
        }
