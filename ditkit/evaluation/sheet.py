"""A contact sheet on which every image stands above its caption."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ditkit.evaluation.images import enlarge, grid, to_pillow, viewing_factor

NARROWEST = 128  # pixels of an image that a caption can be read under
LINES = 3  # of a caption; the rest is cut with a mark
LETTER, LEADING = 11, 14  # font size and line height in pixels


def captioned(images: Tensor, captions: Sequence[str], columns: int, gap: int = 8) -> Tensor:
    """uint8 images (N, C, H, W) above their captions (N), row by row on a white sheet (3, H', W').

    Images narrower than 128 pixels are enlarged by a whole factor. Letters that the font has not are drawn as boxes.
    """
    if len(captions) != len(images):
        raise ValueError(f"captioned: {len(captions)} captions for {len(images)} images")
    images = enlarge(images, viewing_factor(images.shape[3], NARROWEST))
    lines = [wrapped(text, images.shape[3]) for text in captions]
    height = max(map(len, lines)) * LEADING + 4
    cells = [_cell(image, text, height) for image, text in zip(images, lines, strict=True)]
    return grid(torch.stack(cells), columns, gap)


def wrapped(text: str, width: int) -> list[str]:
    """The caption in at most LINES lines of `width` pixels."""
    letters = max(8, int(width / (LETTER * 0.55)))
    return textwrap.wrap(text, letters, max_lines=LINES, placeholder=" ...") or ['""']


def _cell(image: Tensor, lines: Sequence[str], height: int) -> Tensor:
    picture = to_pillow(image).convert("RGB")
    cell = Image.new("RGB", (picture.width, picture.height + height), "white")
    cell.paste(picture)
    ImageDraw.Draw(cell).multiline_text(
        (1, picture.height + 2), "\n".join(lines), fill="black", font=ImageFont.load_default(LETTER), spacing=2
    )
    return torch.from_numpy(np.array(cell)).permute(2, 0, 1)
