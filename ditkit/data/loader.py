"""Batches for training: deterministic, endless, cut by rank, decoded ahead by worker processes where asked."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ditkit.data.batch import Bad, Batch, first_usable, none_usable
from ditkit.data.buckets import Buckets
from ditkit.data.cache import Cache
from ditkit.data.cache_batches import Asked, CachedReader, in_threads
from ditkit.data.lent import Lent
from ditkit.data.mixing import draw_captions
from ditkit.data.order import BucketOrder, Order, flips
from ditkit.data.rejects import Rejects
from ditkit.data.source import DataError
from ditkit.protocols import Item, Source

__all__ = ["Asked", "Batch", "Loader", "read_ahead"]


@dataclass
class Loader:
    """Yields Batch for step start_step, start_step + 1, ... for ever; the same whatever `workers` is.

    batch: global size; rank r of `world` gets rows [r batch / world, (r + 1) batch / world). flip: mirror each sample
    with probability 1/2, drawn from (seed, position). synthetic_share: how often an image with original and synthetic
    captions shows one of the latter; which of several is drawn from (seed, position) too. Images that the source has
    sorted into buckets come in batches of one bucket each (BucketOrder).
    asked: of a cache, what its batches bring along; it is read by threads, one at least, decoding needs processes.
    rejects: JSONL file that lists unusable images; without it they are only logged and kept in `rejected`. An unusable
    image is replaced by the next usable one of the data set or bucket (same class, mostly), so the run goes on and
    stays reproducible. DataError when no image can be used.
    """

    source: Source
    batch: int
    seed: int
    start_step: int = field(default=0, kw_only=True)
    rank: int = field(default=0, kw_only=True)
    world: int = field(default=1, kw_only=True)
    workers: int = field(default=0, kw_only=True)
    flip: bool = field(default=False, kw_only=True)
    synthetic_share: float = field(default=0.5, kw_only=True)
    asked: Asked = field(default=Asked(), kw_only=True)
    rejects: str | os.PathLike | None = field(default=None, kw_only=True)

    def __post_init__(self):
        if self.batch < 1 or self.batch % self.world or not 0 <= self.rank < self.world:
            raise DataError(
                f"batch {self.batch} cannot be cut for rank {self.rank} of {self.world}: "
                "the global batch must be a multiple of the number of processes"
            )
        if not len(self.source):
            raise DataError("the source holds no images")
        if self.flip and isinstance(self.source, Cache):
            self.source.require_mirrored()
        self._rejects = Rejects(self.rejects)

    @property
    def rejected(self) -> dict[str, str]:
        """Unusable images met so far by this rank: path -> reason."""
        return self._rejects.reasons

    def __iter__(self) -> Iterator[Batch]:
        if isinstance(self.source, Cache):
            yield from self._of_cache(self.source)
            return
        reader = _Reader(self)
        for path, reason in reader.unsorted:
            self._rejects.add(path, reason)
        for shares, bad, error in read_ahead(reader, itertools.count(self.start_step), self.workers, reader.room):
            for path, reason in bad:
                self._rejects.add(path, reason)
            if error:
                raise DataError(error)
            images, labels, captions, indices, positions = shares
            yield Batch(
                torch.from_numpy(images), torch.from_numpy(labels), captions, torch.from_numpy(indices), positions
            )

    def _of_cache(self, cache: Cache) -> Iterator[Batch]:
        place = self.rank, self.world
        reader = CachedReader(
            cache, self.batch, self.seed, place, self.asked, self.flip, self.synthetic_share
        )  # fmt: skip
        for batch, bad in in_threads(reader, itertools.count(self.start_step), max(1, self.workers)):
            for path, reason in bad:
                self._rejects.add(path, reason)
            if batch is None:
                raise DataError(none_usable(dict(enumerate(bad)), len(self.source)))
            yield batch


def read_ahead(reader: Dataset, steps: Iterable, workers: int, room: int = 0) -> Iterator:
    """reader[step] for each of the steps, in order; `workers` processes read ahead, 0: this one reads when asked.

    room: bytes of the arrays of one result, which then come back through shared memory (Lent); 0: through a pipe.
    """
    if not workers:
        yield from map(reader.__getitem__, steps)
    else:  # own generator: DataLoader otherwise draws from torch's global state
        lent = Lent(reader, workers, room)
        yield from map(
            lent.take,
            DataLoader(
                lent,
                batch_size=None,
                sampler=steps,
                num_workers=workers,
                collate_fn=_same,
                worker_init_fn=_quiet_worker,
                generator=torch.Generator(),
            ),
        )


class _Reader(Dataset):
    """step -> (arrays of one rank's batch, unusable images met, error or None); what runs in worker processes.

    Arrays, not tensors: these would need /dev/shm, of which containers have little.
    Errors travel as values, so that they keep to one line.
    """

    def __init__(self, loader: Loader):
        self.source, self.seed, self.batch = loader.source, loader.seed, loader.batch
        self.flip, self.share = loader.flip, loader.synthetic_share
        self.rows = loader.batch // loader.world
        self.first = loader.rank * self.rows
        self.room = _room(self.source, self.rows)
        buckets: Buckets | None = getattr(self.source, "buckets", None)  # a source of images of one size needs none
        self.order = BucketOrder(buckets.of, self.batch, self.seed) if buckets else Order(len(self.source), self.seed)
        self.unsorted = buckets.bad if buckets else ()
        self.bad: Bad = {}

    def __getitem__(self, step: int):
        start = step * self.batch + self.first
        positions = range(start, start + self.rows)
        met: Bad = {}
        items, used = [], []
        for index in self.order.indices(start, positions.stop).tolist():
            found = first_usable(self.order.candidates(index), self.bad, met, self._read)
            if found is None:
                return None, list(met.values()), none_usable(met, len(self.source))
            items.append(found[0])
            used.append(found[1])
        images = np.stack([item.image.numpy() for item in items])
        if self.flip:
            mirrored = flips(self.seed, start, positions.stop)
            images[mirrored] = images[mirrored][..., ::-1]
        labels = np.array([item.label for item in items], dtype=np.int64)
        captions = draw_captions(items, self.seed, start, self.share)
        return (images, labels, captions, np.array(used, dtype=np.int64), positions), list(met.values()), None

    def _read(self, index: int) -> Item:
        return self.source[index]


def _room(source: Source, rows: int) -> int:
    """Bytes that hold the arrays of a batch, twice over: pairs have two images an item. Only what is used is taken."""
    buckets: Buckets | None = getattr(source, "buckets", None)
    areas = [height * width for height, width in (buckets.sizes if buckets else (source.size,))]
    return 2 * rows * (source.channels * max(areas) + 64)


def _same(share):
    return share


def _quiet_worker(worker: int) -> None:
    """Ctrl-C is the main process's to handle; a handler for SIGTERM inherited from it must not keep us alive."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
