"""Pairs of images of which one is preferred: what preference tuning trains on.

Parquet as Pick-a-Pic publishes it (jpg_0, jpg_1, label_0, caption) or with columns winner and loser; JSONL with the
names of two files, {"winner": "a.png", "loser": "b.png", "caption": "..."}.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ditkit.data.captions import Columns, find_column, jsonl_rows, texts_of
from ditkit.data.parquet import Parquet, parquet_columns
from ditkit.data.pictures import decode, read_bytes, shape_of
from ditkit.data.source import DataError, ImageSource
from ditkit.data.transforms import adm_crop, to_uint8
from ditkit.protocols import Captions

Show = Literal["both", "winners"]
SIDES = (("winner", "loser"), ("image_0", "image_1"), ("jpg_0", "jpg_1"))  # column names, the usual ones
LABEL = "label_0"  # 1: the first image is preferred, 0: the second, anything else: neither
TEXTS = ("caption", "prompt", "text")


class Pairs(ImageSource):
    """One item a pair: image (2C, H, W), the winner's C channels first, or with show "winners" (C, H, W), the winner.

    path: a .parquet file (or a folder of them) or a .jsonl file, whose names count from its folder. Pairs without a
    winner are left out, and a note counts them; pairs with an unusable image, or without a caption where one is
    needed, are BadImage when they are read. `channels` is C, of one image. size, multiple: as for Folder.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        size: int | tuple[int, int] | None = None,
        channels: int = 3,
        *,
        show: Show = "both",
        text_column: str | None = None,
        multiple: int | None = None,
    ):
        place = Path(path)
        self.stored: _Parquets | _Files = (
            _Files(place, text_column) if place.suffix.lower() == ".jsonl" else _Parquets(place, text_column)
        )
        firsts = self.stored.firsts
        self.show, self.rows = show, np.flatnonzero([first is not None for first in firsts])
        self.swapped = np.array([firsts[row] is False for row in self.rows], dtype=bool)
        if not len(self.rows):
            raise DataError(f"{path}: none of its {len(firsts)} pairs has a winner")
        notes = [f"{len(firsts)} pairs of images: {len(self.rows)} with a winner"]
        if ties := len(firsts) - len(self.rows):
            notes[0] += f", {ties} without one ({LABEL} is neither 0 nor 1), which are left out"
        super().__init__(np.full(len(self.rows), -1, dtype=np.int64), (), channels, notes)
        self.choose_size((size, size) if isinstance(size, int) else size, multiple)

    def side(self, index: int, loser: bool) -> tuple[int, int]:
        """(row as stored, 0 or 1: which of its two images) of a pair's winner or loser."""
        return int(self.rows[index]), int(self.swapped[index]) ^ int(loser)

    def picture(self, index: int) -> Image.Image:
        return self.stored.picture(*self.side(index, loser=False))

    def shape(self, index: int) -> tuple[int, int]:
        return self.stored.shape(*self.side(index, loser=False))

    def name(self, index: int) -> str:
        return self.stored.name(int(self.rows[index]))

    def caption(self, index: int) -> str:
        return self.captions(index).first

    def captions(self, index: int) -> Captions:
        return self.stored.captions(int(self.rows[index]))

    def image(self, index: int, size: tuple[int, int]) -> Tensor:
        winner = super().image(index, size)
        if self.show == "winners":
            return winner
        loser = self.stored.picture(*self.side(index, loser=True))
        return torch.cat([winner, to_uint8(adm_crop(loser, size), self.channels)])

    def keep_in_memory(self, limit: int | None = None) -> None:
        """As for single images, of which a pair is two."""
        super().keep_in_memory(None if limit is None else limit // 2)

    def content(self) -> Iterable[str]:
        """The stored files and texts, and who wins."""
        yield from self.stored.content()
        yield f"pairs {self.rows.tolist()} {self.swapped.tolist()}"


class _Parquets:
    """The two image columns of a parquet file, each read as a source of its own."""

    def __init__(self, path: Path, text_column: str | None):
        names = parquet_columns(path)
        sides = next((pair for pair in SIDES if set(pair) <= set(names)), None)
        if sides is None:
            usual = " or ".join(" and ".join(pair) for pair in SIDES)
            raise DataError(f"{path}: no two columns of images ({usual}); found: {', '.join(names)}")
        columns = Columns(text=find_column(names, text_column, TEXTS, path))
        self.sources = [Parquet(path, 1, image_column=side, columns=columns) for side in sides]
        if sides[0] == "winner":
            self.firsts: list[bool | None] = [True] * len(self.sources[0])
        elif LABEL in names:
            self.firsts = [_first(value) for value in self.sources[0].column(LABEL)]
        else:
            raise DataError(f"{path}: no column {LABEL!r} that says who wins; found: {', '.join(names)}")

    def picture(self, row: int, which: int) -> Image.Image:
        return self.sources[which].picture(row)

    def shape(self, row: int, which: int) -> tuple[int, int]:
        return self.sources[which].shape(row)

    def captions(self, row: int) -> Captions:
        return self.sources[0].captions(row)

    def name(self, row: int) -> str:
        return self.sources[0].name(row)

    def content(self) -> Iterable[str]:
        for source in self.sources:
            yield from source.content()


class _Files:
    """The rows of a JSONL file that names two image files each."""

    def __init__(self, table: Path, text_column: str | None):
        lines = jsonl_rows(table)
        if not lines:
            raise DataError(f"{table}: this table has no rows")
        there = sorted({column for _, row in lines for column in row})
        sides = next((pair for pair in SIDES if set(pair) <= set(there)), None)
        if sides is None:
            raise DataError(f"{table}: no columns winner and loser (found: {', '.join(there)})")
        if sides[0] != "winner" and LABEL not in there:
            raise DataError(f"{table}: no column {LABEL!r} that says who wins (found: {', '.join(there)})")
        text = find_column(there, text_column, TEXTS, table)
        self.files: list[tuple[Path, Path]] = []
        self.table, self.texts, self.firsts = table, [], []
        for line, row in lines:
            if missing := [side for side in sides if not str(row.get(side) or "").strip()]:
                raise DataError(f"{table}, line {line}: no file under {missing[0]!r}")
            first, second = (table.parent / str(row[side]).replace("\\", "/") for side in sides)
            self.files.append((first, second))
            self.texts.append(texts_of(row.get(text), f"{table}, line {line}") if text else ())
            self.firsts.append(True if sides[0] == "winner" else _first(row.get(LABEL)))

    def picture(self, row: int, which: int) -> Image.Image:
        path = self.files[row][which]
        return decode(read_bytes(path), str(path))

    def shape(self, row: int, which: int) -> tuple[int, int]:
        path = self.files[row][which]
        return shape_of(path, str(path))

    def captions(self, row: int) -> Captions:
        return Captions(self.texts[row])

    def name(self, row: int) -> str:
        """TABLE#ROW, the row counted from 0."""
        return f"{self.table}#{row}"

    def content(self) -> Iterable[str]:
        home = self.table.parent
        for (first, second), texts in zip(self.files, self.texts, strict=True):
            sizes = [p.stat().st_size if p.is_file() else -1 for p in (first, second)]
            names = [os.path.relpath(p, home) for p in (first, second)]  # files may lie elsewhere
            yield f"{names[0]} {names[1]} {sizes} {texts}"


def _first(value: object) -> bool | None:
    """Whether the first image wins; None where neither does."""
    try:
        return {1.0: True, 0.0: False}.get(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
