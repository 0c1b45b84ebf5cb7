"""The base of all image sources: an indexable set of pictures with labels and captions, cropped to one size."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import ClassVar

import numpy as np
from PIL import Image
from torch import Tensor

from ditkit.data.buckets import Buckets, BucketSettings, sort_shapes
from ditkit.data.mixing import CLASS, class_captions
from ditkit.data.order import philox_words
from ditkit.data.transforms import adm_crop, to_uint8
from ditkit.protocols import BadImage, Captions, Item

PROBES = 512  # pictures whose headers decide the default size
UNCAPTIONED = "it has no caption, and the model is trained with them"


class DataError(ValueError):
    """Data that cannot be used at all; one line: what, where, how to mend."""


class ImageSource:
    """A protocols.Source. A subclass says how many pictures there are and reads one; the rest is here.

    labels: (n,) int64 class ids, -1 for unlabelled data. notes: lines that a user should see (choices made for them,
    files not used). buckets: where images keep their aspect ratio, each one's size; else all have `size`. Sources
    pickle, and what they cache or keep open is per process.
    """

    template: str | None = None  # makes captions from class names for images without one
    captioned = False  # whether an image without a caption cannot be used
    buckets: Buckets | None = None

    made: ClassVar[bool] = False  # pictures are made on the fly, so that none can be unusable

    def __init__(self, labels: np.ndarray, classes: Sequence[str], channels: int, notes: Iterable[str] = ()):
        self.labels, self.classes, self.channels = labels, tuple(classes), channels
        self.notes = tuple(notes)
        self.size: tuple[int, int] = (0, 0)
        self._kept: dict[int, Item | BadImage] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def picture(self, index: int) -> Image.Image:
        """The decoded picture as stored, upright, mode RGB or L. BadImage if it cannot be read."""
        raise TypeError(f"{type(self).__name__} does not say how to read a picture")

    def shape(self, index: int) -> tuple[int, int]:
        """(H, W) as stored; sources that can read it without decoding do."""
        picture = self.picture(index)
        return picture.height, picture.width

    def name(self, index: int) -> str:
        """The path (or a name) under which picture `index` is reported."""
        return str(index)

    def key(self, index: int) -> str:
        """What tables call picture `index`: its path below the folder, or FILE.parquet#ROW."""
        return self.name(index)

    def caption(self, index: int) -> str:
        """The caption, or an empty string."""
        return ""

    def captions(self, index: int) -> Captions:
        """All captions as stored; a subclass whose images have one at most says only `caption`."""
        text = self.caption(index)
        return Captions((text,) if text else ())

    def content(self) -> Iterable[str]:
        """Lines that identify the stored data, independent of where they are stored: the fingerprint's input."""
        return (f"{self.name(i)} {self.labels[i]} {self.caption(i)}" for i in range(len(self)))

    def identity(self) -> Iterable[str]:
        """Lines that tell the stored pictures from others, whatever is said of them: what an index file is held to."""
        return self.content()

    def column(self, name: str) -> list:
        """Every image's value in a column of the source's table, such as a score. DataError where there is none."""
        raise DataError(f"{self.name(0)}: column {name!r} is asked for, but these images come with no table")

    def probes(self) -> Iterable[int]:
        """Indices of the pictures whose sizes decide the default size."""
        return np.unique(np.linspace(0, len(self) - 1, min(PROBES, len(self))).astype(int)).tolist()

    def choose_size(self, size: tuple[int, int] | None, multiple: int | None) -> None:
        """Fix `size`: the given one, else from the data (`suggest_size`), with a note that says how."""
        if size is None:
            shapes: Counter[tuple[int, int]] = Counter()
            for index in self.probes():
                try:
                    shapes[self.shape(index)] += 1
                except BadImage:  # listed when training or `scan` meets it
                    continue
            if not shapes:
                raise DataError(f"{self.name(0)}: none of the images looked at can be read; run a scan for the reasons")
            size, note = suggest_size(shapes, multiple)
            self.notes += (note,)
        self.size = size

    def caption_classes(self, template: str) -> None:
        """Give images without a caption of their own those that `class_captions` makes of their class.

        DataError where the template asks for a class and the images have none.
        """
        if CLASS in template and not self.classes:
            raise DataError(
                f"caption {template!r} is made from class names, but the images have no classes; "
                "use class folders or a label column, or a caption without {class}"
            )
        self.template = template
        example = class_captions(template, self.classes[0] if self.classes else None).first
        self.notes += (f"images without a caption of their own get one such as {example!r}",)

    def require_captions(self) -> None:
        """From now on an image without a caption cannot be used. DataError if none of those looked at has one."""
        self.captioned = True
        indices = list(self.probes())
        for index in indices:
            try:
                if any(self.all_captions(index)):
                    return
            except (ValueError, OSError):  # listed when training meets it
                continue
        raise DataError(
            f"{self.name(0)}: none of the {len(indices)} images looked at has a caption, which this model is trained "
            f"with; {self.caption_ways()}, or make it from class names with data.caption='a photo of a {{class}}'"
        )

    def caption_ways(self) -> str:
        """Where captions are looked for, as advice."""
        return "put it into NAME.txt beside NAME.jpg, into a text column"

    def sort_into_buckets(self, settings: BucketSettings, fewest: int = 1) -> None:
        """Give each image the bucket nearest in aspect ratio; a bucket with fewer than `fewest` joins its neighbour.

        Reads the size of every image. Those whose size cannot be read are in no bucket; `buckets.bad` lists them.
        """
        with ThreadPoolExecutor(8) as pool:
            seen = list(pool.map(self._shape_or_bad, range(len(self))))
        bad = tuple((found.path, found.reason) for found in seen if isinstance(found, BadImage))
        if len(bad) == len(seen):
            raise DataError(f"none of the {len(seen)} images can be read; {bad[0][0]}: {bad[0][1]}")
        shapes = np.array([(0, 0) if isinstance(found, BadImage) else found for found in seen])
        self.buckets, notes = sort_shapes(shapes, settings, fewest)
        self.buckets = self.buckets._replace(bad=bad)
        self.size = (settings.side, settings.side)
        self.notes += notes + _unopened(bad)

    def _shape_or_bad(self, index: int) -> tuple[int, int] | BadImage:
        try:
            return self.shape(index)
        except BadImage as bad:
            return bad

    def size_of(self, index: int) -> tuple[int, int]:
        """(H, W) of image `index` as it is handed out."""
        if self.buckets is None or self.buckets.of[index] < 0:
            return self.size
        return self.buckets.sizes[self.buckets.of[index]]

    def all_captions(self, index: int) -> Captions:
        """Those stored, the original ones made from the class where there are none and a template is set."""
        found = self.captions(index)
        if found.original or self.template is None:
            return found
        label = int(self.labels[index])
        made = class_captions(self.template, self.classes[label] if 0 <= label < len(self.classes) else None)
        return made._replace(synthetic=found.synthetic)

    def keep_in_memory(self, limit: int | None = None) -> None:
        """Decode each picture once per process and keep the result, if all fit in `limit` bytes (None: always)."""
        if limit is None or len(self) * self.channels * self.size[0] * self.size[1] <= limit:
            self._kept = {}

    def __getitem__(self, index: int) -> Item:
        """The example: image (C, H, W) uint8, label, caption, path. BadImage if the picture cannot be used."""
        index = range(len(self))[index]  # negative indices; IndexError outside
        if self._kept is None:
            return self.read(index)
        if index not in self._kept:
            try:
                self._kept[index] = self.read(index)
            except BadImage as bad:
                self._kept[index] = bad
        kept = self._kept[index]
        if isinstance(kept, BadImage):
            raise BadImage(kept.path, kept.reason)
        return kept

    def image(self, index: int, size: tuple[int, int]) -> Tensor:
        """The picture cut to `size` (H, W), uint8 (C, H, W). BadImage, ValueError or OSError if it cannot be had."""
        return to_uint8(adm_crop(self.picture(index), size), self.channels)

    def read(self, index: int) -> Item:
        """The example, read anew whatever is kept in memory; BadImage if it cannot be used."""
        name = self.name(index)
        try:
            image = self.image(index, self.size_of(index))
            captions = self.all_captions(index)
            if self.captioned and not any(captions):
                raise ValueError(UNCAPTIONED)
        except (ValueError, OSError, MemoryError) as error:
            raise error if isinstance(error, BadImage) else BadImage(name, str(error)) from error
        return Item(image, int(self.labels[index]), captions.first, name, captions)

    @cached_property
    def fingerprint(self) -> str:
        """Short stable hash of the stored data, the size and the channels; the same wherever the data lie."""
        digest = hashlib.sha256(f"{self.size} {self.channels} {self.classes}".encode())
        for line in itertools.chain(self.content(), self._choices()):
            digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
        return digest.hexdigest()[:16]

    def _choices(self) -> Iterable[str]:
        """What else decides the samples: captions from classes, buckets. Nothing where neither is chosen."""
        if self.template is not None:
            yield f"caption {self.template}"
        if self.captioned:
            yield "captioned"
        if self.buckets is not None:
            yield f"buckets {self.buckets.sizes} {self.buckets.of.tolist()}"

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_kept": None if self._kept is None else {}}


