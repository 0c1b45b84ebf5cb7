"""Parquet files of encoded images (as image hubs ship them), read a row group at a time."""

from __future__ import annotations

import io
import json
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ditkit.data.captions import (
    SYNTHETIC,
    USUAL,
    Columns,
    caption_notes,
    class_ids,
    find_column,
    read_synthetic,
    synthetic_path,
    texts_of,
)
from ditkit.data.pictures import decode, one_line, shape_of
from ditkit.data.rejects import REJECTS
from ditkit.data.source import PROBES, DataError, ImageSource
from ditkit.protocols import BadImage, Captions

GROUPS_LIMIT = 512 * 2**20  # bytes of encoded row groups that one process keeps
IMAGE_NAMES = ("image", "img", "jpg", "png", "webp", "bytes")


class Parquet(ImageSource):
    """Rows of one .parquet file, of all in a folder in the order of their names, or of a list of them.

    The image column holds encoded bytes, or a struct with `bytes` (and `path`); labels are integers or strings, with
    class names from the hub's metadata where the file carries them. A caption may be a list of several; synthetic ones
    stand in the column "synthetic" or in a table beside the file, synthetic_table, which calls rows FILE.parquet#ROW.
    Only labels and captions are read at the start; each process opens the files for itself and keeps the row groups
    last used. size, channels, columns: as for Folder. Needs pyarrow (`pip install 'ditkit[data]'`).
    """

    def __init__(
        self,
        path: str | os.PathLike | Sequence[Path],
        size: int | tuple[int, int] | None = None,
        channels: int = 3,
        *,
        image_column: str | None = None,
        columns: Columns = USUAL,
        synthetic_table: str | None = None,
        multiple: int | None = None,
    ):
        place = Path(path) if isinstance(path, (str, os.PathLike)) else path[0].parent
        self.paths = _parquet_files(place) if isinstance(path, (str, os.PathLike)) else list(path)
        self._lock, self._pid = threading.Lock(), 0
        self._files: list = []
        self._groups: OrderedDict[int, Any] = OrderedDict()
        files = self._open_files()
        schema = files[0].schema_arrow
        for file, name in zip(files[1:], self.paths[1:], strict=True):
            if file.schema_arrow.names != schema.names:
                raise DataError(
                    f"{name}: its columns ({', '.join(file.schema_arrow.names)}) are not those of "
                    f"{self.paths[0]} ({', '.join(schema.names)})"
                )
        self.image_column = _image_column(schema, image_column, self.paths[0])
        self.columns = tuple(schema.names)
        label = find_column(schema.names, columns.label, _label_names(schema), self.paths[0])
        self._starts, self._where = _row_groups(files)
        self._first = np.cumsum([0] + [file.metadata.num_rows for file in files]).tolist()  # row of each file
        count = self._starts[-1]
        if not count:
            raise DataError(f"{place}: no rows")
        text = find_column(schema.names, columns.text, ("text", "caption"), self.paths[0])
        made = None if synthetic_table else find_column(schema.names, columns.synthetic, (SYNTHETIC,), self.paths[0])
        self._texts = (self._column_texts(text), self._column_texts(made) or self._beside(synthetic_table, columns))
        values = [] if label is None else self.column(label)
        classes, labels = labels_of(values, count, class_names(schema, label), f"{place}, column {label!r}")
        unlabelled = (
            ()
            if label
            else (
                f"unlabelled: no column 'label' in {self.paths[0]} (found: "
                f"{', '.join(schema.names)}); name one by data.label_column",
            )
        )
        has = [[bool(texts) for texts in kind] if kind else [False] * count for kind in self._texts]
        notes = _memory_note(files) + unlabelled + _unread(place) + caption_notes(list(zip(*has, strict=True)))
        super().__init__(labels, classes, channels, notes)
        self.choose_size((size, size) if isinstance(size, int) else size, multiple)

    def picture(self, index: int) -> Image.Image:
        return decode(self._bytes(index), self.name(index))

    def shape(self, index: int) -> tuple[int, int]:
        return shape_of(io.BytesIO(self._bytes(index)), self.name(index))

    def name(self, index: int) -> str:
        """FILE#ROW, the row counted within the file from 0."""
        file = self._locate(index)[0]
        return f"{self.paths[file]}#{index - self._first[file]}"

    def key(self, index: int) -> str:
        file = self._locate(index)[0]
        return f"{self.paths[file].name}#{index - self._first[file]}"

    def captions(self, index: int) -> Captions:
        own, made = (kind[index] if kind else () for kind in self._texts)
        if isinstance(own, str) or isinstance(made, str):
            raise ValueError(own if isinstance(own, str) else made)
        return Captions(own, made)

    def caption(self, index: int) -> str:
        return self.captions(index).first

    def caption_ways(self) -> str:
        return f"name its column by data.text_column (found: {', '.join(self.columns)})"

    def probes(self) -> Iterable[int]:
        """Rows of the first row group only: others would have to be read whole."""
        return range(min(PROBES, self._starts[1]))

    def content(self) -> Iterable[str]:
        """Names and sizes of the files, columns, labels; no image is read."""
        yield from self.identity()
        yield f"{self.image_column} {self.labels.tolist()}"
        for kind, texts in zip(("", "synthetic "), self._texts, strict=True):
            for found in texts or ():
                yield kind + (str(found) if len(found) > 1 else "".join(found))

    def identity(self) -> Iterable[str]:
        """Names and sizes of the files."""
        return (f"{path.name} {path.stat().st_size}" for path in self.paths)

    def _locate(self, index: int) -> tuple[int, int, int, int]:
        """index -> (file, row group within it, global row group, row within the group)."""
        group = bisect_right(self._starts, index) - 1
        file, local = self._where[group]
        return file, local, group, index - self._starts[group]

    def _bytes(self, index: int) -> bytes:
        file, local, group, row = self._locate(index)
        with self._lock:
            handle = self._open_files()[file]
            if group not in self._groups:
                try:
                    table = handle.read_row_group(local, columns=[self.image_column], use_threads=False)
                except Exception as error:  # pyarrow raises its own kinds
                    raise BadImage(self.name(index), f"row group {local} cannot be read: {one_line(error)}") from error
                self._groups[group] = table.column(self.image_column)
                while len(self._groups) > 1 and sum(g.nbytes for g in self._groups.values()) > GROUPS_LIMIT:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(group)
            value = self._groups[group][row].as_py()
        value = value.get("bytes") if isinstance(value, dict) else value
        if value is None:
            raise BadImage(self.name(index), "the row holds no image bytes")
        return value

    def _open_files(self) -> list:
        """The open files of this process (a forked worker must not share its parent's)."""
        if self._pid != os.getpid():
            parquet = _pyarrow_parquet()
            self._groups.clear()
            self._files, self._pid = [_open(parquet, path) for path in self.paths], os.getpid()
        return self._files

    def column(self, name: str) -> list:
        """Every row's value in a column, as Python objects. DataError names the columns where there is no such one."""
        find_column(self.columns, name, (), self.paths[0])
        return [value for file in self._open_files() for value in file.read(columns=[name]).column(name).to_pylist()]

    def _column_texts(self, name: str | None) -> list[tuple[str, ...] | str] | None:
        """The captions in each row of a column, or why a row's cannot be read (a str); None: no such column."""
        if name is None:
            return None
        try:
            values: Iterable = self.column(name)
        except UnicodeDecodeError:  # one by one, to find the rows
            chunks = (file.read(columns=[name]).column(name) for file in self._open_files())
            values = map(_text_or_error, (value for chunk in chunks for value in chunk))
        where = f"{self.paths[0].parent}, column {name!r}"
        return [
            f"its caption is not UTF-8 text (byte {value.start})"
            if isinstance(value, UnicodeDecodeError)
            else texts_of(value, f"{where}, row {row}")
            for row, value in enumerate(values)
        ]

    def _beside(self, table: str | None, columns: Columns) -> list[tuple[str, ...] | str] | None:
        """The synthetic captions of the table beside the files, or of the one named; None where there is none."""
        usual = [synthetic_path(path) for path in (*self.paths, self.paths[0].parent)]
        tables = [Path(table)] if table else [path for path in usual if path.is_file()]
        found: dict[str, tuple[str, ...]] = {}
        for path in tables:
            found |= read_synthetic(path, columns.synthetic if table else None)
        rows = zip(self.paths, np.diff(self._first).tolist(), strict=True)
        keys = (f"{path.name}#{row}" for path, n in rows for row in range(n))
        return [found.get(key, ()) for key in keys] if tables else None

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"_files": [], "_groups": OrderedDict(), "_pid": 0, "_lock": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state | {"_lock": threading.Lock()})


