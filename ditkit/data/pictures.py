"""Decoding: whatever picture files people have -> an upright 8-bit picture, RGB or L; or BadImage with the reason."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ditkit.protocols import BadImage

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
ORIENTATION = 0x0112  # EXIF tag; 5..8 exchange height and width


def decode(data: bytes, name: str) -> Image.Image:
    """Encoded bytes -> picture in mode RGB or L; `name` is what errors call it.

    EXIF rotation is applied; transparency is laid on white; 16-bit grey is scaled to 8; of an animation the first
    frame is taken; CMYK, palettes and the like become RGB. BadImage for everything else.
    """
    if not data:
        raise BadImage(name, "the file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)  # a copy of every picture costs more than one would think
            return flatten(image)
    except UnidentifiedImageError:  # its own message holds a memory address
        raise BadImage(name, "not a picture in a known format") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise BadImage(name, f"cannot be decoded: {one_line(error)}") from error


def read_bytes(path: str | os.PathLike) -> bytes:
    """The file's bytes; BadImage if it cannot be read (gone, no permission)."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadImage(str(path), f"cannot be read: {error.strerror or error}") from error


def shape_of(file: str | os.PathLike | IO[bytes], name: str) -> tuple[int, int]:
    """(H, W) after EXIF rotation, from the header alone; a rotation behind a PNG's pixels is not seen. BadImage if
    there is no header.
    """
    try:
        with Image.open(file) as image:
            width, height = image.size
            known = image.format != "PNG" or "exif" in image.info  # else getexif decodes all pixels to look for it
            turned = known and image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    except UnidentifiedImageError:
        raise BadImage(name, "not a picture in a known format") from None
    except Exception as error:
        raise BadImage(name, f"cannot be read: {one_line(error)}") from error
    return (width, height) if turned else (height, width)


def flatten(image: Image.Image) -> Image.Image:
    """Any mode -> RGB or L, 8 bits, without transparency. ValueError where a mode has no defined white level."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return Image.fromarray(np.rint(np.asarray(image) / 257.0).astype(np.uint8))  # 65535 -> 255
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} (32 bits) have no defined white; save with 8 or 16 bits")
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    if image.mode in ("L", "1"):
        return image if image.mode == "L" else image.convert("L")
    return image if image.mode == "RGB" else image.convert("RGB")


def one_line(error: Exception) -> str:
    """An exception's text without line breaks; its kind if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
