"""From a decoded picture to the model's pixels: ADM's centre crop, uint8 tensors, floats in [-1, 1]."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

LARGEST_RESIZE = 64 * 2**20  # pixels; a 1 x 5000 strip would otherwise grow to gigabytes before it is cropped


def adm_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Centre crop to size = (H, W), exactly as ADM, DiT, SiT and REPA prepare ImageNet when H = W.

    Halve both sides with BOX while the picture stays at least twice as large, resize with BICUBIC so that it just
    covers the target, crop at offset (side - target) // 2. Smaller pictures grow. ValueError if the picture is so
    elongated that its resized copy would not fit in memory. Source: guided diffusion's data preparation, as
    used by DiT (arXiv 2212.09748) and its successors; H != W is our extension of it.
    """
    height, width = size
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    resized = (round(image.width * scale), round(image.height * scale))
    if resized[0] * resized[1] > LARGEST_RESIZE:
        raise ValueError(f"too elongated: {image.width}x{image.height} pixels would become {resized[0]}x{resized[1]}")
    image = image.resize(resized, resample=Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def to_uint8(image: Image.Image, channels: int) -> Tensor:
    """Picture in mode RGB or L -> (channels, H, W) uint8; channels is 3 or 1 (ITU-R 601 luma)."""
    mode = "RGB" if channels == 3 else "L"
    array = np.array(image if image.mode == mode else image.convert(mode))
    return torch.from_numpy(array).reshape(array.shape[0], array.shape[1], channels).permute(2, 0, 1).contiguous()


def to_float(images: Tensor) -> Tensor:
    """uint8 in 0..255 -> float32 in [-1, 1] by x / 127.5 - 1, any shape (0 -> -1, 255 -> 1)."""
    return images.to(torch.float32) / 127.5 - 1
