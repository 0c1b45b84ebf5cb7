"""Clusters of near-duplicates of a whole source: which images they hold, which one is kept, and a picture of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from pydantic import Field

from ditkit.config import Settings
from ditkit.data.duplicates import (
    Groups,
    cosine_pairs,
    differing,
    hamming_pairs,
    mirrored,
    picture_hash,
    stars,
    unit_rows,
)
from ditkit.data.source import ImageSource
from ditkit.protocols import BadImage

AT_A_TIME = 256  # images handed to the threads
Told = Callable[[str, int, int], None]  # (stage, done, total)


class DuplicateSettings(Settings):
    """What counts as a near-duplicate, and how those found are put together."""

    radius: int = Field(15, ge=0, le=96, description="hashes of 256 bits that differ in so many at most")
    mirrored: bool = Field(False, description="mirrored copies are duplicates too (of hashes)")
    cosine: float = Field(0.95, gt=0, le=1, description="embeddings (--extractor) whose cosine is this at least")
    linked: Literal["chain", "star"] = Field(
        "chain", description="chain: all that are linked, however far; star: only neighbours of the one kept (SD3)"
    )
    partitions: int = Field(1, ge=1, description="compare embeddings within so many k-means parts only (SD3: 16000)")


class Looks(NamedTuple):
    """One pass over a source: vectors (n, ...), a row an image, sizes (n, 2) of (H, W), and what cannot be read."""

    vectors: np.ndarray
    sizes: np.ndarray
    bad: dict[int, tuple[str, str]]


class Clusters(NamedTuple):
    """stands (n,): for each image the one that stands for it (itself where it is kept, -1 where it cannot be read).

    groups: the rows of each cluster, the kept one first, the largest cluster first; distances go with them: bits that
    differ from the kept one's, or 1 - cosine.
    """

    stands: np.ndarray
    groups: tuple[np.ndarray, ...]
    distances: tuple[np.ndarray, ...]
    bad: dict[int, tuple[str, str]]

    @property
    def kept(self) -> np.ndarray:
        """The rows that stay, ascending."""
        return np.flatnonzero(self.stands == np.arange(len(self.stands)))


def hash_all(source: ImageSource, told: Told, threads: int = 4) -> Looks:
    """The hash and the size of every picture of `source`, as stored, uncropped."""
    hashes, sizes = np.zeros((len(source), 32), dtype=np.uint8), np.zeros((len(source), 2), dtype=np.int32)
    bad: dict[int, tuple[str, str]] = {}
    for index, seen in in_order(lambda index: _hash(source, index), len(source), "hashes", told, threads):
        if isinstance(seen, BadImage):
            bad[index] = (seen.path, seen.reason)
        else:
            hashes[index], sizes[index] = seen
    return Looks(hashes, sizes, bad)


def _hash(source: ImageSource, index: int) -> tuple[np.ndarray, tuple[int, int]] | BadImage:
    try:
        picture = source.picture(index)
        return picture_hash(picture), (picture.height, picture.width)
    except BadImage as bad:
        return bad


def in_order(look: Callable[[int], object], count: int, stage: str, told: Told, threads: int) -> Iterator:
    """(index, look(index)) for all of `count`, looked at by threads, a few hundred at a time."""
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, count, AT_A_TIME):
            rows = range(start, min(start + AT_A_TIME, count))
            yield from zip(rows, pool.map(look, rows), strict=True)
            told(stage, rows.stop, count)


def near_hashes(source: ImageSource, looks: Looks, settings: DuplicateSettings, told: Told) -> Clusters:
    """Clusters of pictures whose hashes are near each other. Equal hashes are compared once."""
    order = by_worth(source, looks)
    hashes, inverse = np.unique(looks.vectors[order], axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)  # hash of each place in the order

    def pairs() -> Iterator[np.ndarray]:
        yield from hamming_pairs(hashes, settings.radius, progress=lambda done, n: told("comparing", done, n))
        if settings.mirrored:
            turned = mirrored(hashes)
            yield from hamming_pairs(hashes, settings.radius, turned, lambda done, n: told("mirrored", done, n))

    best = np.full(len(hashes), len(order))
    np.minimum.at(best, inverse, np.arange(len(order)))
    stands = np.full(len(source), -1, dtype=np.int64)
    stands[order] = order[best[_stand(len(hashes), pairs(), np.argsort(best, kind="stable"), settings.linked)[inverse]]]

    def distance(rows: np.ndarray, to: int) -> np.ndarray:
        ways = [looks.vectors[to][None], *([mirrored(looks.vectors[to][None])] if settings.mirrored else [])]
        return np.min([differing(looks.vectors[rows], np.repeat(way, len(rows), 0)) for way in ways], axis=0)

    return _clusters(stands, distance, looks.bad)


def near_meanings(
    source: ImageSource,
    looks: Looks,
    settings: DuplicateSettings,
    told: Told,
    product: Callable[[np.ndarray, np.ndarray], np.ndarray] = np.matmul,
) -> Clusters:
    """Clusters of images whose embeddings (rows of length 1) are near each other; see `cosine_pairs` for `product`."""
    order = by_worth(source, looks)

    def pairs() -> Iterator[np.ndarray]:
        if settings.partitions == 1:
            say = lambda done, n: told("comparing", done, n)  # noqa: E731
            yield from cosine_pairs(looks.vectors, settings.cosine, product, say)
            return
        parts = _partition(looks.vectors, settings.partitions, told)
        for number, rows in enumerate(parts, 1):
            for block in cosine_pairs(looks.vectors[rows], settings.cosine, product):
                yield rows[block]
            told("comparing", number, len(parts))

    chosen = _stand(len(source), pairs(), order, settings.linked)
    stands = np.full(len(source), -1, dtype=np.int64)
    stands[order] = chosen[order]

    def distance(rows: np.ndarray, to: int) -> np.ndarray:
        return 1 - unit_rows(looks.vectors[rows]) @ unit_rows(looks.vectors[to][None])[0]

    return _clusters(stands, distance, looks.bad)


def by_worth(source: ImageSource, looks: Looks) -> np.ndarray:
    """The readable rows, those first that are kept before others: the most pixels, then the first key."""
    rows = [row for row in range(len(source)) if row not in looks.bad]
    area = looks.sizes.astype(np.int64).prod(1)
    return np.array(sorted(rows, key=lambda row: (-area[row], source.key(row))), dtype=np.int64)


def _stand(count: int, pairs: Iterable[np.ndarray], order: np.ndarray, linked: str) -> np.ndarray:
    """(count,) the row that stands for each: of all that are linked the first in `order`, or the middle of its star."""
    if linked == "star":
        found = list(pairs)
        return stars(count, np.concatenate(found) if found else np.empty((0, 2), dtype=np.int64), order)
    groups = Groups(count)
    for block in pairs:
        groups.link(block)
    roots = groups.roots()
    first = np.full(count, count)
    np.minimum.at(first, roots[order], np.arange(len(order)))
    stands = np.full(count, -1, dtype=np.int64)
    stands[order] = order[first[roots[order]]]
    return stands


def _partition(vectors: np.ndarray, count: int, told: Told) -> list[np.ndarray]:
    """The rows of each of `count` k-means parts of the embeddings, in one pass to learn them and one to sort."""
    from sklearn.cluster import MiniBatchKMeans

    count, step = min(count, len(vectors)), max(4096, 4 * count)
    means = MiniBatchKMeans(count, random_state=0, n_init=1, batch_size=step)
    starts = range(0, len(vectors), step)
    for start in starts:
        block = np.asarray(vectors[start : start + step], dtype=np.float32)
        if len(block) >= count:  # a short last one cannot be learned from
            means.partial_fit(block)
        told("k-means", min(start + step, len(vectors)), 2 * len(vectors))
    parts = [means.predict(np.asarray(vectors[start : start + step], dtype=np.float32)) for start in starts]
    of = np.concatenate(parts)
    told("k-means", 2 * len(vectors), 2 * len(vectors))
    rows = np.argsort(of, kind="stable")
    return np.split(rows, np.flatnonzero(np.diff(of[rows])) + 1)


def _clusters(stands: np.ndarray, distance: Callable[[np.ndarray, int], np.ndarray], bad: dict) -> Clusters:
    rows = np.argsort(stands, kind="stable")
    rows = rows[stands[rows] >= 0]
    groups, distances = [], []
    for group in np.split(rows, np.flatnonzero(np.diff(stands[rows])) + 1):
        if len(group) > 1:
            kept = int(stands[group[0]])
            far = distance(group, kept)
            near = np.lexsort((group, far, group != kept))
            groups.append(group[near])
            distances.append(far[near])
    largest = sorted(range(len(groups)), key=lambda number: (-len(groups[number]), groups[number][0]))
    return Clusters(stands, tuple(groups[n] for n in largest), tuple(distances[n] for n in largest), bad)


def cluster_lines(source: ImageSource, clusters: Clusters, looks: Looks) -> Iterator[str]:
    """A JSON line for each cluster: its number, the key that is kept, and its members with sizes and distances."""
    for number, (group, distances) in enumerate(zip(clusters.groups, clusters.distances, strict=True)):
        members = [
            {
                "index": row, "key": source.key(row), "path": source.name(row), "size": looks.sizes[row].tolist(),
                "distance": round(float(distance), 5), "kept": row == int(group[0]),
            }
            for row, distance in zip(group.tolist(), distances.tolist(), strict=True)
        ]  # fmt: skip
        yield json.dumps({"cluster": number, "kept": members[0]["key"], "members": members}, ensure_ascii=False)


def montage(source: ImageSource, clusters: Clusters, rows: int = 16, columns: int = 8, side: int = 112) -> Image.Image:
    """The largest clusters, a row each, for people to look at: the kept one first, in green, then the furthest."""
    shown = list(zip(clusters.groups, clusters.distances, strict=True))[:rows]
    columns = max(4, min(columns, max((len(group) for group, _ in shown), default=0)))
    page = Image.new("RGB", (columns * (side + 8) + 8, max(1, len(shown)) * (side + 36) + 8), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default()
    for line, (group, distances) in enumerate(shown):
        top = 8 + line * (side + 36)
        most = [0, *range(len(group) - 1, 0, -1)][:columns]
        title = f"cluster {line}: {len(group)} pictures, kept {source.key(int(group[0]))}"
        draw.text((8, top), _plain(title)[: columns * side // 6], "black", font)
        for column, place in enumerate(most):
            left, colour = 8 + column * (side + 8), "green" if place == 0 else "gray"
            draw.rectangle((left - 2, top + 16, left + side + 1, top + side + 19), outline=colour, width=2)
            try:
                picture = source.picture(int(group[place])).convert("RGB")
            except BadImage:  # gone since it was hashed
                continue
            small = max(picture.size) * 2 <= side  # its pixels are shown as they are
            way = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
            picture = ImageOps.contain(picture, (side, side), way)
            page.paste(picture, (left + (side - picture.width) // 2, top + 18 + (side - picture.height) // 2))
            if place:
                draw.text((left + 2, top + side + 6), f"{distances[place]:.3g}", "red", font)
    return page


def _plain(text: str) -> str:
    return text.encode("ascii", "replace").decode()
