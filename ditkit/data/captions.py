"""Labels and captions that stand beside images: .txt side files, and one CSV or JSONL table."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ditkit.data.source import DataError

FILE_COLUMN = "file_name"
TABLE_ENDINGS = (".csv", ".jsonl")


class Row(NamedTuple):
    """One line of a table: a file relative to the table's folder, its label and its caption (None: no such column)."""

    file: str
    label: str | None
    text: str | None


def read_table(path: Path, label_column: str | None = None, text_column: str | None = None) -> list[Row]:
    """Rows of a CSV (UTF-8, with a header) or JSONL file with file_name and label, text or both.

    Columns default to "label" and to "text" or "caption". A blank label or text is an empty string. DataError names
    the line that cannot be read, or the columns that are there.
    """
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _jsonl_rows(path)
    if not rows:
        raise DataError(f"{path}: this table has no rows")
    columns = sorted({column for _, row in rows for column in row})
    if FILE_COLUMN not in columns:
        raise DataError(f"{path}: no column {FILE_COLUMN!r} (found: {', '.join(columns) or 'none'})")
    label = find_column(columns, label_column, ("label",), path)
    text = find_column(columns, text_column, ("text", "caption"), path)
    if label is None and text is None:
        raise DataError(
            f"{path}: neither a 'label' nor a 'text' column (found: {', '.join(columns)}); "
            "name one by label_column or text_column"
        )
    found = []
    for line, row in rows:
        if not (file := _text(row.get(FILE_COLUMN))):
            raise DataError(f"{path}, line {line}: no {FILE_COLUMN}")
        values = [None if column is None else _text(row.get(column)) for column in (label, text)]
        found.append(Row(file.replace("\\", "/").removeprefix("./"), *values))
    return found


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


def lists_files(path: Path) -> bool:
    """Whether the first line of a CSV or JSONL file speaks of file_name."""
    with path.open("rb") as file:
        return FILE_COLUMN.encode() in file.readline(2**16)


def side_caption(path: Path) -> str:
    """The caption in a .txt file, stripped. ValueError if it is not UTF-8, OSError if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"its caption {path.name} is not UTF-8 text (byte {error.start})") from error


def _text(value: object) -> str:
    if isinstance(value, list):  # several captions of one picture: the first; give one row each to use them all
        value = value[0] if value else None
    return "" if value is None else str(value).strip()


def _csv_rows(path: Path) -> list[tuple[int, dict]]:
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


def _jsonl_rows(path: Path) -> list[tuple[int, dict]]:
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
