"""Which image stands at which position of training: a function of (seed, position), so resuming costs nothing."""

from __future__ import annotations

import itertools
import zlib
from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

_WORD = 2**64


def philox_words(stream: str, seed: int, block: int, count: int, *, row: int = 0) -> np.ndarray:
    """(count, 4) uint64: the Philox blocks row .. row + count - 1 of (seed, stream, block).

    Raw words of the counter generator of Salmon et al. (2011), which numpy keeps the same across versions, unlike
    its shuffles. Blocks are random access: rows a..b are the same whether drawn alone or within a longer run.
    """
    key = np.array([seed % _WORD, zlib.crc32(stream.encode())], dtype=np.uint64)
    counter = np.array([row, 0, 0, block], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(4 * count).reshape(count, 4)


def permutation(n: int, seed: int, epoch: int, stream: str = "order") -> np.ndarray:
    """A permutation of 0..n-1 that depends on (stream, seed, epoch) only: the argsort of n random words."""
    words = philox_words(stream, seed, epoch, -(-n // 4)).reshape(-1)[:n]
    return np.argsort(words, kind="stable")


class Order:
    """Endless passes over n images, each pass a fresh permutation: position p lies in pass p // n.

    Nothing is kept but the permutations last asked for, so any rank, worker or resumed run computes the same order.
    """

    def __init__(self, n: int, seed: int, stream: str = "order"):
        if n < 1:
            raise ValueError(f"Order: need at least one image, got {n}")
        self.n, self.seed, self.stream = n, seed, stream
        self._recent: dict[int, np.ndarray] = {}

    def epoch(self, position: int) -> int:
        """The pass (from 0) to which the global sample position belongs."""
        return position // self.n

    def index(self, position: int) -> int:
        """Image at one global position (>= 0)."""
        return int(self._pass(position // self.n)[position % self.n])

    def indices(self, start: int, stop: int) -> np.ndarray:
        """Images at the positions start .. stop - 1, int64 (stop - start,); may span several passes."""
        parts = []
        while start < stop:
            epoch, offset = divmod(start, self.n)
            end = min(stop, (epoch + 1) * self.n)
            parts.append(self._pass(epoch)[offset : offset + end - start])
            start = end
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def candidates(self, index: int) -> Iterator[int]:
        """`index`, then the images that take its place where it cannot be used, nearest first."""
        return itertools.chain(range(index, self.n), range(index))

    def _pass(self, epoch: int) -> np.ndarray:
        if epoch not in self._recent:
            while len(self._recent) > 1:  # a batch spans two passes at most, unless the data are tiny
                self._recent.pop(next(iter(self._recent)))
            self._recent[epoch] = permutation(self.n, self.seed, epoch, self.stream)
        return self._recent[epoch]


class BucketOrder:
    """Endless passes over images in buckets, in batches of one bucket each; a function of (seed, step) as Order is.

    of: (n,) bucket of each image, those below 0 are in none. Every bucket has its own Order and hands out its images
    `batch` at a time; what does not fill a batch at the end of a pass opens the next one, so nothing is dropped: after
    e epochs a bucket of n images has shown floor(e n / batch) batches, fewer than one batch behind e passes. A bucket
    smaller than a batch repeats images within it. An epoch's batches come in random order.
    """

    def __init__(self, of: np.ndarray, batch: int, seed: int):
        self.of, self.batch, self.seed = of, batch, seed
        self.members = [np.flatnonzero(of == b) for b in range(of.max() + 1)]
        self.orders = [Order(len(m), seed, f"order of bucket {b}") for b, m in enumerate(self.members)]
        self._recent: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def steps(self, epoch: int) -> range:
        """The steps of one epoch (from 0)."""
        return range(sum(self._done(epoch)), sum(self._done(epoch + 1)))

    def bucket(self, step: int) -> tuple[int, int]:
        """(bucket, which of its batches from the start of training) of one step (>= 0)."""
        n, m = sum(map(len, self.members)), len(self.members)
        first, last = step * self.batch // n, (step + m + 1) * self.batch // n + 1
        epoch = first + bisect_right(range(first, last + 1), step, key=lambda e: sum(self._done(e))) - 1
        begin = self.steps(epoch).start
        shuffled = self._shuffled(epoch)
        bucket = int(shuffled[step - begin])
        return bucket, self._done(epoch)[bucket] + int((shuffled[: step - begin] == bucket).sum())

    def indices(self, start: int, stop: int) -> np.ndarray:
        """Images at the global positions start .. stop - 1, which lie in one batch, int64 (stop - start,)."""
        step, offset = divmod(start, self.batch)
        if offset + stop - start > self.batch:
            raise ValueError(f"BucketOrder: positions {start} to {stop} are of several batches of {self.batch}")
        bucket, batch = self.bucket(step)
        shift = (batch - step) * self.batch
        return self.members[bucket][self.orders[bucket].indices(start + shift, stop + shift)]

    def candidates(self, index: int) -> Iterator[int]:
        """`index`, then the images of its bucket that take its place where it cannot be used, nearest first."""
        members = self.members[self.of[index]]
        here = int(np.searchsorted(members, index))
        return map(int, itertools.chain(members[here:], members[:here]))

    def _done(self, epoch: int) -> list[int]:
        """How many batches each bucket has shown when `epoch` begins."""
        return [epoch * len(members) // self.batch for members in self.members]

    def _shuffled(self, epoch: int) -> np.ndarray:
        if self._recent[0] != epoch:
            counts = np.subtract(self._done(epoch + 1), self._done(epoch))
            buckets = np.repeat(np.arange(len(counts)), counts)
            shuffle = permutation(len(buckets), self.seed, epoch, "buckets")
            self._recent = (epoch, buckets[shuffle])
        return self._recent[1]


def flips(seed: int, start: int, stop: int) -> np.ndarray:
    """bool (stop - start,): whether the images at these positions are mirrored; a fair coin per (seed, position)."""
    return philox_words("flip", seed, 0, stop - start, row=start)[:, 0] >> np.uint64(63) == 1
