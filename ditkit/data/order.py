"""Which image stands at which position of training: a function of (seed, position), so resuming costs nothing."""

from __future__ import annotations

import zlib

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


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of 0..n-1 that depends on (seed, epoch) only: the argsort of n random words."""
    words = philox_words("order", seed, epoch, -(-n // 4)).reshape(-1)[:n]
    return np.argsort(words, kind="stable")


class Order:
    """Endless passes over n images, each pass a fresh permutation: position p lies in pass p // n.

    Nothing is kept but the permutations last asked for, so any rank, worker or resumed run computes the same order.
    """

    def __init__(self, n: int, seed: int):
        if n < 1:
            raise ValueError(f"Order: need at least one image, got {n}")
        self.n, self.seed = n, seed
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

    def _pass(self, epoch: int) -> np.ndarray:
        if epoch not in self._recent:
            while len(self._recent) > 1:  # a batch spans two passes at most, unless the data are tiny
                self._recent.pop(next(iter(self._recent)))
            self._recent[epoch] = permutation(self.n, self.seed, epoch)
        return self._recent[epoch]


def flips(seed: int, start: int, stop: int) -> np.ndarray:
    """bool (stop - start,): whether the images at these positions are mirrored; a fair coin per (seed, position)."""
    return philox_words("flip", seed, 0, stop - start, row=start)[:, 0] >> np.uint64(63) == 1
