"""Batches of a cache: rows copied from their shards by threads, in the order of training."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ditkit.data.batch import Bad, Batch, first_usable
from ditkit.data.cache import Cache
from ditkit.data.cache_read import Stack
from ditkit.data.mixing import draw_captions, drop_captions
from ditkit.data.order import Order, flips
from ditkit.protocols import BadImage, Captions, Condition, Item

NO_IMAGE = torch.empty(0, dtype=torch.uint8)


class Asked(NamedTuple):
    """What batches of a cache bring beside moments and labels.

    teachers: numbers of those in the cache whose features are wanted; None: all. texts: embedded captions; None: where
    there are some. empty_share: of the visits whose caption is the empty one. pin: in page-locked memory.
    """

    teachers: tuple[int, ...] | None = None
    texts: bool | None = None
    empty_share: float = 0.0
    pin: bool = False


class CachedReader:
    """step -> (one rank's batch or None, unusable images met); threads may ask at once.

    place: (rank, world); share: of synthetic captions; the rest as for Loader.
    """

    def __init__(
        self, cache: Cache, batch: int, seed: int, place: tuple[int, int], asked: Asked, flip: bool, share: float
    ):
        self.cache, self.seed, self.batch = cache, seed, batch
        self.flip, self.empty_share = flip, asked.empty_share
        self.rows = batch // place[1]
        self.first, self.share = place[0] * self.rows, share
        self.order, self.lock = Order(len(cache), seed), threading.Lock()
        self.bad: Bad = {}
        self.stack = _stacks(cache, asked)

    def __getitem__(self, step: int) -> tuple[Batch | None, list[tuple[str, str]]]:
        start = step * self.batch + self.first
        positions = range(start, start + self.rows)
        with self.lock:  # the order keeps the permutations asked for last
            indices = self.order.indices(start, positions.stop).tolist()
        mirrored = flips(self.seed, start, positions.stop) if self.flip else np.zeros(self.rows, dtype=bool)
        stack, met = self.stack(self.rows), Bad()
        captions, used = [], []
        for row, index in enumerate(indices):

            def read(candidate: int, row: int = row) -> str:
                return self._read(stack, row, candidate, positions[row], bool(mirrored[row]))

            found = first_usable(self.order.candidates(index), self.bad, met, read)
            if found is None:
                return None, list(met.values())
            captions.append(found[0])
            used.append(found[1])
        labels = torch.from_numpy(self.cache.labels[np.array(used)])
        batch = Batch(
            stack.moments, labels, tuple(captions), torch.tensor(used), positions, stack.features, stack.cond
        )  # fmt: skip
        return batch, list(met.values())

    def _read(self, stack: Stack, row: int, index: int, position: int, mirrored: bool) -> str:
        """Put an image, and what it shows of its captions at this position, into a row.

        The caption as it was drawn, which Batch holds; where the empty one is shown instead, only the embedding is it.
        """
        self.cache.put(stack, row, index, mirrored)
        if not self.cache.manifest.counts.captioned:
            return ""
        captions = self.cache.words(index).captions
        item = Item(NO_IMAGE, -1, captions.first, "", captions)
        shown = draw_captions([item], self.seed, position, self.share)
        if stack.texts:
            self.cache.put_text(stack, row, index, drop_captions(shown, self.seed, position, self.empty_share)[0])
        return shown[0]


def _stacks(cache: Cache, asked: Asked) -> Callable[[int], Stack]:
    """What makes room for a batch, by its rows."""
    manifest = cache.manifest
    teachers = tuple(range(len(manifest.teachers))) if asked.teachers is None else asked.teachers
    texts = manifest.text is not None if asked.texts is None else asked.texts

    def stack(rows: int) -> Stack:
        return Stack(cache.plan, rows, teachers=teachers, texts=texts, pin=asked.pin)

    return stack


def in_threads(reader: CachedReader, steps: Iterable[int], threads: int) -> Iterator:
    """reader[step] for each of the steps, in order; threads read ahead, two batches each at most."""
    left = iter(steps)
    with ThreadPoolExecutor(threads, "cache") as pool:
        waiting: deque[Future] = deque()
        try:
            for step in left:
                waiting.append(pool.submit(reader.__getitem__, step))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class Held(NamedTuple):
    """Some images of a cache, as they are: moments (n, C, h, w), labels (n,), captions, indices."""

    moments: Tensor
    labels: Tensor
    captions: list[Captions]
    indices: list[int]


def read_held(cache: Cache, indices: Sequence[int]) -> Held:
    """The usable ones of these images, not mirrored. ValueError where none is.

    With corrupt=skip the embedding of the first caption is read too: an image whose is damaged cannot be used.
    """
    stack = Stack(cache.plan, len(indices))
    scratch = Stack(cache.plan, 1, texts=True) if cache.corrupt == "skip" and cache.captioned else None
    used: list[int] = []
    captions: list[Captions] = []
    for index in indices:
        try:
            cache.put(stack, len(used), index)
            found = cache.captions(index) if cache.manifest.counts.captioned else Captions()
            if scratch is not None:
                cache.put_text(scratch, 0, index, found.first)
        except BadImage:
            continue
        used.append(index)
        captions.append(found)
    if not used:
        raise ValueError(f"{cache.folder}: none of the {len(indices)} images looked at can be used")
    labels = torch.from_numpy(cache.labels[np.array(used)])
    return Held(stack.moments[: len(used)], labels, captions, used)


class HeldTexts:
    """The first caption of some images of a cache, encoded: read when asked for, so that few need to be in memory."""

    def __init__(self, cache: Cache, held: Held):
        self.cache, self.held = cache, held

    def index(self, rows: Tensor) -> Condition:
        """The condition of the samples `rows`, float32."""
        stack = Stack(self.cache.plan, len(rows), texts=True)
        for row, i in enumerate(rows.tolist()):
            self.cache.put_text(stack, row, self.held.indices[i], self.held.captions[i].first)
        assert stack.cond is not None
        return stack.cond.to(torch.float32)
