"""A random convolutional network as a feature space: nobody trained it, so that it favours no model.

Where images are far from what Inception knows, a randomly initialised network is the fairer judge (Naeem et al. 2020,
"Reliable Fidelity and Diversity Metrics", section 4, who use a random VGG-16).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ditkit.protocols import Features

CELLS = 2  # per side of the last grid, which keeps where things are


class RandomFeatures:
    """Extractor: convolutions with fixed random weights; pooled (B, D) is the last 2 x 2 grid, row by row.

    channels: of the images. width: of the last stage; D is four times that. seed: of the weights.
    """

    def __init__(self, channels: int, width: int = 32, seed: int = 0):
        drawn = torch.Generator().manual_seed(seed)
        self.network = nn.Sequential(
            _convolution(channels, width, 1, drawn), nn.ReLU(),
            _convolution(width, 2 * width, 2, drawn), nn.ReLU(),
            _convolution(2 * width, width, 1, drawn), nn.ReLU(),
        ).requires_grad_(False)  # fmt: skip
        self.width = width * CELLS**2
        self.id = f"random-{channels}-{width}-seed{seed}"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """uint8 (B, C, H, W) -> tokens (B, 4, width) and pooled (B, 4 width)."""
        self.network.to(images.device)
        maps = F.adaptive_avg_pool2d(self.network(images.float() / 127.5 - 1), CELLS)
        tokens = maps.flatten(2).mT
        return Features(tokens, tokens.flatten(1), (CELLS, CELLS))


def _convolution(inside: int, outside: int, stride: int, drawn: torch.Generator) -> nn.Conv2d:
    """3 x 3 with He et al.'s normal initialisation and small random biases, which tell levels of grey apart."""
    made = nn.Conv2d(inside, outside, 3, stride=stride, padding=1)
    with torch.no_grad():
        made.weight.normal_(0, math.sqrt(2 / (9 * inside)), generator=drawn)
        assert made.bias is not None
        made.bias.uniform_(-0.5, 0.5, generator=drawn)
    return made
