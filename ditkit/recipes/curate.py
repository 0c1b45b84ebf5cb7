"""Make a data set better: near-duplicates by looks or by meaning, filters; both leave an index of what stays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ditkit.data import DataError, DataSettings, ImageSource, Rule, open_source, write_index
from ditkit.data.cache import Cache
from ditkit.data.duplicate_clusters import (
    Clusters,
    DuplicateSettings,
    Looks,
    Told,
    cluster_lines,
    hash_all,
    in_order,
    montage,
    near_hashes,
    near_meanings,
)
from ditkit.data.filters import FilterSettings, filter_source
from ditkit.data.rejects import REJECTS
from ditkit.files import new_folder, write_text
from ditkit.protocols import BadImage, Extractor
from ditkit.recipes.place import check_new, check_writable

CLUSTERS, INDEX, PAGE, EMBEDDINGS = "clusters.jsonl", "index.json", "clusters.png", "embeddings.npy"
BATCH = 64  # images embedded at a time


class Duplicates(NamedTuple):
    """What was found: images, those that cannot be read, clusters, images in them, images that the index keeps."""

    images: int
    rejects: dict[str, str]
    clusters: int
    members: int
    kept: int


def find_duplicates(
    data: DataSettings,
    out: Path,
    settings: DuplicateSettings,
    extractor: Extractor | None = None,
    device: torch.device | str = "cpu",
    told: Told = lambda stage, done, total: None,
) -> Duplicates:
    """Search `data` for near-duplicates and write the folder `out`; the images are only read.

    extractor: compare its embeddings (pooled features) by their cosine; None: compare perceptual hashes. The folder
    holds clusters.jsonl, index.json (for data.index), clusters.png, and, with an extractor, embeddings.npy (n, D) in
    half precision, a row an image, of length 1. FileExistsError if `out` is there.
    """
    check_new(out)
    source = _open(data)
    with new_folder(out) as draft:
        if extractor is None:
            looks = hash_all(source, told)
            clusters = near_hashes(source, looks, settings, told)
            rule = f"near-duplicates: {settings.radius} bits of 256{', mirrored too' if settings.mirrored else ''}"
        else:
            looks = embed_all(source, extractor, draft / EMBEDDINGS, told, device)
            clusters = near_meanings(source, looks, settings, told, _product(device))
            rule = f"near-duplicates: cosine {settings.cosine:g} of {extractor.id}"
        write_clusters(draft, source, clusters, looks, data.source, rule)
        members = sum(map(len, clusters.groups))
        rejects = dict(clusters.bad.values())
        return Duplicates(len(source), rejects, len(clusters.groups), members, len(clusters.kept))


def write_clusters(folder: Path, source: ImageSource, clusters: Clusters, looks: Looks, name: str, rule: str) -> None:
    """The files of a search: clusters, index, picture, and the images that cannot be read."""
    write_text(folder / CLUSTERS, "".join(line + "\n" for line in cluster_lines(source, clusters, looks)))
    gone = len(source) - len(clusters.kept) - len(clusters.bad)
    rules = [Rule(rule, gone, gone)]
    if clusters.bad:
        rules.insert(0, Rule("cannot be read", len(clusters.bad), len(clusters.bad)))
        lines = (json.dumps({"path": path, "reason": reason}) + "\n" for path, reason in clusters.bad.values())
        write_text(folder / f"images{REJECTS}", "".join(lines))
    write_index(folder / INDEX, source, name, clusters.kept, rules)
    if clusters.groups:
        montage(source, clusters).save(folder / PAGE)


def embed_all(
    source: ImageSource, extractor: Extractor, file: Path, told: Told, device: torch.device | str = "cpu"
) -> Looks:
    """The embeddings of all images, cropped to the source's size, in a file mapped into memory; and their sizes."""
    sizes, bad = np.zeros((len(source), 2), dtype=np.int32), dict[int, tuple[str, str]]()
    vectors: np.ndarray | None = None
    for rows, images in _batches(source, sizes, bad, told):
        pooled = extractor(torch.stack(images).to(device)).pooled.float()
        found = (pooled / pooled.norm(dim=1, keepdim=True).clamp_min(1e-12)).cpu().numpy()
        if vectors is None:
            shape = (len(source), found.shape[1])
            vectors = np.lib.format.open_memmap(file, "w+", dtype=np.float16, shape=shape)
        vectors[rows] = found
    if vectors is None:
        path, reason = next(iter(bad.values()))
        raise ValueError(f"none of the {len(source)} images can be read; {path}: {reason}")
    return Looks(vectors, sizes, bad)


def _batches(
    source: ImageSource, sizes: np.ndarray, bad: dict[int, tuple[str, str]], told: Told
) -> Iterator[tuple[list[int], list[torch.Tensor]]]:
    """(rows, images) of BATCH readable images at a time; fills `sizes`, and `bad` with the others."""
    rows, images = list[int](), list[torch.Tensor]()
    for index, seen in in_order(lambda index: _look(source, index), len(source), "embeddings", told, 4):
        if isinstance(seen, BadImage):
            bad[index] = (seen.path, seen.reason)
            continue
        sizes[index] = seen[1]
        rows.append(index)
        images.append(seen[0])
        if len(rows) == BATCH:
            yield rows, images
            rows, images = [], []
    if rows:
        yield rows, images


def _look(source: ImageSource, index: int) -> tuple[torch.Tensor, tuple[int, int]] | BadImage:
    try:
        return source.image(index, source.size), source.shape(index)
    except BadImage as bad:
        return bad
    except (ValueError, OSError, MemoryError) as error:
        return BadImage(source.name(index), str(error))


def _product(device: torch.device | str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Matrix products on a device."""

    def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return (torch.from_numpy(left).to(device) @ torch.from_numpy(right).to(device)).cpu().numpy()

    return product


def _open(data: DataSettings) -> ImageSource:
    """The pictures to choose from, as stored. DataError where there are none to choose."""
    source = open_source(data.model_copy(update={"cache": False}))
    if source.made or isinstance(source, Cache):
        what = (
            "pictures made when they are read" if source.made else "a cache of latents; choose before `ditkit encode`"
        )
        raise DataError(f"data {data.source!r}: {what}: there is nothing to choose from")
    return source


class Filtered(NamedTuple):
    """How many images there were, how many stay, and what each rule takes."""

    images: int
    kept: int
    rules: list[Rule]


def filter_data(
    data: DataSettings, out: Path, settings: FilterSettings, told: Told = lambda stage, done, total: None
) -> Filtered:
    """Write the index of the images of `data` that all rules keep. FileExistsError if `out` is there."""
    if out.exists():
        raise FileExistsError(f"{out}: exists already; remove it, or choose another with --out")
    check_writable(out.parent)
    source = _open(data)
    kept, rules = filter_source(source, settings, told)
    write_index(out, source, data.source, kept, rules)
    return Filtered(len(source), len(kept), rules)
