"""A folder of images, on the disk or in a zip: class folders, or flat; captions and labels from files or a table."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from ditkit.data.captions import (
    TABLE_ENDINGS,
    USUAL,
    Columns,
    Row,
    TextFile,
    caption_notes,
    class_ids,
    find_column,
    lists_files,
    only_synthetic,
    read_column,
    read_synthetic,
    read_table,
    side_captions,
    synthetic_path,
)
from ditkit.data.disk import Disk, Place
from ditkit.data.pictures import ENDINGS, decode
from ditkit.data.source import DataError, ImageSource
from ditkit.data.zip import Zipped
from ditkit.protocols import Captions

SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing", "dev"})


class Folder(ImageSource):
    """Images below `path`, a folder or a .zip of one (read in place), in one of three forms; hidden files do not count.

    - class folders: every image below PATH/NAME/, however deep, is of class NAME; classes are sorted by name;
    - flat: images only, directly in PATH: unlabelled;
    - one CSV or JSONL table in PATH with file_name and label and/or text: one sample a file, labels from it alone.
    The lines of NAME.txt beside NAME.jpg are its captions (where no table gives them), those of NAME.synthetic.txt its
    synthetic ones, which may also stand in the table's column "synthetic" or in a table of their own (JSONL or CSV with
    file_name and synthetic). size: side, (H, W) or None (from the data). channels: 3, or 1 for greyscale. table: one of
    several in PATH, or the path of one elsewhere, of COCO's captions_*.json too. columns, synthetic_table: names, where
    they are not the usual ones. DataError, one line, if the folder has none of these forms.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        size: int | tuple[int, int] | None = None,
        channels: int = 3,
        *,
        table: str | None = None,
        columns: Columns = USUAL,
        synthetic_table: str | None = None,
        multiple: int | None = None,
    ):
        self.root = Path(path)
        self.place: Place = (
            Zipped(self.root) if self.root.suffix.lower() == ".zip" and self.root.is_file() else Disk(self.root)
        )
        listing = Listing(self.place)
        extra, said = _synthetic(listing, synthetic_table, columns.synthetic)
        own = columns if synthetic_table is None else columns._replace(synthetic=None)
        self.table = _find_table(listing, table)
        rows, notes = _table_rows(listing, self.table, own)
        if rows is None:
            classes, labels = _folder_classes(listing)
            rows, no_table = [Row(file, None, None) for file in listing.images], True
        else:
            classes, labels = class_ids([row.label or "" for row in rows], self.root, [row.file for row in rows])
            no_table = False
        self.files: list[str] = [row.file for row in rows]
        beside = [str(PurePosixPath(row.file).with_suffix("")) for row in rows]
        self._texts = [
            Texts(
                _side(f"{name}.txt", listing) if row.texts is None else row.texts,
                row.synthetic or extra.get(row.file) or _side(f"{name}.synthetic.txt", listing) or (),
            )
            for row, name in zip(rows, beside, strict=True)
        ]
        super().__init__(
            labels, classes, channels, self.place.notes + notes + said + _leftovers(listing, self._texts, no_table)
        )
        self.choose_size((size, size) if isinstance(size, int) else size, multiple)

    def picture(self, index: int) -> Image.Image:
        return decode(self.place.read(self.files[index]), self.name(index))

    def shape(self, index: int) -> tuple[int, int]:
        return self.place.shape(self.files[index])

    def name(self, index: int) -> str:
        return self.place.where(self.files[index])

    def captions(self, index: int) -> Captions:
        original, synthetic = self._texts[index]
        return Captions(self._read(original), self._read(synthetic))

    def caption(self, index: int) -> str:
        return self.captions(index).first

    def key(self, index: int) -> str:
        return self.files[index]

    def content(self) -> Iterator[str]:
        """Names, sizes in bytes, labels and captions (side files: their size); no image is read."""
        for file, texts, label in zip(self.files, self._texts, self.labels, strict=True):
            original, synthetic = map(self._identify, texts)
            more = f" synthetic {synthetic}" if texts.synthetic else ""
            yield f"{file} {self.place.size(file)} {label} {original}{more}"

    def identity(self) -> Iterator[str]:
        """Names and sizes in bytes."""
        return (f"{file} {self.place.size(file)}" for file in self.files)

    def column(self, name: str) -> list:
        """Each image's value in a column of the table; None where it has none."""
        if self.table is None:
            return super().column(name)
        found = read_column(_table_file(self.place, self.table), name)
        values = {unicodedata.normalize("NFC", file): value for file, value in found.items()}
        return [values.get(unicodedata.normalize("NFC", file)) for file in self.files]

    def _read(self, texts: tuple[str, ...] | Path | None) -> tuple[str, ...]:
        return side_captions(self.place.text(str(texts))) if isinstance(texts, Path) else texts or ()

    def _identify(self, texts: tuple[str, ...] | Path | None) -> object:
        if isinstance(texts, Path):
            return self.place.size(str(texts))
        return texts if texts is None or len(texts) > 1 else "".join(texts)


