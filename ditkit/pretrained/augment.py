"""Random views of images in plain torch: what a self-supervised teacher learns to see through."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ditkit.config import Settings


class Augment(Settings):
    """Strengths; 0 switches a part off. The defaults are the digits recipe (grey images, no mirror images)."""

    rotation: float = Field(15.0, ge=0, description="Degrees, either way.")
    scale: float = Field(0.15, ge=0, lt=1, description="Relative zoom, either way.")
    shear: float = Field(0.2, ge=0, description="Horizontal shear, either way.")
    shift: float = Field(0.125, ge=0, description="Share of the side, either way (1 pixel of 8).")
    crop: float = Field(
        1.0, gt=0, le=1, description="Smallest share of the area that a random crop keeps; 1 = no crop."
    )
    flip: float = Field(0.0, ge=0, le=1, description="Probability of a mirror image.")
    contrast: float = Field(0.2, ge=0, lt=1, description="Relative contrast, either way.")
    brightness: float = Field(0.0, ge=0, description="Added light in [0, 1] units, either way.")
    saturation: float = Field(0.0, ge=0, le=1, description="Relative colour, either way (colour images).")
    grey: float = Field(0.0, ge=0, le=1, description="Probability of losing all colour.")
    noise: float = Field(0.1, ge=0, description="Standard deviation of added noise in [0, 1] units.")
    padding: Literal["zeros", "border", "reflection"] = Field("zeros", description="What lies outside the image.")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """One random view of each image: (B, C, H, W) float in [0, 1] -> the same shape (may leave [0, 1] a little).

        Draws come from `generator`, which lives on the images' device.
        """
        draws = torch.rand(len(images), 12, generator=generator, device=images.device)
        grid = F.affine_grid(self.matrices(draws), list(images.shape), align_corners=False)
        views = F.grid_sample(images, grid, mode="bilinear", padding_mode=self.padding, align_corners=False)
        views = self.colour(views, draws[:, 8:].view(-1, 4, 1, 1, 1))
        if self.noise:
            views = views + self.noise * torch.randn(views.shape, generator=generator, device=views.device)
        return views

    def matrices(self, draws: Tensor) -> Tensor:
        """Draws (B, >= 8) in [0, 1) -> (B, 2, 3), from output to input coordinates in [-1, 1] (affine_grid's theta)."""
        angle, zoom, shear, x, y, area, flip, _ = (2 * draws[:, :8] - 1).unbind(1)
        angle = angle * math.radians(self.rotation)
        side = (self.crop + (1 - self.crop) * (area + 1) / 2).sqrt()  # crop: side of the kept square
        size = (1 + self.scale * zoom) * side
        mirror = torch.where(flip < 2 * self.flip - 1, -1.0, 1.0)
        cos, sin, shear = angle.cos(), angle.sin(), shear * self.shear
        room = 1 - side + 2 * self.shift  # a crop may lie anywhere, a shift goes beyond
        rows = (
            torch.stack((size * cos * mirror, size * (shear * cos - sin), x * room), 1),
            torch.stack((size * sin * mirror, size * (shear * sin + cos), y * room), 1),
        )
        return torch.stack(rows, 1)

    def colour(self, images: Tensor, draws: Tensor) -> Tensor:
        """Contrast, brightness, saturation and grey; draws (B, 4, 1, 1, 1) in [0, 1)."""
        contrast, brightness, saturation, grey = draws.unbind(1)
        middle = images.mean((1, 2, 3), keepdim=True)
        images = (images - middle) * (1 + self.contrast * (2 * contrast - 1)) + middle
        images = images + self.brightness * (2 * brightness - 1)
        if images.shape[1] == 3 and (self.saturation or self.grey):
            luma = images.mean(1, keepdim=True)
            kept = torch.where(grey < self.grey, 0.0, 1 + self.saturation * (2 * saturation - 1))
            images = luma + (images - luma) * kept
        return images


def default_augment(channels: int) -> Augment:
    """Grey images: the digits recipe. Colour images: crops, mirror images and colour jitter besides, less warping."""
    if channels == 1:
        return Augment()
    return Augment(
        rotation=10.0,
        scale=0.0,
        shear=0.1,
        shift=0.0,
        crop=0.25,
        flip=0.5,
        contrast=0.4,
        brightness=0.2,
        saturation=0.4,
        grey=0.2,
        noise=0.02,
        padding="reflection",
    )
