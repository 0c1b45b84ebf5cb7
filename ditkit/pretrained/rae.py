"""diffusers' AutoencoderRAE as a Codec: the tokens of a frozen vision encoder are the latents (arXiv 2510.11690).

Its images are in [0, 1], its latents come out normalised (its own mean and deviation stay inside it, so scale is 1 and
shift 0), and it works at one square size: encode scales to the encoder's input, decode gives the decoder's size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ditkit.pretrained.autoencoder import PlainCodec, fitted, read_autoencoder
from ditkit.pretrained.codec import Affine
from ditkit.pretrained.missing import PretrainedMissing


class RAECodec(PlainCodec):
    """A frozen AutoencoderRAE; deterministic. `side`: of its square images in pixels, the only size that it takes."""

    def __init__(self, vae: Any, scale: Affine | None = None, shift: Affine | None = None):
        config = vae.config
        grid = config.encoder_input_size // config.encoder_patch_size
        self.side: int = config.image_size or config.patch_size * grid
        shape = config.encoder_hidden_size, self.side // grid
        super().__init__("rae", vae, shape, 1.0 if scale is None else scale, 0.0 if shift is None else shift)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3 or 1, side, side) in [-1, 1] -> latents (B, channels, h, h). ValueError for another size."""
        height, width = images.shape[2:]
        if (height, width) != (self.side, self.side):
            raise ValueError(
                f"codec: {height}x{width} images; this autoencoder works at {self.side}x{self.side} only: "
                f"--size {self.side}"
            )
        images = fitted(images, self.vae, self.vae.config.num_channels, self.factor)
        return self.vae.encode((images + 1) / 2).latent

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents -> images (B, 3, side, side), about [-1, 1], not clipped."""
        return self.vae.decode(self.raw(latents)).sample * 2 - 1


def load_rae(source: str, scale: Affine | None = None, shift: Affine | None = None) -> RAECodec:
    """From a hub id or a folder. PretrainedMissing, one line; also for one whose latents are no grid."""
    what = f"codec {source!r}"
    vae = read_autoencoder("AutoencoderRAE", source, what)
    if not vae.config.reshape_to_2d:
        raise PretrainedMissing(what, "its latents are a row of tokens (reshape_to_2d false), not a grid")
    return RAECodec(vae, scale, shift)
