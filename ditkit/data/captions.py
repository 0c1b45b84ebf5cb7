"""Labels and captions that stand beside images: .txt side files, CSV and JSONL tables, COCO's caption files."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import numpy as np

from ditkit.data.source import DataError

FILE_COLUMN = "file_name"
SYNTHETIC = "synthetic"  # the usual column, table and side-file ending of captions that a model wrote
TABLE_ENDINGS = (".csv", ".jsonl")


class Row(NamedTuple):
    """One image of a table: a file relative to the table's folder, its label and its captions (None: no such column).

    texts came with the image, synthetic ones were written by a model.
    """

    file: str
    label: str | None
    texts: tuple[str, ...] | None
    synthetic: tuple[str, ...] | None = None


class Columns(NamedTuple):
    """The columns to read; None: the usual name, where it is there."""

    label: str | None = None
    text: str | None = None
    synthetic: str | None = None


USUAL = Columns()


class TextInside:
    """A text file inside an archive, as far as a table or a caption needs to be a file."""

    def __init__(self, where: str, data: bytes):
        self.where, self.data = where, data
        self.name, self.suffix = PurePosixPath(where).name, PurePosixPath(where).suffix

    def __str__(self) -> str:
        return self.where

    def is_file(self) -> bool:
        """It is."""
        return True

    def open(self, mode: str = "r", encoding: str = "utf-8", errors: str = "strict", newline: str | None = None) -> IO:
        """As of a path, to read."""
        file = io.BytesIO(self.data)
        return file if "b" in mode else io.TextIOWrapper(file, encoding, errors, newline)

    def read_text(self, encoding: str) -> str:
        """All of it."""
        return self.data.decode(encoding)


TextFile = Path | TextInside


def read_table(path: TextFile, columns: Columns = USUAL) -> list[Row]:
    """Rows of a CSV (UTF-8, with a header), JSONL or COCO file with file_name and at least one of the `columns`.

    They default to "label", to "text" or "caption", and to "synthetic". A blank label is an empty string. A caption may
    be a list of several (JSONL); lines of the same file and label become one row with the captions of all. DataError
    names the line that cannot be read, or the columns that are there.
    """
    rows = _READERS.get(path.suffix.lower(), jsonl_rows)(path)
    if not rows:
        raise DataError(f"{path}: this table has no rows")
    there = sorted({column for _, row in rows for column in row})
    if FILE_COLUMN not in there:
        raise DataError(f"{path}: no column {FILE_COLUMN!r} (found: {', '.join(there) or 'none'})")
    label = find_column(there, columns.label, ("label",), path)
    text = find_column(there, columns.text, ("text", "caption"), path)
    synthetic = find_column(there, columns.synthetic, (SYNTHETIC,), path)
    if label is None and text is None and synthetic is None:
        raise DataError(
            f"{path}: neither a 'label' nor a 'text' column (found: {', '.join(there)}); "
            "name one by label_column or text_column"
        )
    found: dict[tuple[str, str | None], Row] = {}
    for line, row in rows:
        file = row.get(FILE_COLUMN)
        if not (file := "" if file is None else str(file).strip()):
            raise DataError(f"{path}, line {line}: no {FILE_COLUMN}")
        where = f"{path}, line {line}"
        new = Row(
            file.replace("\\", "/").removeprefix("./"),
            None if label is None else next(iter(texts_of(row.get(label), where)), ""),
            None if text is None else texts_of(row.get(text), where),
            None if synthetic is None else texts_of(row.get(synthetic), where),
        )
        old = found.setdefault(new[:2], new)
        if old is not new:
            found[new[:2]] = old._replace(
                texts=_joined(old.texts, new.texts), synthetic=_joined(old.synthetic, new.synthetic)
            )
    return list(found.values())


def _joined(old: tuple[str, ...] | None, new: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return None if old is None else old + (new or ())


def texts_of(value: object, where: object) -> tuple[str, ...]:
    """The texts in a cell: one, a list of several, or none; stripped, without blank ones. DataError for other kinds."""
    values = value if isinstance(value, (list, tuple)) else (value,)
    if odd := [v for v in values if v is not None and not isinstance(v, (str, int, float))]:
        raise DataError(f"{where}: {type(odd[0]).__name__} where a text or a list of texts is expected")
    return tuple(text for v in values if v is not None and (text := str(v).strip()))


def find_column(columns: Sequence[str], asked: str | None, usual: Iterable[str], where: object) -> str | None:
    """The column asked for (DataError with the nearest names if it is not there), else the first usual one, or None."""
    if asked is None:
        return next((name for name in usual if name in columns), None)
    if asked in columns:
        return asked
    near = get_close_matches(asked, columns, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"found: {', '.join(columns)}"
    raise DataError(f"{where}: no column {asked!r}; {hint}")


def class_ids(values: Sequence[str], where: object, names: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """(classes, ids (n,) int64) of label strings: numbers in numeric order, all else as text; no values: all -1.

    DataError if some are blank and some are not; `names` are what the blank ones are reported by.
    """
    blank = [i for i, value in enumerate(values) if not value]
    if len(blank) == len(values):
        return (), np.full(len(values), -1, dtype=np.int64)
    if blank:
        raise DataError(
            f"{where}: {len(blank)} of {len(values)} rows have no label, the first is "
            f"{names[blank[0]]}; label all of them or none"
        )
    unique = set(values)
    numeric = all(value.removeprefix("-").isdecimal() for value in unique)
    classes = tuple(sorted(unique, key=lambda value: (int(value), value)) if numeric else sorted(unique))
    ids = {value: i for i, value in enumerate(classes)}
    return classes, np.array([ids[value] for value in values], dtype=np.int64)


def lists_files(path: TextFile) -> bool:
    """Whether the first line of a CSV or JSONL file speaks of file_name."""
    with path.open("rb") as file:
        return FILE_COLUMN.encode() in file.readline(2**16)


def only_synthetic(path: TextFile) -> bool:
    """Whether a CSV or JSONL table holds nothing but synthetic captions, as `ditkit data caption` writes them."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        line = file.readline(2**16)
    try:
        columns = set(json.loads(line) if path.suffix.lower() == ".jsonl" else next(csv.reader([line])))
    except (ValueError, TypeError, StopIteration, csv.Error):
        return False
    return {FILE_COLUMN, SYNTHETIC} <= columns and not columns & {"label", "text", "caption"}


