"""How near a decoded image is to the original: PSNR, and SSIM (Wang et al. 2004)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ditkit.evaluation.metrics.arrays import Array

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
RANGE = 255.0


def _both(a: Array, b: Array, name: str) -> tuple[Tensor, Tensor]:
    x, y = torch.as_tensor(a), torch.as_tensor(b)
    if x.dtype != torch.uint8 or y.dtype != torch.uint8 or x.ndim != 4 or x.shape != y.shape or 0 in x.shape:
        stated = f"{x.dtype} {tuple(x.shape)} and {y.dtype} {tuple(y.shape)}"
        raise ValueError(f"{name}: expected two uint8 batches (N, C, H, W) of one shape, got {stated}")
    return x, y.to(x.device)


def psnr(a: Array, b: Array) -> Tensor:
    """Peak signal-to-noise ratio, 10 log10(255^2 / mean squared error) in dB, of uint8 (N, C, H, W) pairs: (N,).

    The error is averaged over channels and pixels of one image; equal images are infinitely good. float64.
    """
    x, y = _both(a, b, "psnr")
    errors = torch.cat([(p.double() - q.double()).square().mean((1, 2, 3)) for p, q in zip(*_parts(x, y), strict=True)])
    return 10 * torch.log10(RANGE**2 / errors)


def _parts(x: Tensor, y: Tensor, size: int = 64) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return x.split(size), y.split(size)


def _blur(images: Tensor, window: Tensor) -> Tensor:
    """Weighted means of images (N, 1, H, W) under the window along both axes, where it fits wholly."""
    down = functional.conv2d(images, window[None, None, :, None])
    return functional.conv2d(down, window[None, None, None, :])


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    n, channels = x.shape[:2]
    at = torch.arange(WINDOW, dtype=torch.float64, device=x.device) - WINDOW // 2
    window = torch.exp(-at.square() / (2 * SIGMA**2))
    window /= window.sum()
    x, y = (image.double().flatten(0, 1)[:, None] for image in (x, y))
    mean_x, mean_y = _blur(x, window), _blur(y, window)
    variance_x, variance_y = _blur(x * x, window) - mean_x.square(), _blur(y * y, window) - mean_y.square()
    covariance = _blur(x * y, window) - mean_x * mean_y
    c1, c2 = (K1 * RANGE) ** 2, (K2 * RANGE) ** 2
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    below = (mean_x.square() + mean_y.square() + c1) * (variance_x + variance_y + c2)
    return (above / below).mean((1, 2, 3)).view(n, channels).mean(1)


def ssim(a: Array, b: Array) -> Tensor:
    """Structural similarity of uint8 (N, C, H, W) pairs, (N,); 1 for equal images (Wang et al. 2004, eq. 13).

    Window 11 x 11, Gaussian of sigma 1.5; K1 .01, K2 .03; range 255; the mean over where the window fits wholly, of
    each channel by itself, then over channels. float64. ValueError for images below 11 pixels.
    """
    x, y = _both(a, b, "ssim")
    if min(x.shape[2:]) < WINDOW:
        size = f"{x.shape[2]} x {x.shape[3]}"
        raise ValueError(f"ssim: images of {size} pixels are smaller than its window of 11 x 11; score psnr alone")
    return torch.cat([_ssim(p, q) for p, q in zip(*_parts(x, y), strict=True)])
