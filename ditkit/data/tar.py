"""Webdataset's tar shards, read at random by an index of offsets, so that order and resume are those of any source."""

from __future__ import annotations

import itertools
import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
from ditkit.data.folder import count_kinds
from ditkit.data.pictures import decode, shape_of
from ditkit.data.ranges import Ranges
from ditkit.data.source import DataError, ImageSource
from ditkit.data.tar_index import LABELS, PARTS, Shard, parse_about, read_shard
from ditkit.protocols import BadImage, Captions

IMAGE, TEXT, MADE, ABOUT = range(len(PARTS))


class Tar(ImageSource):
    """Samples of one .tar, of all in a folder, or of a pattern shard-{000..012}.tar, in the order of names and places.

    A sample is an image and what shares its name up to the first dot: .cls (its label), .txt (captions, one a line),
    .synthetic.txt, .json (label or cls, text or caption, synthetic, and columns such as scores). Where no sample has a
    label, folders are classes, as in a folder of images packed by tar. Headers are scanned once a shard, and the
    offsets kept beside it (tar_index). size, channels, columns, synthetic_table: as for Parquet; columns are of .json.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        size: int | tuple[int, int] | None = None,
        channels: int = 3,
        *,
        columns: Columns = USUAL,
        synthetic_table: str | None = None,
        multiple: int | None = None,
    ):
        self.paths = tar_files(os.fspath(path))
        with ThreadPoolExecutor(4) as pool:
            shards = list(pool.map(read_shard, self.paths))
        self._starts = [0, *itertools.accumulate(len(shard.names) for shard in shards)]
        if not self._starts[-1]:
            found = sum((shard.others for shard in shards), Counter[str]())
            raise DataError(f"{path}: no images in it (found {count_kinds(found) if found else 'nothing'})")
        self.ranges, self.usual = Ranges(self.paths), columns
        self.names = [name for shard in shards for name in shard.names]
        self.where = np.concatenate([shard.where for shard in shards])
        classes, labels, notes = self._labels(shards, columns.label)
        for name in (columns.text, columns.synthetic if synthetic_table is None else None):
            if name is not None:
                self.column(name)  # DataError where no .json has it
        self._beside = self._read_beside(synthetic_table, columns)
        captioned = self.where[:, TEXT, 1] > 0
        if columns.text is None:
            captioned |= np.concatenate([shard.captioned for shard in shards])
            made = (self.where[:, MADE, 1] > 0) | [self.key(i) in self._beside for i in range(len(self.names))]
            notes += caption_notes(list(zip(captioned.tolist(), made.tolist(), strict=True)))
        super().__init__(labels, classes, channels, notes + _told(self.paths, shards))
        self.choose_size((size, size) if isinstance(size, int) else size, multiple)

    def picture(self, index: int) -> Image.Image:
        return decode(self._part(index, IMAGE), self.name(index))

    def shape(self, index: int) -> tuple[int, int]:
        offset, size = self.where[index, IMAGE].tolist()
        return shape_of(self.ranges.open(self._shard(index), offset, size, self.name(index)), self.name(index))

    def name(self, index: int) -> str:
        return f"{self.paths[self._shard(index)]}/{self.names[index]}"

    def key(self, index: int) -> str:
        """SHARD.tar/NAME."""
        return f"{self.paths[self._shard(index)].name}/{self.names[index]}"

    def captions(self, index: int) -> Captions:
        """Of .txt, else of .json; synthetic ones of .synthetic.txt, .json, or the table beside the shards."""
        about = self._about(index)
        asked = self.usual.text
        own = () if asked else self._lines(index, TEXT)
        own = own or texts_of(
            about.get(asked) if asked else about.get("text") or about.get("caption"), self.name(index)
        )
        made = self._beside.get(self.key(index), ()) or self._lines(index, MADE)
        return Captions(own, made or texts_of(about.get(self.usual.synthetic or SYNTHETIC), self.name(index)))

    def caption(self, index: int) -> str:
        return self.captions(index).first

    def caption_ways(self) -> str:
        return "put it into NAME.txt beside NAME.jpg in the tar, or into NAME.json under 'text' or 'caption'"

    def column(self, name: str) -> list:
        """Every sample's value under a key of its .json; None where it has none."""
        values, keys = [], set[str]()
        for index in range(len(self.names)):
            about = self._about(index)
            keys |= about.keys()
            values.append(about.get(name))
        find_column(sorted(keys), name, (), f"{self.paths[0]}, .json members")
        return values

    def identity(self) -> Iterable[str]:
        """Names of the shards, names and sizes of the images in them."""
        return (f"{self.key(i)} {self.where[i, IMAGE, 1]}" for i in range(len(self)))

    def content(self) -> Iterable[str]:
        """The identity, labels and sizes of the texts; no image is read."""
        for line, sizes, label in zip(self.identity(), self.where[:, TEXT:, 1].tolist(), self.labels, strict=True):
            yield f"{line} {label} {sizes}"
        if self.usual != USUAL or self._beside:
            yield f"{self.usual} {sorted(self._beside.items())}"

    def _shard(self, index: int) -> int:
        return bisect_right(self._starts, index) - 1

    def _part(self, index: int, part: int) -> bytes:
        """A part's bytes; none where the sample has no such part."""
        offset, size = self.where[index, part].tolist()
        return self.ranges.read(self._shard(index), offset, size, self.name(index)) if size > 0 else b""

    def _about(self, index: int) -> dict:
        return parse_about(self._part(index, ABOUT))

    def _lines(self, index: int, part: int) -> tuple[str, ...]:
        try:
            lines = self._part(index, part).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise BadImage(self.name(index), f"its .{PARTS[part]} is not UTF-8 text (byte {error.start})") from error
        return tuple(text for line in lines if (text := line.strip()))

    def _labels(
        self, shards: Sequence[Shard], column: str | None
    ) -> tuple[tuple[str, ...], np.ndarray, tuple[str, ...]]:
        """(classes, labels, notes): the column asked for, else .cls and the usual names, else the folders."""
        if column is not None and column not in LABELS:
            texts = ["" if value in (None, -1) else str(value).strip() for value in self.column(column)]
        else:
            texts = [label for shard in shards for label in shard.labels]
        if not any(texts):
            found = top_folders(self.names)
            if len(classes := sorted(set(found))) > 1 and all(found):
                ids = {name: i for i, name in enumerate(classes)}
                note = f"no sample has a label: the {len(classes)} folders in the tar are taken for classes"
                return tuple(classes), np.array([ids[name] for name in found], dtype=np.int64), (note,)
        named, labels = class_ids(texts, f"{_named(self.paths)} (.cls, .json)", self.names)
        return named, labels, () if named else ("unlabelled: neither .cls nor a label in .json",)

    def _read_beside(self, table: str | None, columns: Columns) -> dict[str, tuple[str, ...]]:
        """Synthetic captions of the table named, or of those where `ditkit data caption` writes them."""
        usual = [synthetic_path(path) for path in (*self.paths, self.paths[0].parent)]
        found: dict[str, tuple[str, ...]] = {}
        for path in [Path(table)] if table else [path for path in usual if path.is_file()]:
            found |= read_synthetic(path, columns.synthetic if table else None)
        return found


