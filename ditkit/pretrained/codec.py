"""Codecs: images in [-1, 1] <-> normalised latents. Pixels need no network."""

from __future__ import annotations

import torch
from torch import Tensor

Affine = float | tuple[float, ...]


def per_channel(value: Affine, like: Tensor) -> Tensor | float:
    """A scale or shift ready to broadcast over (B, C, H, W)."""
    return (
        value
        if isinstance(value, (int, float))
        else torch.tensor(value, device=like.device, dtype=like.dtype).view(1, -1, 1, 1)
    )


def normalise(latents: Tensor, scale: Affine, shift: Affine) -> Tensor:
    """(latents - shift) * scale, per channel where tuples are given."""
    return (latents - per_channel(shift, latents)) * per_channel(scale, latents)


def denormalise(latents: Tensor, scale: Affine, shift: Affine) -> Tensor:
    """The inverse of `normalise`."""
    return latents / per_channel(scale, latents) + per_channel(shift, latents)


def sample_posterior(moments: Tensor, noise: Tensor | None, scale: Affine, shift: Affine) -> Tensor:
    """Moments (B, 2C, h, w), mean and STANDARD DEVIATION (not log-variance) -> normalised latents (B, C, h, w).

    z = ((mean + std * noise) - shift) * scale; noise None takes the mean. The latent caches of REPA hold the same two.
    """
    mean, std = moments.chunk(2, dim=1)
    return normalise(mean if noise is None else mean + std * noise, scale, shift)


class PixelCodec:
    """The image is the latent: deterministic, factor 1, scale 1, shift 0."""

    factor = 1
    scale = 1.0
    shift = 0.0

    def __init__(self, channels: int = 3):
        self.channels = channels
        self.id = f"pixels-{channels}"

    def encode(self, images: Tensor) -> Tensor:
        """(B, channels, H, W) in [-1, 1] -> itself."""
        if images.shape[1] != self.channels:
            raise ValueError(f"codec pixels: images have {images.shape[1]} channels, expected {self.channels}")
        return images

    def sample(self, moments: Tensor, noise: Tensor | None) -> Tensor:
        """The image; there is no posterior, noise is ignored."""
        return moments

    def decode(self, latents: Tensor) -> Tensor:
        """(B, channels, H, W) -> itself, not clipped."""
        return latents
