"""How REPA feeds images to published teachers: tensors in, tensors out, no image processor of any library.

Bicubic WITHOUT antialias, align_corners False; where the published code normalises before it scales, so do we.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Preprocess:
    """Channel statistics on [0, 1] images, and whether they are applied before the image is scaled."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    normalise_first: bool = True

    def __call__(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, 1 or 3, H, W) uint8, or float in [0, 1] -> (B, 3, *size) float; grey images are repeated."""
        if images.shape[1] not in (1, 3):
            raise ValueError(
                f"teacher: images have {images.shape[1]} channels; published teachers see 1 (repeated) or 3"
            )
        x = in_unit_range(images).expand(-1, 3, -1, -1)
        return _scale(self._normalise(x), size) if self.normalise_first else self._normalise(_scale(x, size))

    def _normalise(self, x: Tensor) -> Tensor:
        mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std


def in_unit_range(images: Tensor) -> Tensor:
    """uint8 images -> float32 in [0, 1]; floating ones are there already, and keep their gradient."""
    return images.float() if images.is_floating_point() else images.float().div(255)


def _scale(x: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=size, mode="bicubic", align_corners=False)


def published_grid(size: tuple[int, int]) -> tuple[int, int]:
    """Patches for images of (H, W): 16 for each whole 256 pixels (224 * (side // 256) pixels of 14), at least 16."""
    return 16 * max(1, size[0] // 256), 16 * max(1, size[1] // 256)