def _unopened(bad: Sequence) -> tuple[str, ...]:
    more = "they go to the reject list, as do images whose captions cannot be used, when they are met"
    return (f"images that cannot be opened: {len(bad)}; {more}",) if bad else ()


class Subset(ImageSource):
    """The pictures `rows` of another source, in that order."""

    def __init__(self, source: ImageSource, rows: np.ndarray):
        super().__init__(source.labels[rows], source.classes, source.channels, source.notes)
        self.size, self.source, self.rows = source.size, source, rows

    def image(self, index: int, size: tuple[int, int]) -> Tensor:
        return self.source.image(int(self.rows[index]), size)

    def picture(self, index: int) -> Image.Image:
        return self.source.picture(int(self.rows[index]))

    def shape(self, index: int) -> tuple[int, int]:
        return self.source.shape(int(self.rows[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.rows[index]))

    def key(self, index: int) -> str:
        return self.source.key(int(self.rows[index]))

    def caption(self, index: int) -> str:
        return self.source.caption(int(self.rows[index]))

    def captions(self, index: int) -> Captions:
        return self.source.captions(int(self.rows[index]))

    def caption_ways(self) -> str:
        return self.source.caption_ways()

    def content(self) -> Iterable[str]:
        return (self.source.fingerprint, *(str(row) for row in self.rows))

    def identity(self) -> Iterable[str]:
        return (*self.source.identity(), str(self.rows.tolist()))

    def column(self, name: str) -> list:
        values = self.source.column(name)
        return [values[row] for row in self.rows]


def suggest_size(
    shapes: Counter[tuple[int, int]], multiple: int | None = None, largest: int = 256
) -> tuple[tuple[int, int], str]:
    """((H, W), note): a training size for pictures with these (H, W) counts.

    The common size if all share it, else a square of the short side that at least half have, or else of the median one;
    a square of `largest` where that is smaller; then rounded down to `multiple` (None: 2 below 64 pixels, else 16, an
    8x codec with patch 2).
    """
    (height, width), same = shapes.most_common(1)[0]
    seen = f"all of {same} pictures looked at are {height}x{width}"
    if len(shapes) > 1:
        sides: Counter[int] = Counter()
        for (h, w), count in shapes.items():
            sides[min(h, w)] += count
        height, same = max(sides.items(), key=lambda item: (item[1], item[0]))
        seen = f"the short side of {same} of {sides.total()} pictures looked at is {height}"
        if 2 * same < sides.total():
            height = sorted(sides.elements())[(sides.total() - 1) // 2]
            seen = (
                f"{sides.total()} pictures looked at have short sides of {min(sides)} to {max(sides)}, median {height}"
            )
        width = height
    how = ""
    if min(height, width) > largest:
        height = width = largest
        how = f", shrunk to a square of {largest}"
    multiple = multiple or (2 if min(height, width) < 64 else 16)
    chosen = (_round_down(height, multiple), _round_down(width, multiple))
    if chosen != (height, width):
        how += f", rounded to multiples of {multiple}"
    return chosen, f"size {chosen[0]}x{chosen[1]} (height x width): {seen}{how}; choose another with --size"


def _round_down(side: int, multiple: int) -> int:
    return max(multiple, side // multiple * multiple)


def stratified_split(labels: np.ndarray, part: str) -> np.ndarray:
    """Rows of the fixed "train" (four fifths) or "test" (one fifth, rounded up) part, ascending; "all" is all rows.

    Each class gives its share, the largest remainders one more. Depends on the labels and nothing else.
    """
    n = len(labels)
    if part == "all":
        return np.arange(n)
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    total = -(-n // 5)
    share = counts * total / n
    take = np.floor(share).astype(int)
    take[np.argsort(take - share, kind="stable")[: total - take.sum()]] += 1
    ranks = np.argsort(philox_words("split", 0, 0, n)[:, 0], kind="stable")  # a fixed shuffle of all rows
    test = np.concatenate([ranks[inverse[ranks] == c][: take[c]] for c in range(len(counts))])
    chosen = np.zeros(n, dtype=bool)
    chosen[test] = True
    return np.flatnonzero(chosen if part == "test" else ~chosen)
