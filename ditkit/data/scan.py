"""A look at every image of a source before a run: what is there, how large, what cannot be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from ditkit.data.source import PROBES, ImageSource, Subset
from ditkit.protocols import BadImage

BLOCK = 256  # images handed to the threads at a time


@dataclass
class Scan:
    """What `scan` found.

    usable: images that can be read and cropped. sizes: (H, W) as stored -> count; classes: name -> usable images;
    rejects: path -> reason; captions: usable images that have one; notes: the source's own.
    """

    images: int = 0
    usable: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    classes: dict[str, int] = field(default_factory=dict)
    rejects: dict[str, str] = field(default_factory=dict)
    captions: int = 0
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The findings for a person, one a line."""
        found = [f"{self.images} images, {self.usable} usable, {self.captions} with a caption"]
        if self.sizes:
            common = ", ".join(f"{h}x{w} ({count})" for (h, w), count in self.sizes.most_common(5))
            found.append(f"{len(self.sizes)} sizes (height x width): {common}{', ...' if len(self.sizes) > 5 else ''}")
        if self.classes:
            least, most = min(self.classes.items(), key=_count), max(self.classes.items(), key=_count)
            found.append(f"{len(self.classes)} classes: from {least[1]} ({least[0]}) to {most[1]} ({most[0]}) images")
            found += [f"class {name!r} has no usable image" for name, count in self.classes.items() if not count]
        found += self.notes
        return found + [f"unusable: {path}: {reason}" for path, reason in self.rejects.items()]


def scan(source: ImageSource, progress: Callable[[int, int], None] | None = None, threads: int = 4) -> Scan:
    """Decode every image of `source` once. progress(done, total) is called now and then. Raises for no image.

    Of pictures that are made on the fly (`source.made`) the first PROBES are looked at, and speak for all.
    """
    if source.made and len(source) > PROBES:
        found = scan(Subset(source, np.arange(PROBES)), progress, threads)
        return replace(
            found, images=len(source), usable=len(source), captions=len(source) if found.captions == PROBES else 0,
            notes=(*found.notes, f"made on the fly: {PROBES} of {len(source):,} pictures were looked at"),
        )  # fmt: skip
    found = Scan(images=len(source), classes=dict.fromkeys(source.classes, 0), notes=source.notes)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(source), BLOCK):
            rows = range(start, min(start + BLOCK, len(source)))
            for seen in pool.map(partial(_look, source), rows):
                if isinstance(seen, BadImage):
                    found.rejects.setdefault(seen.path, seen.reason)
                    continue
                shape, label, caption = seen
                found.usable += 1
                found.sizes[shape] += 1
                found.captions += bool(caption)
                if label >= 0 and source.classes:
                    found.classes[source.classes[label]] += 1
            if progress is not None:
                progress(rows.stop, len(source))
    return found


def _look(source: ImageSource, index: int):
    try:
        item = source.read(index)
        return source.shape(index), item.label, item.caption
    except BadImage as bad:
        return bad


def _count(item: tuple[str, int]) -> int:
    return item[1]