class Texts(NamedTuple):
    """Captions of one image as a folder keeps them: the texts, or the side file that is read when asked for."""

    original: tuple[str, ...] | Path | None
    synthetic: tuple[str, ...] | Path


class Listing:
    """What lies at a place, as sorted names: images, captions, tables, everything else."""

    def __init__(self, place: Place):
        files, root = place.files(), place.root
        self.root, self.place = root, place
        self.images = [file for file in files if file.lower().endswith(ENDINGS)]
        self.texts = {file for file in files if file.lower().endswith(".txt")}
        self.tables = [file for file in files if file.lower().endswith(TABLE_ENDINGS) and "/" not in file]
        known = {*self.images, *self.texts, *self.tables}
        self.others = Counter(PurePosixPath(file).suffix.lower() or "no ending" for file in files if file not in known)
        self.folders = sorted({file.split("/")[0] for file in self.images if "/" in file})
        self.empty = sorted(name for name in place.folders() if name not in self.folders)
        self.loose = [file for file in self.images if "/" not in file]
        if not self.images:
            raise DataError(
                f"{root}: no images in this {place.kind} ({self._found()}); they end in {', '.join(ENDINGS)}"
            )

    def _found(self) -> str:
        kinds = Counter(PurePosixPath(file).suffix.lower() for file in (*self.texts, *self.tables)) + self.others
        return "found " + count_kinds(kinds) if kinds else "it is empty"


def count_kinds(kinds: Counter[str]) -> str:
    """'12 .npy, 3 .json', the most frequent first, at most five."""
    shown = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
    return shown + (", ..." if len(kinds) > 5 else "")


def _folder_classes(listing: Listing) -> tuple[tuple[str, ...], np.ndarray]:
    """(classes, labels) from the first folder of each path; unlabelled if there are none."""
    if listing.folders and listing.loose:
        raise DataError(
            f"{listing.root}: {len(listing.folders)} class folders mixed with {len(listing.loose)} loose "
            f"images (such as {listing.loose[0]}); move them into a class folder or out of it"
        )
    if listing.folders and {name.lower() for name in listing.folders} <= SPLITS:
        raise DataError(
            f"{listing.root}: its folders are splits ({', '.join(listing.folders)}), not classes; "
            f"give one of them, such as {listing.root / listing.folders[0]}"
        )
    ids = {name: i for i, name in enumerate(listing.folders)}
    labels = [ids[file.split("/")[0]] if ids else -1 for file in listing.images]
    return tuple(listing.folders), np.array(labels, dtype=np.int64)


