"""Whether a folder can be written, asked before minutes of work and without making anything."""

from __future__ import annotations

import os
from pathlib import Path

from ditkit.training.files import Unwritable


def nearest(folder: Path) -> Path:
    """The folder itself, or the closest thing above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def check_writable(folder: Path, option: str = "--out") -> None:
    """Unwritable, one line that names the option, if `folder` could not be made or written to."""
    place = nearest(folder)
    if not place.is_dir():
        raise Unwritable(f"cannot write to {folder}: {place} is a file; name another folder with {option}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise Unwritable(f"cannot write to {folder}: no permission in {place}; name another folder with {option}")


def check_new(folder: Path) -> None:
    """`check_writable`, and FileExistsError if something is there already."""
    check_writable(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: exists already and is not an empty folder; choose another or remove it")
