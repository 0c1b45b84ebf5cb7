"""Near-duplicates: a perceptual hash of each picture, and exact search among hashes or embeddings in flat memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from PIL import Image

SIDE = 32  # pixels of the thumbnail that is hashed
BITS = 256
FLAT = 0.75  # grey levels: pictures whose details stand out less are hashed by their brightness
BLOCK = 2048  # rows compared at a time
ROUNDING = 1e-6  # that equal rows' cosine may differ from 1 in float32
PIECES = 2**21  # candidate pairs looked at at a time

Progress = Callable[[int, int], None]


def picture_hash(picture: Image.Image) -> np.ndarray:
    """(32,) uint8, 256 bits: the signs of the 256 lowest frequencies of a 32 x 32 grey thumbnail but its mean.

    They stay when a picture is scaled, packed by JPEG, brightened or stretched in contrast; two pictures that have
    nothing to do with each other differ in about half of them. A picture with hardly any detail is hashed by how
    bright it is: bit i says whether its mean lies above i. After Zauner, "Implementation and benchmarking of
    perceptual image hash functions" (2010), with signs in place of a comparison with the median.
    """
    small = picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BICUBIC, reducing_gap=3.0)
    pixels = np.asarray(small, dtype=np.float64)
    if pixels.std() < FLAT:
        return np.packbits(np.arange(BITS) < pixels.mean())
    waves, (rows, columns) = _cosines(), _lowest()
    return np.packbits((waves @ pixels @ waves.T)[rows, columns] > 0)


def mirrored(hashes: np.ndarray) -> np.ndarray:
    """The hashes (n, 32) that the pictures would have if they were mirrored left to right: odd waves change sign."""
    odd = np.packbits(_lowest()[1] % 2 == 1)
    return hashes ^ odd


@cache
def _cosines() -> np.ndarray:
    """The orthonormal DCT-II of SIDE points: row k is the wave of frequency k."""
    k, x = np.arange(SIDE)[:, None], np.arange(SIDE)[None]
    waves = np.cos(math.pi * (2 * x + 1) * k / (2 * SIDE)) * math.sqrt(2 / SIDE)
    waves[0] /= math.sqrt(2)
    return waves


@cache
def _lowest() -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of the BITS lowest frequencies, the constant one left out."""
    rows, columns = np.divmod(np.arange(SIDE * SIDE), SIDE)
    order = np.lexsort((columns, rows, rows**2 + columns**2))[1 : BITS + 1]
    return rows[order], columns[order]


def hamming_pairs(
    hashes: np.ndarray, radius: int, others: np.ndarray | None = None, progress: Progress | None = None
) -> Iterator[np.ndarray]:
    """Blocks (m, 2) of all pairs i < j of rows of `hashes` (n, bytes) uint8 that differ in `radius` bits at most.

    others: compare row i with row j of these instead (the mirrored ones). Exact, by the pigeonhole principle: of the
    16-bit words of two such rows one differs in floor(radius / words) bits at most, so only rows that share a word, or
    one so near to it, are compared. Memory is that of the hashes and one piece of candidates; a pair may come twice.
    """
    mine, theirs = np.ascontiguousarray(hashes), np.ascontiguousarray(hashes if others is None else others)
    words, second = mine.view(np.uint16), theirs.view(np.uint16)
    count = words.shape[1]
    slack = radius // count
    masks = _masks(slack)
    for column, mask in ((c, m) for c in range(count) for m in masks):
        order = np.argsort(second[:, column], kind="stable")
        sought, there = words[:, column] ^ mask, second[order, column]
        first = np.searchsorted(there, sought, "left")
        found = np.searchsorted(there, sought, "right") - first
        for left, right in _candidates(first, found, order):
            near = left < right
            left, right = left[near], right[near]
            close = differing(mine[left], theirs[right]) <= radius
            if close.any():
                yield np.stack([left[close], right[close]], 1)
        if progress is not None:
            progress(column * len(masks) + masks.tolist().index(int(mask)) + 1, count * len(masks))


