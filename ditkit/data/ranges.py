"""Byte ranges of a few large files, read at random; safe among threads, forked workers and pickles."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from ditkit.data.pictures import one_line
from ditkit.protocols import BadImage

OPEN_FILES = 64  # kept open by one process


class Ranges:
    """Reads (file, offset, size). Files open when first asked for, the last OPEN_FILES stay open.

    Reads are positional (pread): they share no place in the file, so that neither a thread nor a forked process can
    disturb another's. Pickles hold the paths alone.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths = tuple(paths)
        self._lock, self._handles = threading.Lock(), OrderedDict[int, _Handle]()

    def read(self, file: int, offset: int, size: int, name: str) -> bytes:
        """`size` bytes from `offset` of paths[file]. BadImage, under `name`, where they are not all there."""
        try:
            handle, parts, left = self._handle(file), [], size
            while left and (part := os.pread(handle.number, left, offset + size - left)):
                parts.append(part)
                left -= len(part)
        except OSError as error:
            raise BadImage(name, f"cannot be read: {error.strerror or one_line(error)}") from error
        if left:
            raise BadImage(name, f"cut off: the archive ends after {size - left} of its {size} bytes")
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def open(self, file: int, offset: int, size: int, name: str) -> io.BufferedReader:
        """The range as a file of its own, of which only what is asked for is read."""
        return io.BufferedReader(_Range(self, file, offset, size, name), 4096)  # type: ignore[type-var]

    def _handle(self, file: int) -> _Handle:
        with self._lock:
            if file not in self._handles:
                self._handles[file] = _Handle(self.paths[file])
                while len(self._handles) > OPEN_FILES:
                    self._handles.popitem(last=False)  # closed when the last thread that reads it lets go
            self._handles.move_to_end(file)
            return self._handles[file]

    def __getstate__(self) -> dict:
        return {"paths": self.paths}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["paths"])  # type: ignore[misc]


class _Handle:
    def __init__(self, path: Path):
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self):
        if hasattr(self, "number"):
            os.close(self.number)


class _Range(io.RawIOBase):
    """A seekable, read-only view of one range."""

    def __init__(self, ranges: Ranges, file: int, offset: int, size: int, name: str):
        self.where, self.ranges, self.size, self.label, self.place = (file, offset), ranges, size, name, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.place = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.size}[whence])
        return self.place

    def readinto(self, buffer) -> int:
        count = max(0, min(len(buffer), self.size - self.place))
        buffer[:count] = self.ranges.read(self.where[0], self.where[1] + self.place, count, self.label)
        self.place += count
        return count
