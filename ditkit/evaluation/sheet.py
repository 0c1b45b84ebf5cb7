"""Contact sheets: images by class, or above their captions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ditkit.evaluation.images import enlarge, grid, to_pillow, viewing_factor
from ditkit.evaluation.request import Request

NARROWEST = 128  # pixels of an image that a caption can be read under
LINES = 3  # of a caption; the rest is cut with a mark
MOST_COLUMNS = 8  # of captioned images
LETTER, LEADING = 11, 14  # font size and line height in pixels


def contact_sheet(images: Tensor, request: Request, classes: int = 0, gap: int = 1) -> Tensor:
    """The first images of a request on one sheet, above their prompts where there are any; classes that take turns."""
    if request.prompts:
        turns = len(dict.fromkeys(request.prompts))
        columns = turns if turns <= MOST_COLUMNS else sheet_columns(0, min(len(images), MOST_COLUMNS**2))
        return captioned(images, request.prompts[: len(images)], min(columns, len(images)))
    return grid(images, min(sheet_columns(classes, len(images)), len(images)), gap)


def sheet_columns(classes: int, n: int) -> int:
    """Columns for n images whose classes take turns, so that a class keeps to its columns and the sheet is squarish."""
    side = max(1, round(n**0.5))
    return classes * max(1, side // classes) if 1 < classes <= 12 else side


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
