"""Files and folders that appear under their final name complete, or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


def write_atomic(path: str | Path, write: Callable[[IO[bytes]], object]) -> Path:
    """Call `write` with an open binary file, force it to the disk, rename it to `path`.

    The temporary name is fixed (".NAME.part"), so that a killed run leaves at most one stray file, which the next
    run overwrites. OSError where the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` (UTF-8) to `path` atomically."""
    return write_atomic(path, lambda file: file.write(text.encode()))


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A draft folder that takes the name `folder` when the block ends well, and vanishes when it does not.

    FileExistsError if `folder` exists and is not an empty folder.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: exists already and is not an empty folder; choose another or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    draft.mkdir()
    try:
        yield draft
        os.replace(draft, folder)  # replaces an empty folder, refuses a filled one
    finally:
        shutil.rmtree(draft, ignore_errors=True)
