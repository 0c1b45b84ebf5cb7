"""One door to all sources: from settings, or from the word a user typed."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from ditkit.data.captions import Columns
from ditkit.data.digits import Digits
from ditkit.data.folder import Folder
from ditkit.data.pairs import Pairs
from ditkit.data.parquet import Parquet
from ditkit.data.pictures import ENDINGS
from ditkit.data.scenes import Scenes
from ditkit.data.settings import DataSettings
from ditkit.data.source import DataError, ImageSource, Subset, stratified_split
from ditkit.data.transforms import LARGEST_RESIZE

NAMED = ("digits", "scenes")
PLACEHOLDERS = (
    "images",
    "imagenet/train",
    "coco/train2014",
    "pairs.parquet",
)  # recipes: where the user's images belong
GIVE = "give 'digits', a folder of images, a .parquet file, or 'scenes'"
CACHE_LIMIT = 256 * 2**20  # bytes of decoded images kept in RAM unless the settings say otherwise


def open_source(
    spec: str | os.PathLike | DataSettings, *, multiple: int | None = None, captioned: bool = False, batch: int = 1
) -> ImageSource:
    """The source that `spec` names: "digits", a folder of images, a .parquet file or a folder of them, or settings.

    multiple: what the sides of a size taken from the data are rounded down to (codec factor x patch); a size
    given in the settings is kept as it is. captioned: images without a caption cannot be used. batch: aspect-ratio
    buckets with fewer images join a neighbour. DataError, one line, for anything that cannot be used.
    """
    settings = spec if isinstance(spec, DataSettings) else DataSettings(source=str(spec))
    if (buckets := settings.buckets) is not None:
        if buckets.multiple % (multiple or 1):
            raise DataError(
                f"buckets.multiple {buckets.multiple} must be a multiple of {multiple}, which the model's patches and "
                "the codec cut into whole"
            )
        settings = settings.model_copy(update={"size": buckets.side})
    source = _open(settings, multiple)
    if settings.caption is not None:
        source.caption_classes(settings.caption)
    if captioned:
        source.require_captions()
    if buckets is not None:
        source.sort_into_buckets(buckets, batch)
    limit = {True: None, None: CACHE_LIMIT, False: 0}[settings.cache]
    source.keep_in_memory(limit)
    return source


def _open(settings: DataSettings, multiple: int | None) -> ImageSource:
    height, width = settings.shape() or (1, 1)
    if height * width > LARGEST_RESIZE:
        raise DataError(f"size {height}x{width} is out of reach: {LARGEST_RESIZE:,} pixels at most")
    if settings.pairs is not None and settings.source in NAMED:
        raise DataError(f"data {settings.source!r} holds no pairs of images: give a .parquet or .jsonl file of pairs")
    if settings.source == "scenes":
        if settings.flip:
            raise DataError("data 'scenes': the captions say left and right, which flip=true would swap; leave it out")
        return Scenes(settings.split, settings.shape() or 32, settings.channels or 3)
    if settings.source == "digits":
        return Digits(settings.split, settings.shape() or 8, settings.channels or 1)
    path = Path(settings.source).expanduser()
    if not path.exists():
        near = get_close_matches(settings.source, NAMED, 1)
        hint = f"did you mean {near[0]!r}?" if near else GIVE
        if settings.source in PLACEHOLDERS:
            hint = f"this recipe leaves the images to you: --data, {GIVE}"
        raise DataError(f"data {settings.source!r}: no such file or folder; {hint}")
    if settings.pairs is not None:
        source: ImageSource = Pairs(
            path,
            settings.shape(),
            settings.channels or 3,
            show=settings.pairs,
            text_column=settings.text_column,
            multiple=multiple,
        )
        return _part(source, settings)
    columns = Columns(settings.label_column, settings.text_column, settings.synthetic_column)
    if path.suffix.lower() == ".parquet" or (path.is_dir() and any(path.glob("*.parquet"))):
        source = Parquet(
            path,
            settings.shape(),
            settings.channels or 3,
            image_column=settings.image_column,
            columns=columns,
            synthetic_table=settings.synthetic_table,
            multiple=multiple,
        )
    elif path.is_dir():
        source = Folder(
            path,
            settings.shape(),
            settings.channels or 3,
            table=settings.table,
            columns=columns,
            synthetic_table=settings.synthetic_table,
            multiple=multiple,
        )
    else:
        raise DataError(f"data {settings.source!r}: {_about(path)}; {GIVE}")
    return _part(source, settings)


def _part(source: ImageSource, settings: DataSettings) -> ImageSource:
    return source if settings.split == "all" else Subset(source, stratified_split(source.labels, settings.split))


def _about(path: Path) -> str:
    ending = path.suffix.lower()
    if ending in ENDINGS:
        return "this is a single image"
    if ending in (".csv", ".jsonl"):
        pairs = ", or of pairs of images, which data.pairs=both reads" if ending == ".jsonl" else ""
        return f"this is a table: it lies in the folder of the images, or data.table names it{pairs}"
    return "an archive: unpack it first" if ending in (".zip", ".tar", ".gz", ".tgz", ".7z") else "this is a file"
