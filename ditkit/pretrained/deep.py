"""diffusers' AutoencoderDC as a Codec: DC-AE (arXiv 2410.10733), factors of 32, 64 and 128, deterministic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ditkit.pretrained.autoencoder import PlainCodec, fitted, read_autoencoder
from ditkit.pretrained.codec import Affine


class DeepCodec(PlainCodec):
    """A frozen AutoencoderDC. scale: None takes the file's own (Sana's 0.41407); it has no shift of its own."""

    def __init__(self, vae: Any, scale: Affine | None = None, shift: Affine | None = None):
        config = vae.config
        shape = config.latent_channels, 2 ** (len(config.encoder_block_out_channels) - 1)
        own = config.scaling_factor if scale is None else scale
        super().__init__("dc", vae, shape, own, 0.0 if shift is None else shift)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3 or 1, H, W) in [-1, 1], H and W multiples of `factor` -> latents (B, channels, h, w)."""
        return self.vae.encode(fitted(images, self.vae, self.vae.config.in_channels, self.factor)).latent

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents -> images (B, 3, H, W), about [-1, 1], not clipped."""
        return self.vae.decode(self.raw(latents)).sample


def load_deep(source: str, scale: Affine | None = None, shift: Affine | None = None) -> DeepCodec:
    """From a hub id or a folder; of a whole pipeline the VAE. PretrainedMissing, one line."""
    return DeepCodec(read_autoencoder("AutoencoderDC", source, f"codec {source!r}"), scale, shift)
