"""How fast the loader alone is: samples a second into nothing, with and without decoding, by number of workers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from ditkit.data.cache import Cache
from ditkit.data.loader import Loader
from ditkit.data.source import ImageSource
from ditkit.protocols import Item, Source


class Undecoded:
    """A source whose images are all its first one; labels stay. What is left is the work of order, stacking, travel."""

    def __init__(self, source: Source):
        self.classes, self.channels, self.size = source.classes, source.channels, source.size
        self.fingerprint = source.fingerprint
        self.first, self.count = source[0], len(source)
        self.labels = getattr(source, "labels", None)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Item:
        label = self.first.label if self.labels is None else int(self.labels[index])
        return self.first._replace(label=label)


class Anew:
    """A source that decodes an image every time it is asked for, whatever it keeps in memory."""

    def __init__(self, source: ImageSource):
        self.classes, self.channels, self.size = source.classes, source.channels, source.size
        self.fingerprint, self.source = source.fingerprint, source
        self.buckets = source.buckets

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Item:
        return self.source.read(index)


def loader_rates(
    source: Source, batch: int = 64, workers: Sequence[int] = (0, 1, 2), seconds: float = 2.0
) -> list[dict]:
    """What the loader hands out to a model that does nothing, for each number of `workers`, with and without decoding.

    Rows of {"decode", "workers", "batch", "samples", "seconds", "samples_per_s", "first_batch_s"}. Each is measured
    for about `seconds` after the first batches, which start the processes and fill their queues. With decode every
    image is read and decoded anew, whatever is kept in memory; without, all images are one that is at hand. A cache of
    latents has nothing to decode and is read as it is, `workers` being threads (0 is one).
    """
    rows = []
    cached = isinstance(source, Cache)
    for decode, count in itertools.product((False,) if cached else (True, False), workers):
        read: Source = source
        if cached:
            pass
        elif not decode:
            read = Undecoded(source)
        elif isinstance(source, ImageSource):
            read = Anew(source)
        rows.append({"decode": decode, "workers": count, "batch": batch, **_rate(read, batch, count, seconds)})
    return rows


def _rate(source: Source, batch: int, workers: int, seconds: float) -> dict:
    """Samples a second of one loader, after what its queues hold has been drawn."""
    batches = iter(Loader(source, batch, 0, workers=workers))
    begun = time.perf_counter()
    next(batches)
    first = time.perf_counter() - begun
    for _ in range(2 * workers):
        next(batches)
    samples, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds or not samples:
        next(batches)
        samples += batch
    batches.close()  # type: ignore[attr-defined]  # a generator: ends its processes
    return {"samples": samples, "seconds": passed, "samples_per_s": samples / passed, "first_batch_s": first}
