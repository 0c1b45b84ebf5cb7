"""One door to all sources: from settings, or from the word a user typed."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from ditkit.data.cache import is_cache, open_cache
from ditkit.data.captions import Columns
from ditkit.data.digits import Digits
from ditkit.data.folder import Folder
from ditkit.data.hub import PREFIX, Hub, is_saved, snapshot_files
from ditkit.data.index import chosen
from ditkit.data.pairs import Pairs
from ditkit.data.parquet import Parquet
from ditkit.data.pictures import ENDINGS
from ditkit.data.scenes import Scenes
from ditkit.data.settings import DataSettings
from ditkit.data.source import DataError, ImageSource, Subset, stratified_split
from ditkit.data.tar import Tar
from ditkit.data.transforms import LARGEST_RESIZE

NAMED = ("digits", "scenes")
PLACEHOLDERS = (
    "images",
    "imagenet/train",
    "coco/train2014",
    "pairs.parquet",
)  # recipes: where the user's images belong
GIVE = "give 'digits', a folder of images, a .zip, .tar or .parquet file, hub:ID, or 'scenes'"
PACKED = (".gz", ".tgz", ".7z", ".bz2", ".xz", ".zst", ".rar")
CACHE_LIMIT = 256 * 2**20  # bytes of decoded images kept in RAM unless the settings say otherwise


def open_source(
    spec: str | os.PathLike | DataSettings, *, multiple: int | None = None, captioned: bool = False, batch: int = 1
) -> ImageSource:
    """The source that `spec` names: "digits", a folder of images, .zip, .tar, .parquet, hub:ID, or settings.

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
        if settings.index is not None:
            raise DataError("data 'scenes': its pictures are made when they are read; there is no index of them")
        return Scenes(settings.split, settings.shape() or 32, settings.channels or 3)
    if settings.source == "digits":
        digits = Digits("all" if settings.index else settings.split, settings.shape() or 8, settings.channels or 1)
        return digits if settings.index is None else _part(digits, settings)
    if is_cache(Path(settings.source).expanduser()):
        return open_cache(Path(settings.source).expanduser(), settings)
    return _part(_open_stored(settings, multiple), settings)


def _open_stored(settings: DataSettings, multiple: int | None) -> ImageSource:
    """The source of pictures that somebody has: which kind, by the path's form."""
    path = Path(settings.source).expanduser()
    size, channels = settings.shape(), settings.channels or 3
    columns = Columns(settings.label_column, settings.text_column, settings.synthetic_column)
    from_hub = settings.source.startswith(PREFIX)
    if settings.part is not None and not (from_hub or path.is_dir()):
        raise DataError(f"data.part={settings.part} is for data sets of a hub; {settings.source!r} has no such parts")
    if settings.pairs is None and (from_hub or is_saved(path)):
        return Hub(
            settings.source if from_hub else str(path), size, channels, part=settings.part,
            image_column=settings.image_column, columns=columns, synthetic_table=settings.synthetic_table,
            multiple=multiple,
        )  # fmt: skip
    if not path.exists() and not (path.suffix.lower() == ".tar" and "{" in path.name):
        raise DataError(f"data {settings.source!r}: no such file or folder; {_hint(settings.source)}")
    if settings.pairs is not None:
        return Pairs(
            path, size, channels, show=settings.pairs, text_column=settings.text_column, multiple=multiple
        )  # fmt: skip
    if path.suffix.lower() == ".tar" or (path.is_dir() and _holds_tars(path)):
        return Tar(
            path, size, channels, columns=columns, synthetic_table=settings.synthetic_table, multiple=multiple
        )  # fmt: skip
    files = snapshot_files(path, settings.part)
    if files or path.suffix.lower() == ".parquet" or (path.is_dir() and any(path.glob("*.parquet"))):
        return Parquet(
            files or path, size, channels, image_column=settings.image_column, columns=columns,
            synthetic_table=settings.synthetic_table, multiple=multiple,
        )  # fmt: skip
    if path.is_dir() or path.suffix.lower() == ".zip":
        return Folder(
            path, size, channels, table=settings.table, columns=columns, synthetic_table=settings.synthetic_table,
            multiple=multiple,
        )  # fmt: skip
    raise DataError(f"data {settings.source!r}: {_about(path)}; {GIVE}")


def _holds_tars(path: Path) -> bool:
    """Whether a folder is one of shards: .tar files, and neither images nor folders that might hold some."""
    seen = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    tars = any(entry.suffix.lower() == ".tar" for entry in seen)
    return tars and not any(entry.is_dir() or entry.suffix.lower() in ENDINGS for entry in seen)


def _hint(source: str) -> str:
    if source in PLACEHOLDERS:
        return f"this recipe leaves the images to you: --data, {GIVE}"
    near = get_close_matches(source, NAMED, 1)
    return f"did you mean {near[0]!r}?" if near else GIVE


def _part(source: ImageSource, settings: DataSettings) -> ImageSource:
    """The images that the index keeps, where there is one, and of those the part that `split` names."""
    if settings.index is not None:
        source = chosen(source, settings.index)
    return source if settings.split == "all" else Subset(source, stratified_split(source.labels, settings.split))


def _about(path: Path) -> str:
    ending = path.suffix.lower()
    if ending in ENDINGS:
        return "this is a single image"
    if ending in (".csv", ".jsonl"):
        pairs = ", or of pairs of images, which data.pairs=both reads" if ending == ".jsonl" else ""
        return f"this is a table: it lies in the folder of the images, or data.table names it{pairs}"
    if ending in PACKED:
        return "an archive that allows no random access: unpack it, or pack it anew as .zip or plain .tar"
    return "this is a file"