def read_synthetic(path: TextFile, column: str | None = None) -> dict[str, tuple[str, ...]]:
    """File (or FILE.parquet#ROW) -> synthetic captions of a table such as `ditkit data caption` writes."""
    if not path.is_file():
        raise DataError(f"{path}: no such table of synthetic captions")
    return {row.file: row.synthetic or () for row in read_table(path, Columns(synthetic=column or SYNTHETIC))}


def read_column(path: TextFile, column: str) -> dict[str, object]:
    """File -> value of any column of a table (the last row's, where a file has several). DataError names the others."""
    rows = [row for _, row in _READERS.get(path.suffix.lower(), jsonl_rows)(path)]
    find_column(sorted({name for row in rows for name in row} - {FILE_COLUMN}), column, (), path)
    return {str(row.get(FILE_COLUMN)).strip().replace("\\", "/").removeprefix("./"): row.get(column) for row in rows}


def synthetic_path(source: Path) -> Path:
    """Where `ditkit data caption` writes by default, and sources look: in a folder, or beside a file."""
    return source / f"{SYNTHETIC}.jsonl" if source.is_dir() else source.with_suffix(f".{SYNTHETIC}.jsonl")


def side_captions(path: TextFile) -> tuple[str, ...]:
    """The captions in a .txt file, one a line. ValueError if it is not UTF-8, OSError if it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"its caption {path.name} is not UTF-8 text (byte {error.start})") from error
    return tuple(text for line in lines if (text := line.strip()))


def caption_notes(kinds: Sequence[tuple[bool, bool]]) -> tuple[str, ...]:
    """What a user should know of (has original captions, has synthetic ones) of every image."""
    count, notes = Counter(kinds), []
    if missing := count[False, False] % len(kinds):  # all or none missing is nothing to say
        notes.append(f"{missing} of {len(kinds)} images have no caption of their own")
    if count[True, True] or count[False, True]:
        notes.append(
            f"captions: {count[True, True]} images have original and synthetic ones, {count[True, False]} only "
            f"original and {count[False, True]} only synthetic ones; an image with one kind always shows that"
        )
    return tuple(notes)


def _csv_rows(path: TextFile) -> list[tuple[int, dict]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="(more cells than columns)", skipinitialspace=True)
            rows = []
            for row in reader:
                if None in row.values() or reader.restkey in row:
                    raise DataError(
                        f"{path}, line {reader.line_num}: {len(reader.fieldnames or ())} columns expected; "
                        "quote texts that hold commas"
                    )
                rows.append((reader.line_num, row))
            return rows
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a CSV file in UTF-8 ({error})") from error


def jsonl_rows(path: TextFile) -> list[tuple[int, dict]]:
    """(line number, object) of every line of a JSONL file but blank ones. DataError names the line at fault."""
    rows, number = [], 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    rows.append((number, json.loads(line)))
                    if not isinstance(rows[-1][1], dict):
                        raise DataError(f"{path}, line {number}: not a JSON object")
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number}: not JSON ({error.msg})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error})") from error
    return rows


def _coco_rows(path: TextFile) -> list[tuple[int, dict]]:
    """COCO's captions_*.json: its images, each with the captions of all its annotations (numbered as they stand)."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8-sig"))
        rows = {image["id"]: {FILE_COLUMN: image[FILE_COLUMN], "text": []} for image in tree["images"]}
        for annotation in tree["annotations"]:
            rows[annotation["image_id"]]["text"].append(annotation["caption"])
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not JSON in UTF-8 ({error})") from error
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: no COCO captions: 'images' and 'annotations' disagree ({error})") from error
    return list(enumerate(rows.values(), 1))


_READERS = {".csv": _csv_rows, ".json": _coco_rows}
