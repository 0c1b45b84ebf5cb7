"""Data sets of the `datasets` package: saved to a folder, as arrow files, or by their id on the Hugging Face hub."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ditkit.data.captions import SYNTHETIC, USUAL, Columns, caption_notes, find_column, read_synthetic, texts_of
from ditkit.data.parquet import IMAGE_NAMES, labels_of
from ditkit.data.pictures import decode, one_line, read_bytes, shape_of
from ditkit.data.source import DataError, ImageSource
from ditkit.protocols import BadImage, Captions

PREFIX = "hub:"
SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk leaves in a folder
PART = re.compile(r"(.+)-\d{5}-of-\d{5}(-\w+)?")  # names of a snapshot's parquet files: SPLIT-00000-of-00002


class Hub(ImageSource):
    """Rows of one part (the hub's "split") of a data set: what save_to_disk wrote, a folder of .arrow files, or hub:ID.

    hub:ID or hub:ID:CONFIG is read by the `datasets` package, which downloads it once and keeps it. part: its name;
    None: "train", or the only one. The image column is the one of kind Image, or of bytes; labels are named by
    ClassLabel; captions and synthetic_table are as for Parquet, whose rows are called PART#ROW. Files are mapped into
    memory and shared by processes. size, channels, columns: as for Folder. Needs datasets (`pip install
    'ditkit[data]'`).
    """

    def __init__(
        self,
        spec: str,
        size: int | tuple[int, int] | None = None,
        channels: int = 3,
        *,
        part: str | None = None,
        image_column: str | None = None,
        columns: Columns = USUAL,
        synthetic_table: str | None = None,
        multiple: int | None = None,
    ):
        stored, self.part = _choose(_open(spec), part, spec)
        self.spec, names = spec, list(stored.column_names)
        if not len(stored):
            raise DataError(f"{spec}: no rows in its part {self.part!r}")
        kinds = {name: type(feature).__name__ for name, feature in stored.features.items()}
        self.image_column = _image_column(stored.features, kinds, image_column, spec)
        self.stored = stored
        self._images = stored.select_columns([self.image_column])
        if kinds[self.image_column] == "Image":
            self._images = self._images.cast_column(self.image_column, _datasets().Image(decode=False))
        named = [name for name in names if kinds[name] == "ClassLabel"]
        usual = ("label", "labels", *(named if len(named) == 1 else ()))
        label = find_column(names, columns.label, usual, spec)
        classes = getattr(stored.features[label], "names", None) if label else None
        values = self.column(label) if label else []
        ids = labels_of(values, len(stored), classes, f"{spec}, column {label!r}")
        text = find_column(names, columns.text, ("text", "caption"), spec)
        made = None if synthetic_table else find_column(names, columns.synthetic, (SYNTHETIC,), spec)
        self._texts = (self._read_texts(text), self._read_texts(made) or self._beside(synthetic_table, columns))
        has = [[bool(texts) for texts in kind] if kind else [False] * len(stored) for kind in self._texts]
        notes = caption_notes(list(zip(*has, strict=True)))
        if label is None:
            notes += (f"unlabelled: no column 'label' in {spec} (found: {', '.join(names)}); name one by "
                      "data.label_column",)  # fmt: skip
        super().__init__(ids[1], ids[0], channels, notes)
        self.choose_size((size, size) if isinstance(size, int) else size, multiple)

    def picture(self, index: int) -> Image.Image:
        return decode(self._bytes(index), self.name(index))

    def shape(self, index: int) -> tuple[int, int]:
        return shape_of(io.BytesIO(self._bytes(index)), self.name(index))

    def name(self, index: int) -> str:
        return f"{self.spec}/{self.key(index)}"

    def key(self, index: int) -> str:
        """PART#ROW."""
        return f"{self.part}#{index}"

    def captions(self, index: int) -> Captions:
        own, made = (texts[index] if texts else () for texts in self._texts)
        return Captions(own, made)

    def caption(self, index: int) -> str:
        return self.captions(index).first

    def caption_ways(self) -> str:
        return f"name its column by data.text_column (found: {', '.join(self.stored.column_names)})"

    def column(self, name: str) -> list:
        """Every row's value in a column, as Python objects. DataError names the columns where there is no such one."""
        find_column(self.stored.column_names, name, (), self.spec)
        return list(self.stored.select_columns([name])[:][name])

    def identity(self) -> Iterable[str]:
        """The part and the bytes in each image, from the table's offsets; no image is read."""
        import pyarrow.compute as compute

        yield self.part
        for block in self._images.with_format("arrow").iter(1000):
            column = block.column(self.image_column).combine_chunks()
            data = compute.struct_field(column, "bytes") if str(column.type).startswith("struct") else column
            yield str(compute.binary_length(data).to_pylist())

    def content(self) -> Iterable[str]:
        """The identity, labels and captions."""
        yield from self.identity()
        yield f"{self.image_column} {self.labels.tolist()} {self._texts}"

    def _bytes(self, index: int) -> bytes:
        try:
            value: Any = self._images[index][self.image_column]
        except Exception as error:  # pyarrow and datasets raise their own kinds
            raise BadImage(self.name(index), f"cannot be read: {one_line(error)}") from error
        if isinstance(value, dict):
            value = read_bytes(value["path"]) if value["bytes"] is None and value["path"] else value["bytes"]
        if value is None:
            raise BadImage(self.name(index), "the row holds no image bytes")
        return value

    def _read_texts(self, name: str | None) -> list[tuple[str, ...]] | None:
        if name is None:
            return None
        where = f"{self.spec}, column {name!r}"
        return [texts_of(value, f"{where}, row {row}") for row, value in enumerate(self.column(name))]

    def _beside(self, table: str | None, columns: Columns) -> list[tuple[str, ...]] | None:
        if table is None:
            return None
        found = read_synthetic(Path(table), columns.synthetic)
        return [found.get(f"{self.part}#{row}", ()) for row in range(len(self.stored))]


def is_saved(path: Path) -> bool:
    """Whether save_to_disk wrote this folder, or it holds .arrow files."""
    return path.is_dir() and (any((path / name).is_file() for name in SAVED) or any(path.glob("*.arrow")))


def snapshot_files(path: Path, part: str | None) -> list[Path]:
    """The .parquet files of one part of a snapshot of a hub's repository: data/train-00000-of-00002.parquet.

    None of them: an empty list. DataError where several parts are there and none of them is meant.
    """
    files = sorted(path.glob("data/*.parquet"))
    parts: dict[str, list[Path]] = {}
    for file in files:
        named = PART.fullmatch(file.stem)
        parts.setdefault(named[1] if named else "train", []).append(file)
    return parts[_which(parts, part, str(path))] if parts else []


def _open(spec: str):
    """A Dataset, or a DatasetDict of them. DataError, one line, where it cannot be had."""
    datasets = _datasets()
    try:
        if not spec.startswith(PREFIX):
            return _from_disk(datasets, Path(spec))
        name, _, config = spec.removeprefix(PREFIX).partition(":")
        return datasets.load_dataset(str(Path(name).expanduser()) if name.startswith("~") else name, config or None)
    except DataError:
        raise
    except Exception as error:  # hub, arrow and datasets each raise their own kinds
        advice = "" if not spec.startswith(PREFIX) else "; without a network give a folder that save_to_disk wrote"
        raise DataError(f"data {spec!r}: cannot be had ({one_line(error)[:300]}){advice}") from error


def _from_disk(datasets, path: Path):
    if any((path / name).is_file() for name in SAVED):
        return datasets.load_from_disk(str(path))
    parts: dict[str, list] = {}
    for file in sorted(path.glob("*.arrow")):  # as load_dataset keeps them: NAME-train-00000-of-00002.arrow
        named = PART.fullmatch(file.stem)
        part = (named[1] if named else file.stem).rpartition("-")[2]
        parts.setdefault(part, []).append(datasets.Dataset.from_file(str(file)))
    return {part: datasets.concatenate_datasets(pieces) for part, pieces in parts.items()}


def _choose(found, part: str | None, spec: str):
    """(data set, the name of its part)."""
    if not isinstance(found, dict):  # one part, whose name it may know
        name = str(found.split or "train")
        return found, _which([name], part, spec)
    which = _which(list(found), part, spec)
    return found[which], which


def _which(parts: Iterable[str], asked: str | None, where: str) -> str:
    there: Sequence[str] = list(parts)
    if asked is not None:
        return find_column(there, asked, (), f"{where} (parts)") or asked
    if len(there) == 1 or "train" in there:
        return "train" if "train" in there else there[0]
    raise DataError(f"{where}: several parts ({', '.join(there)}); name one by data.part")


def _image_column(features, kinds: dict[str, str], asked: str | None, where: str) -> str:
    """The column asked for; else the only one of images or bytes, or the one of a usual name."""
    if asked is not None:
        find_column(list(kinds), asked, (), where)
    dtypes = {name: str(getattr(features[name], "dtype", "")) for name in kinds if asked in (None, name)}
    found = [name for name, dtype in dtypes.items() if kinds[name] == "Image" or "binary" in dtype]
    pictures = [name for name in found if kinds[name] == "Image"]
    for some in (pictures, found):
        if len(some) == 1:
            return some[0]
    usual = [name for name in IMAGE_NAMES if name in found]
    if usual:
        return usual[0]
    said = ", ".join(f"{name}: {kind}" for name, kind in kinds.items())
    several = "several columns" if found else "no column"
    raise DataError(f"{where}: {several} of images ({said}); name one by data.image_column")


def _datasets():
    try:
        import datasets
    except ImportError as error:
        raise DataError("hub data sets need datasets: pip install 'ditkit[data]'") from error
    return datasets
