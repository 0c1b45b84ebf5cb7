"""diffusers' AutoencoderTiny as a Codec: TAESD and relatives, distilled from the big autoencoders' decoders.

Its latents are the big one's AFTER scale and shift: what a model trained with SD's VAE makes, `taesd` decodes as it is.
So the published files say scale 1 and shift 0. (diffusers' scale_latents only packs latents into bytes.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ditkit.pretrained.autoencoder import PlainCodec, fitted, read_autoencoder
from ditkit.pretrained.codec import Affine


class TinyCodec(PlainCodec):
    """A frozen AutoencoderTiny; deterministic. scale, shift: None takes the file's own."""

    def __init__(self, vae: Any, scale: Affine | None = None, shift: Affine | None = None):
        config = vae.config
        shape = config.latent_channels, 2 ** (len(config.num_encoder_blocks) - 1)
        own = config.scaling_factor, getattr(config, "shift_factor", None) or 0.0
        super().__init__("tiny", vae, shape, own[0] if scale is None else scale, own[1] if shift is None else shift)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3 or 1, H, W) in [-1, 1], H and W multiples of `factor` -> latents (B, channels, h, w)."""
        return self.vae.encode(fitted(images, self.vae, self.vae.config.in_channels, self.factor)).latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents -> images (B, 3, H, W), about [-1, 1], not clipped."""
        return self.vae.decode(self.raw(latents)).sample


def load_tiny(source: str, scale: Affine | None = None, shift: Affine | None = None) -> TinyCodec:
    """From a hub id or a folder; of a whole pipeline the VAE. PretrainedMissing, one line."""
    return TinyCodec(read_autoencoder("AutoencoderTiny", source, f"codec {source!r}"), scale, shift)
