"""What lies below a folder of the disk, by name: one of the places where a Folder's files can be (a zip is another)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from ditkit.data.captions import TextFile
from ditkit.data.pictures import read_bytes, shape_of
from ditkit.data.source import DataError


class Place(Protocol):
    """Files by their names, relative and with "/"."""

    root: Path
    kind: str  # "folder" or "archive"
    notes: tuple[str, ...]  # what is left out

    def files(self) -> list[str]:
        """The visible files, sorted."""
        ...

    def folders(self) -> list[str]:
        """The visible folders at the top."""
        ...

    def where(self, name: str) -> str:
        """What messages call the file."""
        ...

    def read(self, name: str) -> bytes:
        """Its bytes; BadImage if they cannot be had."""
        ...

    def shape(self, name: str) -> tuple[int, int]:
        """(H, W) of a picture, from its header."""
        ...

    def size(self, name: str) -> int:
        """Bytes in it, -1 if it is not there."""
        ...

    def text(self, name: str) -> TextFile:
        """The file, to be read as text."""
        ...


class Disk:
    """A Place: a folder; hidden files are passed over, linked folders followed."""

    kind = "folder"
    notes: tuple[str, ...] = ()

    def __init__(self, root: Path):
        if not root.exists():
            raise DataError(f"{root}: no such folder")
        if not root.is_dir():
            raise DataError(f"{root}: a file, where a folder of images is expected")
        self.root = root

    def files(self) -> list[str]:
        return sorted(_walk(self.root))

    def folders(self) -> list[str]:
        return [e.name for e in os.scandir(self.root) if e.is_dir() and not e.name.startswith(".")]

    def where(self, name: str) -> str:
        return str(self.root / name)

    def read(self, name: str) -> bytes:
        return read_bytes(self.root / name)

    def shape(self, name: str) -> tuple[int, int]:
        return shape_of(self.where(name), self.where(name))

    def size(self, name: str) -> int:
        try:
            found = (self.root / name).stat()
        except OSError:
            return -1
        return found.st_size if stat.S_ISREG(found.st_mode) else -1

    def text(self, name: str) -> Path:
        return self.root / name


def _walk(root: Path) -> Iterator[str]:
    """Visible files below root, relative, with "/"; a linked folder that leads back to one above it is not entered."""
    above: dict[str, tuple[str, ...]] = {str(root): (os.path.realpath(root),)}
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_unreadable):
        real = above.pop(folder)
        prefix = "" if folder == str(root) else Path(folder).relative_to(root).as_posix() + "/"
        kept = []
        for name in folders:
            target = os.path.realpath(os.path.join(folder, name))
            if not name.startswith(".") and target not in real:
                above[os.path.join(folder, name)] = (*real, target)
                kept.append(name)
        folders[:] = kept
        for name in files:
            if not name.startswith("."):
                yield prefix + name


def _unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename}: this folder cannot be read ({error.strerror})") from error