def differing(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(n,) int64: the number of bits that differ between the rows of two (n, bytes) uint8."""
    different = left ^ right
    if hasattr(np, "bitwise_count"):  # numpy 2
        wide = different.view(np.uint64) if different.shape[1] % 8 == 0 else different
        return np.bitwise_count(wide).sum(1, dtype=np.int64)
    return _ones()[different].sum(1, dtype=np.int64)


@cache
def _ones() -> np.ndarray:
    """The number of bits set in each byte."""
    return np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)


def _masks(bits: int) -> np.ndarray:
    """The 16-bit words with at most `bits` ones."""
    chosen = itertools.chain.from_iterable(itertools.combinations(range(16), n) for n in range(bits + 1))
    return np.array([sum(1 << bit for bit in ones) for ones in chosen], dtype=np.uint16)


def _candidates(first: np.ndarray, found: np.ndarray, order: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(left, right): row i with each of order[first[i] : first[i] + found[i]], about PIECES pairs at a time."""
    ends = np.cumsum(found)
    start = 0
    while start < len(found):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + PIECES, "right")))
        here = found[start:stop]
        left = np.repeat(np.arange(start, stop), here)
        within = np.arange(here.sum()) - np.repeat(np.cumsum(here) - here, here)
        yield left, order[np.repeat(first[start:stop], here) + within]
        start = stop


def cosine_pairs(
    embeddings: np.ndarray,
    threshold: float,
    product: Callable[[np.ndarray, np.ndarray], np.ndarray] = np.matmul,
    progress: Progress | None = None,
) -> Iterator[np.ndarray]:
    """Blocks (m, 2) of all pairs i < j of rows (n, D) whose cosine is `threshold` at least, but for rounding.

    Rows are compared BLOCK with BLOCK, so that memory does not grow with n^2; `product` multiplies (a, D) by (D, b),
    where it may use another device. embeddings may be mapped from a file.
    """  # fmt: skip
    starts = range(0, len(embeddings), BLOCK)
    total, done = len(starts) * (len(starts) + 1) // 2, 0
    for a in starts:
        block = unit_rows(embeddings[a : a + BLOCK])
        for b in starts[a // BLOCK :]:
            other = unit_rows(embeddings[b : b + BLOCK])
            left, right = np.nonzero(product(block, other.T) >= threshold - ROUNDING)
            near = left + a < right + b
            if near.any():
                yield np.stack([left[near] + a, right[near] + b], 1)
            done += 1
            if progress is not None:
                progress(done, total)


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """The rows (n, D) in float32, made of length 1 again, which rounding to half precision took; zeros stay zeros."""
    wide = np.asarray(rows, dtype=np.float32)
    length = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(length > 0, length, 1)


class Groups:
    """Union-find over n rows: what is linked, however far along a chain, is one group."""

    def __init__(self, count: int):
        self.parent = np.arange(count)

    def link(self, pairs: np.ndarray) -> None:
        """Join the two rows of each pair (m, 2)."""
        for left, right in pairs.tolist():
            a, b = self.root(left), self.root(right)
            if a != b:
                self.parent[max(a, b)] = min(a, b)

    def root(self, row: int) -> int:
        """The first row of the row's group."""
        parent = self.parent
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = int(parent[row])
        return row

    def roots(self) -> np.ndarray:
        """(n,) int64: the first row of every row's group."""
        return np.array([self.root(row) for row in range(len(self.parent))], dtype=np.int64)


def stars(count: int, pairs: np.ndarray, order: np.ndarray) -> np.ndarray:
    """(count,) int64: for each row the one that stands for it (itself, where it is kept).

    Rows are visited in `order`; one that nobody has taken yet is kept and takes all its neighbours that are not taken:
    Algorithm 1 of Stable Diffusion 3 (arXiv 2403.03206, appendix E.2), which ties no chains. Every row that goes is
    a neighbour of the one that stands for it, and no two that stay are neighbours.
    """
    both = np.concatenate([pairs, pairs[:, ::-1]])
    both = both[np.argsort(both[:, 0], kind="stable")]
    starts = np.searchsorted(both[:, 0], np.arange(count + 1))
    stands = np.full(count, -1, dtype=np.int64)
    for row in order.tolist():
        if stands[row] < 0:
            stands[row] = row
            near = both[starts[row] : starts[row + 1], 1]
            free = near[stands[near] < 0]
            stands[free] = row
    return stands
