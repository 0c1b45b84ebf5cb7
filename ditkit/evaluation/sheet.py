"""Contact sheets: images by class, or above their captions."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path

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

    Images narrower than 128 pixels are enlarged by a whole factor. What the font has not, such as Chinese characters or
    emoji, is drawn as one "?".
    """
    if len(captions) != len(images):
        raise ValueError(f"captioned: {len(captions)} captions for {len(images)} images")
    images = enlarge(images, viewing_factor(images.shape[3], NARROWEST))
    lines = [wrapped(text, images.shape[3]) for text in captions]
    height = max(map(len, lines)) * LEADING + 4
    cells = [_cell(image, text, height) for image, text in zip(images, lines, strict=True)]
    return grid(torch.stack(cells), columns, gap)


def wrapped(text: str, width: int) -> list[str]:
    """The caption in at most LINES lines of `width` pixels, as far as the font can write it."""
    text, font = writable(text), caption_font()
    lines: list[str] = []
    for letters in range(int(width / (LETTER * 0.4)), 7, -1):
        lines = textwrap.wrap(text, letters, max_lines=LINES, placeholder=" ...")
        if all(font.getlength(line) < width for line in lines):
            break
    return lines or ['""']


def writable(text: str) -> str:
    """The text with one "?" for every run of characters that the font has not."""
    known = "".join(c if c.isspace() or ord(c) in glyphs() else "\0" for c in unicodedata.normalize("NFC", text))
    return re.sub("\0+", "?", known)


@cache
def caption_font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: Latin with all accents, Greek, Cyrillic, signs."""
    from matplotlib import get_data_path  # late: half a second

    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), LETTER)


@cache
def glyphs() -> frozenset[int]:
    """The characters of `caption_font`."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(caption_font().path)).get_charmap())


def _cell(image: Tensor, lines: Sequence[str], height: int) -> Tensor:
    picture = to_pillow(image).convert("RGB")
    cell = Image.new("RGB", (picture.width, picture.height + height), "white")
    cell.paste(picture)
    ImageDraw.Draw(cell).multiline_text(
        (1, picture.height + 2), "\n".join(lines), fill="black", font=caption_font(), spacing=1
    )
    return torch.from_numpy(np.array(cell)).permute(2, 0, 1)
