"""Raw pixels as a feature space: nothing was trained for it, so it favours no model."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ditkit.protocols import Features

MOST = 16  # larger images are averaged down, so that covariances stay small


class Pixels:
    """Extractor: the image itself, averaged down to at most 16 x 16, in [-1, 1]; pooled is the flattened image."""

    def __init__(self, channels: int, size: tuple[int, int]):
        self.size = (min(size[0], MOST), min(size[1], MOST))
        self.width = channels * self.size[0] * self.size[1]
        self.id = f"pixels-{channels}x{self.size[0]}x{self.size[1]}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """uint8 (B, C, H, W) -> tokens (B, H W, C) and pooled (B, C H W)."""
        x = images.float() / 127.5 - 1
        if x.shape[2:] != self.size:
            x = F.adaptive_avg_pool2d(x, self.size)
        return Features(x.flatten(2).mT, x.flatten(1), self.size)
