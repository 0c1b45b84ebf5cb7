"""The files of a .zip archive by name, read in place: a Folder lies in it as it would on the disk."""

from __future__ import annotations

import bz2
import io
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np

from ditkit.data.captions import TextInside
from ditkit.data.pictures import one_line, shape_of
from ditkit.data.ranges import Ranges
from ditkit.data.source import DataError
from ditkit.protocols import BadImage

LOCAL_HEADER = 30  # bytes before the name, whose length and the extra field's stand at 26 and 28
STORED, DEFLATED, BZIP2 = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2


class Zipped:
    """A Place: the archive's files. One folder at the top that holds all the rest is gone into (zip -r pets.zip pets).

    Only the directory at the archive's end is read at the start; a member is read and unpacked when it is asked for,
    its checksum compared. Of several members of one name the last counts, as when unpacking. DataError for an archive
    that is damaged or encrypted.
    """

    kind = "archive"

    def __init__(self, path: Path):
        self.root, self.ranges = path, Ranges([path])
        try:
            with zipfile.ZipFile(path) as archive:
                found = {info.filename.replace("\\", "/").lstrip("/"): info for info in archive.infolist()}
        except (zipfile.BadZipFile, OSError, ValueError, RuntimeError) as error:
            raise DataError(f"{path}: not a readable zip archive ({one_line(error)})") from error
        visible = {name: info for name, info in found.items() if not _hidden(name)}
        self.notes: tuple[str, ...] = ()
        if outside := [name for name in found if ".." in name.split("/")]:
            self.notes = (f"{path}: not read, they lead out of the archive: {len(outside)} ({outside[0]}, ...)",)
        files = {name: info for name, info in visible.items() if not name.endswith("/")}
        if locked := [name for name, info in files.items() if info.flag_bits & 1]:
            raise DataError(f"{path}: encrypted ({locked[0]}); unpack it with its password")
        tops = {name.split("/")[0] for name in visible}
        inside = len(tops) == 1 and bool(files) and all("/" in name for name in files)
        self.inside = f"{tops.pop()}/" if inside else ""
        folders = {name.removeprefix(self.inside).split("/")[0] for name in visible if "/" in name[len(self.inside) :]}
        self._folders = sorted(folders - {""})
        self._rows = {name.removeprefix(self.inside): row for row, name in enumerate(files)}
        self._table = np.array(
            [(i.header_offset, i.compress_size, i.file_size, i.compress_type, i.CRC) for i in files.values()],
            dtype=np.int64,
        ).reshape(-1, 5)

    def files(self) -> list[str]:
        return sorted(self._rows)

    def folders(self) -> list[str]:
        return list(self._folders)

    def where(self, name: str) -> str:
        return f"{self.root}/{self.inside}{name}"

    def size(self, name: str) -> int:
        row = self._rows.get(name)
        return -1 if row is None else int(self._table[row, 2])

    def text(self, name: str) -> TextInside:
        try:
            return TextInside(self.where(name), self.read(name))
        except BadImage as bad:
            raise OSError(f"{bad.path}: {bad.reason}") from bad

    def shape(self, name: str) -> tuple[int, int]:
        where = self.where(name)
        start, packed, _, method, _ = self._find(name)
        if method == STORED:
            return shape_of(self.ranges.open(0, start, packed, where), where)
        return shape_of(io.BytesIO(self.read(name)), where)

    def read(self, name: str) -> bytes:
        where = self.where(name)
        start, packed, size, method, checksum = self._find(name)
        data = self.ranges.read(0, start, packed, where)
        try:
            if method == DEFLATED:
                data = zlib.decompress(data, -15, bufsize=max(size, 1))
            elif method == BZIP2:
                data = bz2.decompress(data)
            elif method != STORED:
                kind = zipfile.compressor_names.get(method, method)  # type: ignore[attr-defined]
                raise BadImage(where, f"packed by a method that is not read here ({kind}); pack it by deflate or store")
        except (zlib.error, OSError, ValueError) as error:
            if isinstance(error, BadImage):
                raise
            raise BadImage(where, f"cannot be unpacked: {one_line(error)}") from error
        if len(data) != size or zlib.crc32(data) != checksum:
            raise BadImage(where, "damaged: its checksum is not the one that the archive states")
        return data

    def _find(self, name: str) -> tuple[int, int, int, int, int]:
        """(offset of the packed data, packed size, size, method, CRC-32)."""
        where, row = self.where(name), self._rows.get(name)
        if row is None:
            raise BadImage(where, "cannot be read: no such member of the archive")
        offset, packed, size, method, checksum = self._table[row].tolist()
        header = self.ranges.read(0, offset, LOCAL_HEADER, where)
        if header[:4] != b"PK\3\4":
            raise BadImage(where, "damaged: its header is not where the archive says")
        return offset + LOCAL_HEADER + sum(struct.unpack("<HH", header[26:30])), packed, size, method, checksum


def _hidden(name: str) -> bool:
    """Hidden files and folders, and what macOS adds."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)