def _table_rows(listing: Listing, name: str | None, columns: Columns) -> tuple[list[Row] | None, tuple[str, ...]]:
    """The rows of the folder's table, by file, and notes; None if it has none."""
    if name is None:
        if asked := next((column for column in columns if column), None):
            raise DataError(f"{listing.root}: column {asked!r} is asked for, but there is no CSV or JSONL table")
        return None, ()
    by_form = {unicodedata.normalize("NFC", file): file for file in listing.images}  # macOS writes names decomposed
    rows = read_table(_table_file(listing.place, name), columns)
    rows = [row._replace(file=by_form.get(unicodedata.normalize("NFC", row.file), row.file)) for row in rows]
    present = set(listing.images)
    listed = {row.file for row in rows}
    if not listed & present:
        raise DataError(f"{listing.root / name}: none of the files it lists is there (the first is {rows[0].file})")
    notes = []
    if absent := len(listed - present):
        notes.append(f"{absent} files listed in {name} are missing; they go to the reject list")
    if unlisted := len(present - listed):
        notes.append(f"{unlisted} images are not listed in {name} and are not used")
    if listing.folders and rows[0].label is None:
        notes.append(f"unlabelled: {name} has no label column, and beside a table folders are not classes")
    return sorted(rows, key=lambda row: row.file), tuple(notes)


def _find_table(listing: Listing, asked: str | None) -> str | None:
    if asked is not None:
        here = listing.place.size(asked) >= 0
        if asked not in listing.tables and (here or Path(asked).is_file()):
            return asked if here else str(Path(asked).resolve())
        return find_column(listing.tables, asked, (), f"{listing.root} (tables)")
    usual = [name for name in listing.tables if Path(name).stem.lower() == "metadata"]
    usual = usual or [
        name for name in listing.tables if lists_files(listing.place.text(name))
    ]  # else: not about images
    usual = [name for name in usual if not only_synthetic(listing.place.text(name))]
    if len(usual) > 1:
        raise DataError(f"{listing.root}: several tables ({', '.join(usual)}); name one by data.table")
    return usual[0] if usual else None


def _table_file(place: Place, name: str) -> TextFile:
    """A table of the place itself, or one elsewhere."""
    return place.text(name) if place.size(name) >= 0 else Path(name)


def _synthetic(
    listing: Listing, asked: str | None, column: str | None
) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """The synthetic captions of the table asked for, or of all that hold nothing else, by file; and notes."""
    tables: list[TextFile]
    if asked is not None:
        tables = [_table_file(listing.place, asked)]
    else:
        tables, column = [table for name in listing.tables if only_synthetic(table := listing.place.text(name))], None
        if not listing.root.is_dir() and (beside := synthetic_path(listing.root)).is_file():
            tables.append(beside)
    by_form = {unicodedata.normalize("NFC", file): file for file in listing.images}
    found: dict[str, tuple[str, ...]] = {}
    lost = 0
    for table in tables:
        for file, texts in read_synthetic(table, column).items():
            key = by_form.get(unicodedata.normalize("NFC", file))
            lost += key is None
            if key is not None:
                found[key] = found.get(key, ()) + texts
    return found, ((f"{lost} synthetic captions are of images that are not there",) if lost else ())


def _side(name: str, listing: Listing) -> Path | None:
    return Path(name) if name in listing.texts else None


def _leftovers(listing: Listing, texts: list[Texts], no_table: bool) -> tuple[str, ...]:
    """Notes about what lies in the folder and is not used, and about missing captions."""
    notes = []
    if listing.others:
        notes.append(f"not read in {listing.root}: {count_kinds(listing.others)}")
    if listing.empty and no_table:
        more = ", ..." if len(listing.empty) > 5 else ""
        notes.append(f"folders without images: {', '.join(listing.empty[:5])}{more}")
    notes += caption_notes([(bool(t.original), bool(t.synthetic)) for t in texts])
    if lost := len(listing.texts - {path.as_posix() for pair in texts for path in pair if isinstance(path, Path)}):
        notes.append(f"{lost} .txt files are no image's caption")
    return tuple(notes)