def tar_files(path: str) -> list[Path]:
    """The shards that a file, a folder or a pattern with {000..012} or {a,b} stands for. DataError if one lacks."""
    given = Path(path).expanduser()
    if given.is_dir():
        found = sorted(file for file in given.glob("*.tar") if not file.name.startswith("."))
        if not found:
            raise DataError(f"{path}: no .tar files in this folder")
        return found
    found = [Path(name) for name in expand_braces(str(given))]
    if missing := [file for file in found if not file.is_file()]:
        raise DataError(f"{missing[0]}: no such file ({len(missing)} of {len(found)} shards of {path} are missing)")
    return found


def expand_braces(pattern: str) -> list[str]:
    """'a-{08..10}.tar' -> a-08.tar, a-09.tar, a-10.tar; {x,y} too; several of them give all combinations."""
    if not (found := re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)):
        return [pattern]
    first, last, words = found.groups()
    parts = words.split(",") if words else [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    return [pattern[: found.start()] + part + rest for part in parts for rest in expand_braces(pattern[found.end() :])]


def top_folders(names: Sequence[str]) -> list[str]:
    """The first folder of each name, below one that all share; "" for names in no folder."""
    tops = [name.split("/", 1)[0] if "/" in name else "" for name in names]
    if len(set(tops)) == 1 and tops[0] and any(name.count("/") > 1 for name in names):
        tops = [name.split("/")[1] if name.count("/") > 1 else "" for name in names]
    return tops


def _named(paths: Sequence[Path]) -> Path:
    """What messages call some shards: the only one, or their folder."""
    return paths[0] if len(paths) == 1 else paths[0].parent.absolute()


def _told(paths: Sequence[Path], shards: Sequence[Shard]) -> tuple[str, ...]:
    """Notes: what is damaged, what is not read, which shards are empty."""
    notes = [f"{path}: {shard.damage}" for path, shard in zip(paths, shards, strict=True) if shard.damage]
    if others := sum((shard.others for shard in shards), Counter[str]()):
        notes.append(f"not read in {_named(paths)}: {count_kinds(others)}")
    if empty := [path.name for path, shard in zip(paths, shards, strict=True) if not shard.names]:
        notes.append(f"shards without images: {', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''}")
    return tuple(notes)