def _text_or_error(value) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return error


def class_names(schema, column: str | None) -> list[str] | None:
    """The names that a hub's metadata gives to the integer labels of `column`, or None."""
    try:
        about = json.loads(schema.metadata[b"huggingface"])["info"]["features"][column]
        return [str(name) for name in about["names"]]
    except (TypeError, KeyError, ValueError):
        return None


def _label_names(schema) -> tuple[str, ...]:
    """The usual names, and the column whose integers the hub's metadata names where it is the only one."""
    named = [name for name in schema.names if class_names(schema, name)]
    return ("label", "labels", *(named if len(named) == 1 else ()))


def labels_of(values: Sequence, count: int, names: list[str] | None, where: str) -> tuple[tuple[str, ...], np.ndarray]:
    """(classes, ids (count,) int64) of the values of a label column; `names`: those of integer labels, if known."""
    texts = ["" if value is None or value == -1 else str(value) for value in values] or [""] * count
    classes, labels = class_ids(texts, where, [f"row {i}" for i in range(count)])
    if names is None or not classes:
        return classes, labels
    if not all(text.isdecimal() and int(text) < len(names) for text in classes):
        raise DataError(f"{where}: labels {', '.join(classes[:5])}... do not fit its {len(names)} class names")
    return tuple(names), np.array([int(text) for text in texts], dtype=np.int64)


