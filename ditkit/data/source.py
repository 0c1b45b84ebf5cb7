"""The base of all image sources: an indexable set of pictures with labels and captions, cropped to one size."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from PIL import Image

from ditkit.data.order import philox_words
from ditkit.data.transforms import adm_crop, to_uint8
from ditkit.protocols import BadImage, Item

PROBES = 512  # pictures whose headers decide the default size


class DataError(ValueError):
    """Data that cannot be used at all; one line: what, where, how to mend."""


class ImageSource:
    """A protocols.Source. A subclass says how many pictures there are and reads one; the rest is here.

    labels: (n,) int64 class ids, -1 for unlabelled data. notes: lines that a user should see (choices made for them,
    files not used). Sources pickle, and what they cache or keep open is per process.
    """

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

    def caption(self, index: int) -> str:
        """The caption, or an empty string."""
        return ""

    def content(self) -> Iterable[str]:
        """Lines that identify the stored data, independent of where they are stored: the fingerprint's input."""
        return (f"{self.name(i)} {self.labels[i]} {self.caption(i)}" for i in range(len(self)))

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

    def read(self, index: int) -> Item:
        """The example, read anew whatever is kept in memory; BadImage if it cannot be used."""
        name = self.name(index)
        try:
            image = to_uint8(adm_crop(self.picture(index), self.size), self.channels)
            caption = self.caption(index)
        except (ValueError, OSError, MemoryError) as error:
            raise error if isinstance(error, BadImage) else BadImage(name, str(error)) from error
        return Item(image, int(self.labels[index]), caption, name)

    @cached_property
    def fingerprint(self) -> str:
        """Short stable hash of the stored data, the size and the channels; the same wherever the data lie."""
        digest = hashlib.sha256(f"{self.size} {self.channels} {self.classes}".encode())
        for line in self.content():
            digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
        return digest.hexdigest()[:16]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_kept": None if self._kept is None else {}}


class Subset(ImageSource):
    """The pictures `rows` of another source, in that order."""

    def __init__(self, source: ImageSource, rows: np.ndarray):
        super().__init__(source.labels[rows], source.classes, source.channels, source.notes)
        self.size, self.source, self.rows = source.size, source, rows

    def picture(self, index: int) -> Image.Image:
        return self.source.picture(int(self.rows[index]))

    def shape(self, index: int) -> tuple[int, int]:
        return self.source.shape(int(self.rows[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.rows[index]))

    def caption(self, index: int) -> str:
        return self.source.caption(int(self.rows[index]))

    def content(self) -> Iterable[str]:
        return (self.source.fingerprint, *(str(row) for row in self.rows))


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
