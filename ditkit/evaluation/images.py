"""From network output to pictures: the uint8 rule, PNG files, grids.

Images are (C, H, W) or (N, C, H, W); float images are in [-1, 1], uint8 images in 0..255; C is 1 or 3.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from ditkit.evaluation.files import write_bytes

# How float images in [-1, 1] became uint8. The rules shift all pixels by up to one level, which moves scores.
RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "round": lambda x: torch.round(127.5 * x + 127.5),  # ours: the inverse of x / 127.5 - 1
    "truncate_128": lambda x: torch.floor(127.5 * x + 128.0),  # DiT and SiT: halves go up
    "truncate_half": lambda x: torch.floor((x + 1.0) * 127.5 + 0.5),  # DDT: the same in other floating-point steps
    "floor_255": lambda x: torch.floor(255.0 * (x + 1.0) / 2.0),  # REPA: half a level darker than the others
}
PUBLISHED_RULES = {"dit": "truncate_128", "sit": "truncate_128", "repa": "floor_255", "ddt": "truncate_half"}


def rule_name(rule: str) -> str:
    """The rule's own name; a paper's name ("repa") is accepted. ValueError for an unknown one."""
    name = PUBLISHED_RULES.get(rule, rule)
    if name not in RULES:
        raise ValueError(f"unknown uint8 rule {rule!r}: choose one of {', '.join([*RULES, *PUBLISHED_RULES])}")
    return name


def quantise(x: Tensor, rule: str = "round") -> Tensor:
    """Float images in [-1, 1] -> uint8, by a named rule, clipped to 0..255. Non-finite values are an error.

    "round" is the default; the published evaluations used the others (a paper's name selects its rule).
    """
    x = x.detach().float()
    if not torch.isfinite(x).all():
        raise ValueError("quantise: the images hold NaN or infinite values; the sampler or the weights diverged")
    return RULES[rule_name(rule)](x).clamp(0, 255).to(torch.uint8)


def to_pillow(image: Tensor) -> Image.Image:
    """A uint8 image (C, H, W) with C = 1 or 3 as a Pillow image of mode L or RGB."""
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"expected a uint8 image (1 or 3, H, W), got {image.dtype} {tuple(image.shape)}")
    array = image.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else np.ascontiguousarray(array))


def png_bytes(image: Tensor, text: Mapping[str, str] | None = None) -> bytes:
    """A uint8 image (C, H, W) as a PNG file, with `text` stored in its tEXt fields."""
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    buffer = io.BytesIO()
    to_pillow(image).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def save_png(image: Tensor, path: str | Path, text: Mapping[str, str] | None = None) -> Path:
    """Write a uint8 image (C, H, W) as PNG, atomically."""
    return write_bytes(path, png_bytes(image, text))


def read_png(path: str | Path) -> tuple[Tensor, dict[str, str]]:
    """A PNG file as (uint8 image (C, H, W), its tEXt fields); greyscale stays one channel."""
    with Image.open(path) as file:
        text = dict(getattr(file, "text", {}))
        array = np.array(file if file.mode == "L" else file.convert("RGB"))
    array = array[:, :, None] if array.ndim == 2 else array
    return torch.from_numpy(array).permute(2, 0, 1).contiguous(), text


def enlarge(images: Tensor, factor: int) -> Tensor:
    """Repeat every pixel factor x factor times (nearest neighbour), for looking at tiny images."""
    return images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def viewing_factor(size: int, wanted: int = 64) -> int:
    """The whole factor that brings a side of `size` pixels to about `wanted` (at least 1)."""
    return max(1, round(wanted / size))


def grid(images: Tensor, columns: int, gap: int = 1, background: int = 255) -> Tensor:
    """uint8 images (N, C, H, W), row by row on a sheet (C, rows (H + gap) - gap, columns (W + gap) - gap)."""
    n, channels, height, width = images.shape
    if n == 0 or columns < 1:
        raise ValueError(f"grid: {n} images in {columns} columns cannot be drawn")
    rows = -(-n // columns)
    sheet = torch.full(
        (channels, rows * (height + gap) - gap, columns * (width + gap) - gap), background, dtype=torch.uint8
    )
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    return sheet
