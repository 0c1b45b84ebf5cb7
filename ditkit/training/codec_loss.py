"""What a KL autoencoder is trained on: pixels that come back, latents near a standard normal, features that come back.

The adversarial and perceptual terms of latent diffusion (arXiv 2112.10752) are left out: they need networks that
somebody else trained. A teacher of one's own stands in for the perceptual one.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ditkit.protocols import Features

Distance = Literal["l1", "l2"]


class SeeingTeacher(Protocol):
    """A frozen teacher that passes gradients to its images (SelfTaught, VisionTeacher)."""

    @property
    def id(self) -> str: ...

    def see(self, images: Tensor, *, grid: tuple[int, int] | None = None) -> Features:
        """Images in [0, 1] (B, C, H, W) -> Features."""
        ...


def reconstruction(images: Tensor, decoded: Tensor, distance: Distance) -> Tensor:
    """Mean over all image values of |difference| (l1) or its square (l2); images in [-1, 1]. float32."""
    apart = images.float() - decoded.float()
    return apart.abs().mean() if distance == "l1" else apart.square().mean()


def kl_divergence(mean: Tensor, log_variance: Tensor, values: int) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) summed over all latent numbers, divided by `values`. float32.

    values: numbers of the images, so that a weight means what it means in latent diffusion, whose loss sums over both
    (its weight is 1e-6).
    """
    mean, log_variance = mean.float(), log_variance.float()
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum() / values


def feature_distance(teacher: SeeingTeacher, images: Tensor, decoded: Tensor) -> Tensor:
    """1 - cosine between the teacher's tokens of decoded and original images, mean over tokens; both in [-1, 1].

    The gradient reaches `decoded` only. Values outside the range are seen as they are: clipping would have no gradient.
    """
    with torch.no_grad():
        wanted = teacher.see((images.float() + 1) / 2).tokens
    found = teacher.see((decoded.float() + 1) / 2).tokens
    return (1 - F.cosine_similarity(found.float(), wanted.float(), dim=-1)).mean()
