"""Batches for training: deterministic, endless, cut by rank, decoded ahead by worker processes where asked."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ditkit.data.buckets import Buckets
from ditkit.data.mixing import draw_captions
from ditkit.data.order import BucketOrder, Order, flips
from ditkit.data.rejects import Rejects
from ditkit.data.source import DataError
from ditkit.protocols import BadImage, Item, Source


class Batch(NamedTuple):
    """One rank's share of a step: images uint8 (b, C, H, W), labels int64 (b,), captions, indices int64 (b,).

    positions: the global sample positions, which key every draw. indices: the images used; where the image at a
    position is unusable it is the one that took its place. (H, W) is the source's size, or the step's bucket.
    """

    images: Tensor
    labels: Tensor
    captions: tuple[str, ...]
    indices: Tensor
    positions: range


@dataclass
class Loader:
    """Yields Batch for step start_step, start_step + 1, ... for ever; the same whatever `workers` is.

    batch: global size; rank r of `world` gets rows [r batch / world, (r + 1) batch / world). flip: mirror each sample
    with probability 1/2, drawn from (seed, position). synthetic_share: how often an image with original and synthetic
    captions shows one of the latter; which of several is drawn from (seed, position) too. Images that the source has
    sorted into buckets come in batches of one bucket each (BucketOrder).
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
    rejects: str | os.PathLike | None = field(default=None, kw_only=True)

    def __post_init__(self):
        if self.batch < 1 or self.batch % self.world or not 0 <= self.rank < self.world:
            raise DataError(
                f"batch {self.batch} cannot be cut for rank {self.rank} of {self.world}: "
                "the global batch must be a multiple of the number of processes"
            )
        if not len(self.source):
            raise DataError("the source holds no images")
        self._rejects = Rejects(self.rejects)

    @property
    def rejected(self) -> dict[str, str]:
        """Unusable images met so far by this rank: path -> reason."""
        return self._rejects.reasons

    def __iter__(self) -> Iterator[Batch]:
        reader = _Reader(self)
        for path, reason in reader.unsorted:
            self._rejects.add(path, reason)
        for shares, bad, error in self._shares(reader):
            for path, reason in bad:
                self._rejects.add(path, reason)
            if error:
                raise DataError(error)
            images, labels, captions, indices, positions = shares
            yield Batch(
                torch.from_numpy(images), torch.from_numpy(labels), captions, torch.from_numpy(indices), positions
            )

    def _shares(self, reader: _Reader) -> Iterator:
        steps = itertools.count(self.start_step)
        if not self.workers:
            yield from map(reader.__getitem__, steps)
        else:  # own generator: DataLoader otherwise draws from torch's global state
            yield from DataLoader(
                reader,
                batch_size=None,
                sampler=steps,
                num_workers=self.workers,
                collate_fn=_same,
                worker_init_fn=_quiet_worker,
                generator=torch.Generator(),
            )


class _Reader(Dataset):
    """step -> (arrays of one rank's batch, unusable images met, error or None); what runs in worker processes.

    Arrays, not tensors: they travel through a pipe and need no shared memory, of which containers have little.
    Errors travel as values, so that they keep to one line.
    """

    def __init__(self, loader: Loader):
        self.source, self.seed, self.batch = loader.source, loader.seed, loader.batch
        self.flip, self.share = loader.flip, loader.synthetic_share
        self.rows = loader.batch // loader.world
        self.first = loader.rank * self.rows
        buckets: Buckets | None = getattr(self.source, "buckets", None)  # a source of images of one size needs none
        self.order = BucketOrder(buckets.of, self.batch, self.seed) if buckets else Order(len(self.source), self.seed)
        self.unsorted = buckets.bad if buckets else ()
        self.bad: dict[int, tuple[str, str]] = {}

    def __getitem__(self, step: int):
        start = step * self.batch + self.first
        positions = range(start, start + self.rows)
        met: dict[int, tuple[str, str]] = {}
        items, used = [], []
        for index in self.order.indices(start, positions.stop).tolist():
            found = self._usable(index, met)
            if found is None:
                path, reason = next(iter(met.values()))
                among = f"{len(met)} images{'' if len(met) == len(self.source) else ' of a bucket'}"
                return None, list(met.values()), f"none of the {among} can be used; {path}: {reason}"
            items.append(found[0])
            used.append(found[1])
        images = np.stack([item.image.numpy() for item in items])
        if self.flip:
            mirrored = flips(self.seed, start, positions.stop)
            images[mirrored] = images[mirrored][..., ::-1]
        labels = np.array([item.label for item in items], dtype=np.int64)
        captions = draw_captions(items, self.seed, start, self.share)
        return (images, labels, captions, np.array(used, dtype=np.int64), positions), list(met.values()), None

    def _usable(self, index: int, met: dict[int, tuple[str, str]]) -> tuple[Item, int] | None:
        """(item, its index) at `index`, or the next that can be used; fills `met` with the unusable ones."""
        for candidate in self.order.candidates(index):
            if candidate not in self.bad:
                try:
                    return self.source[candidate], candidate
                except BadImage as error:
                    self.bad[candidate] = (error.path, error.reason)
            met[candidate] = self.bad[candidate]
        return None


def _same(share):
    return share


def _quiet_worker(worker: int) -> None:
    """Ctrl-C is the main process's to handle; a handler for SIGTERM inherited from it must not keep us alive."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