def parquet_columns(path: Path) -> list[str]:
    """The names of the columns of a .parquet file, or of the first one in a folder. DataError as for Parquet."""
    return _open(_pyarrow_parquet(), _parquet_files(path)[0]).schema_arrow.names


def _parquet_files(path: Path) -> list[Path]:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: no .parquet files in this folder")
    return files


def _unread(path: Path) -> tuple[str, ...]:
    known = (".parquet", f".{SYNTHETIC}.jsonl", f"{SYNTHETIC}.jsonl", REJECTS)
    others = sum(not file.name.startswith(".") and not file.name.endswith(known) for file in path.glob("*"))
    return (f"not read in {path}: {others} entries beside the .parquet files",) if others else ()


def _image_column(schema, asked: str | None, where: Path) -> str:
    """The column asked for; else the only one of bytes (plain or in a struct), or the one of a usual name."""
    if asked is not None:
        find_column(schema.names, asked, (), where)
    found = [field.name for field in schema if asked in (None, field.name) and _holds_bytes(field.type)]
    if len(found) == 1:
        return found[0]
    usual = [name for name in IMAGE_NAMES if name in found]
    if usual:
        return usual[0]
    columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
    raise DataError(
        f"{where}: {'several columns' if found else 'no column'} of image bytes ({columns}); "
        "name one by data.image_column"
    )


def _holds_bytes(kind) -> bool:
    text = str(kind)
    return text in ("binary", "large_binary") or (text.startswith("struct<") and "bytes: " in text)


def _row_groups(files: Sequence) -> tuple[list[int], list[tuple[int, int]]]:
    """(first row of each non-empty group and the total, (file, group within it) of each)."""
    starts, where = [0], []
    for number, file in enumerate(files):
        for group in range(file.num_row_groups):
            if rows := file.metadata.row_group(group).num_rows:
                starts.append(starts[-1] + rows)
                where.append((number, group))
    return starts, where


def _memory_note(files: Sequence) -> tuple[str, ...]:
    total = sum(file.metadata.row_group(g).total_byte_size for file in files for g in range(file.num_row_groups))
    if total <= GROUPS_LIMIT:
        return ()
    return (
        f"{total / 2**30:.1f} GiB of parquet in random order: each process keeps {GROUPS_LIMIT / 2**30:.1f} GiB of "
        "row groups and reads the others again and again; a folder of image files is faster",
    )


def _open(parquet, path: Path):
    try:
        return parquet.ParquetFile(path)
    except Exception as error:  # pyarrow raises its own kinds
        raise DataError(f"{path}: not a readable parquet file ({one_line(error)})") from error


def _pyarrow_parquet():
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise DataError("parquet files need pyarrow: pip install 'ditkit[data]'") from error
    return parquet
