"""A cache of latents as a source: images that are encoded already, with their features and captions."""

from __future__ import annotations

import copy
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import safetensors.torch
from PIL import Image
from torch import Tensor

from ditkit.data.buckets import BucketSettings
from ditkit.data.cache_format import (
    EMPTY,
    KIND,
    LABELS,
    MANIFEST,
    PLAN,
    PLAN_KIND,
    FileFacts,
    Manifest,
    kind_of,
    read_manifest,
    read_plan,
    shard_name,
)
from ditkit.data.cache_read import Damaged, Shards, Stack, Words
from ditkit.data.cache_write import ranges, read_rejected, read_reports
from ditkit.data.digits import Digits
from ditkit.data.index import hash_of
from ditkit.data.settings import DataSettings
from ditkit.data.source import UNCAPTIONED, DataError, ImageSource, stratified_split
from ditkit.protocols import BadImage, Captions, Item

Corrupt = Literal["stop", "skip"]
READING = ("table", "part", "image_column", "label_column", "text_column", "synthetic_column", "synthetic_table")
AGAIN = "`ditkit encode` with the words that made it makes just this shard again"


class Cache(ImageSource):
    """What `ditkit encode` wrote. Image i is the source's image i, with its label, captions, or reason for rejection.

    `put` and `put_text` copy rows into a Stack; there are no pictures. corrupt: what a damaged shard means, a DataError
    or that its images are unusable. Opening checks the sizes of all files, reading the checksum of every row. Several
    threads may read at once. DataError, one line, for what is no whole cache.
    """

    def __init__(self, folder: str | os.PathLike, corrupt: Corrupt = "stop"):
        self.folder, self.corrupt = Path(folder), corrupt
        self.manifest: Manifest = read_manifest(self.folder)
        of = {facts.file: facts for facts in self.manifest.files}
        source = self.manifest.source
        labels = self._small(of[LABELS])["labels"].numpy()
        super().__init__(labels, source.classes, source.channels)
        self.size = source.size
        self.rows: np.ndarray | None = None  # those of a part
        self.told: tuple[str, ...] | None = None  # what the images' own source says of that part, where it has a way
        self.plan = self.manifest.plan
        self.rejected = read_rejected(self.folder)
        self.uncaptioned = {i for i, (_, reason) in self.rejected.items() if reason == UNCAPTIONED}
        self.empty = self._small(of[EMPTY]) if EMPTY in of else {}
        self.shards = Shards(self.folder, self.plan)
        self.bad: dict[int, str] = dict(self._wrong_sizes())
        if self.bad and corrupt == "stop":
            shard, reason = next(iter(self.bad.items()))
            raise self.damaged(shard, reason)
        self.notes = (*describe(self.manifest), *(f"{shard_name(k)} {why}: left out" for k, why in self.bad.items()))
        if self.uncaptioned:
            self.notes += (
                f"{len(self.uncaptioned):,} images without a caption are not in the cache: a run without text has only "
                "the others, and cannot go on from the images themselves",
            )
        self.seen: dict[str, tuple[int, int]] = {}  # prompt -> its shard and row there, of captions asked for

    def _small(self, facts: FileFacts) -> dict[str, Tensor]:
        """A small file, read whole and checked."""
        path = self.folder / facts.file
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}; `ditkit encode` makes it again") from None
        if f"{zlib.crc32(data):08x}" != facts.crc32:
            raise DataError(f"{path}: is damaged (its checksum is wrong); `ditkit encode` makes it again")
        return safetensors.torch.load(data)

    def _wrong_sizes(self) -> Iterable[tuple[int, str]]:
        for shard, facts in enumerate(self.manifest.contents):
            try:
                size = (self.folder / facts.file).stat().st_size
            except OSError as error:
                yield shard, f"cannot be read ({error.strerror})"
                continue
            if size != facts.bytes:
                yield shard, f"is damaged (it has {size:,} bytes, not {facts.bytes:,})"

    def part(self, rows: np.ndarray, told: tuple[str, ...] | None = None) -> Cache:
        """The images `rows` of this cache, in that order, as another one. told: its content as the images tell it."""
        found = copy.copy(self)
        found.rows, found.labels, found.told = rows, self.labels[rows], told
        return found

    def content(self) -> Iterable[str]:
        rows = () if self.rows is None else self.rows.tolist()
        yield from self.told or (self.manifest.source.content, *map(str, rows))
        if not self.captioned and not self.uncaptioned.isdisjoint(rows):
            yield "without the images that have no caption"

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        """That of the encoded images, with the choices about captions where this run makes them.

        A run without text that lacks images which were left out for want of a caption has not the images' own.
        """
        source = self.manifest.source
        if self.rows is not None:
            return super().fingerprint
        chosen = self.captioned or self.template is not None or bool(self.uncaptioned)
        return source.fingerprint if chosen else source.content

    def damaged(self, shard: int, reason: str, row: int | None = None) -> DataError | BadImage:
        """What to raise of a damaged shard; row: of the image that was asked for."""
        path = self.folder / shard_name(shard)
        if self.corrupt == "skip" and row is not None:
            return BadImage(f"{path}#{row}", f"the shard {reason}; {AGAIN}")
        return DataError(f"{path}: {reason}; {AGAIN}, data.corrupt=skip trains without what is damaged")

    # ---------------------------------------------------------------------------------------- reading

    def place(self, index: int) -> tuple[int, int]:
        """(shard, row) of an image. BadImage for one that could not be encoded."""
        index = self.stored(index)
        if index in self.rejected:
            raise BadImage(*self.rejected[index])
        shard, row = divmod(index, self.plan.stored.shard)
        if shard in self.bad:
            raise self.damaged(shard, self.bad[shard], row)
        return shard, row

    def stored(self, index: int) -> int:
        """The number of an image in the whole cache."""
        index = range(len(self))[index]  # negative ones; IndexError outside
        return index if self.rows is None else int(self.rows[index])

    def put(self, stack: Stack, row: int, index: int, mirrored: bool = False) -> None:
        """Copy image `index` into row `row`. BadImage where it cannot be used, DataError for a damaged shard."""
        shard, here = self.place(index)
        try:
            stack.put(row, self.shards, shard, here, mirrored)
        except Damaged as error:
            raise self.damaged(shard, f"is damaged ({error})", here) from None

    def put_text(self, stack: Stack, row: int, index: int, caption: str) -> None:
        """Copy the embedding of one of the image's captions, or of the empty prompt, into row `row`; as `put`."""
        if not caption:
            stack.put_empty(row, self.empty)
            return
        words = self.words(index)
        if caption not in words.prompts:
            raise DataError(f"{self.folder}: holds no embedding of the caption {caption[:60]!r} of {words.path}")
        shard, here = self.place(index)
        self.put_prompt(stack, row, shard, words.prompts[caption], here)

    def put_prompt(self, stack: Stack, row: int, shard: int, place: int, image: int | None = None) -> None:
        """Copy the embedding `place` of a shard into row `row`; raises as `put`, of the shard's row `image`."""
        try:
            stack.put_text(row, self.shards, shard, place)
        except Damaged as error:
            raise self.damaged(shard, f"is damaged ({error})", image) from None

    def words(self, index: int) -> Words:
        """Key, path and captions of an image; raises as `put`."""
        shard, row = self.place(index)
        try:
            return self.shards.words(shard, row)
        except (Damaged, ValueError, KeyError) as error:
            raise self.damaged(shard, f"is damaged ({error})", row) from None

    # ---------------------------------------------------------------------------------------- as an ImageSource

    def read(self, index: int) -> Item:
        raise self.no_pictures()

    def picture(self, index: int) -> Image.Image:
        raise self.no_pictures()

    def image(self, index: int, size: tuple[int, int]) -> Tensor:
        raise self.no_pictures()

    def no_pictures(self) -> DataError:
        """What to say where pictures are asked for."""
        place = self.manifest.source.place
        return DataError(f"{self.folder}: a cache of latents holds no pictures; name the images, which were {place!r}")

    def shape(self, index: int) -> tuple[int, int]:
        return self.size

    def name(self, index: int) -> str:
        stored = self.stored(index)
        return self.rejected[stored][0] if stored in self.rejected else self.words(index).path

    def key(self, index: int) -> str:
        stored = self.stored(index)
        return self.rejected[stored][0] if stored in self.rejected else self.words(index).key

    def caption(self, index: int) -> str:
        return self.captions(index).first

    def captions(self, index: int) -> Captions:
        words = self.words(index)
        shard, _ = self.place(index)
        self.seen.update({prompt: (shard, row) for prompt, row in words.prompts.items()})
        return words.captions

    def all_captions(self, index: int) -> Captions:
        return self.captions(index)

    def caption_classes(self, template: str) -> None:
        """The captions are what they were when they were encoded. DataError where another template is asked for."""
        made = self.manifest.source.template
        if template != made:
            told = "no captions from classes" if made is None else f"captions made by {made!r}"
            raise DataError(f"{self.folder}: a cache with {told}, data.caption asks for {template!r}: encode it again")
        self.template = template

    def require_captions(self) -> None:
        """DataError where the images were encoded without asking for captions."""
        if not self.manifest.source.captioned:
            raise DataError(
                f"{self.folder}: a cache without the captions that this model is trained with: encode the images with "
                "its recipe"
            )
        self.captioned, self.template = True, self.manifest.source.template

    def require_mirrored(self) -> None:
        """DataError where the images were encoded one way round only."""
        if not self.plan.stored.mirror:
            told = "a cache without mirrored copies: encode with mirror=true, or set data.flip=false"
            raise DataError(f"{self.folder}: {told}")

    def sort_into_buckets(self, settings: BucketSettings, fewest: int = 1) -> None:
        """A cache has images of one size."""
        raise DataError(f"{self.folder}: a cache has images of one size: leave data.buckets out (data.buckets=none)")

    def keep_in_memory(self, limit: int | None = None) -> None:
        """Nothing is decoded, nothing kept: the system keeps files that are read often."""


def is_cache(folder: Path) -> bool:
    """Whether a folder is a cache, finished or not."""
    return kind_of(folder) == KIND or kind_of(folder, PLAN) == PLAN_KIND


def open_cache(folder: Path, settings: DataSettings) -> Cache:
    """The cache in a folder as settings ask for it. DataError, one line, where it holds something else, or not yet all.

    Images were read (tables, columns) when they were encoded: settings that ask for it again are refused.
    """
    if kind_of(folder) != KIND:
        refuse_unfinished(folder)
    cache = Cache(folder, settings.corrupt)
    source = cache.manifest.source
    height, width = source.size
    if (asked := settings.shape()) not in (None, (height, width)):
        raise DataError(
            f"{folder}: a cache of images of {height}x{width}, data.size asks for {asked[0]}x{asked[1]}: encode them "
            "again with --size, or leave it out"
        )
    if settings.channels not in (None, source.channels):
        raise DataError(f"{folder}: a cache of images of {source.channels} channels, not of {settings.channels}")
    if settings.flip:
        cache.require_mirrored()
    if settings.index is not None:
        check_index(cache, settings.index)
    if settings.pairs == "both":
        raise DataError(f"{folder}: a cache holds single images, data.pairs=both needs the pairs themselves")
    if odd := [name for name in READING if getattr(settings, name) is not None]:
        raise DataError(
            f"{folder}: data.{odd[0]} says how images are read, a cache holds what was read when they were encoded: "
            f"leave it out (data.{odd[0]}=none)"
        )
    return cache if settings.split == "all" else part_of(cache, settings.split)


def check_index(cache: Cache, path: str) -> None:
    """DataError where an index file keeps other images than those that were encoded."""
    source = cache.manifest.source
    same = source.index == path if source.kept is None else source.kept == hash_of(path)
    if not same:
        raise DataError(
            f"{cache.folder}: a cache of the images of {source.index or 'no index'}, data.index={path} keeps others: "
            "encode with it"
        )


def part_of(cache: Cache, split: Literal["train", "test"]) -> Cache:
    """The "train" or "test" part, with the fingerprint that this part of the images has. DataError without one."""
    source = cache.manifest.source
    if source.place == "scenes":
        raise DataError(f"{cache.folder}: scenes are made for each split anew, those of 'all' have no {split!r} part")
    rows = stratified_split(cache.labels, split)
    if source.content != Digits("all", source.size, source.channels).fingerprint:
        return cache.part(rows)
    return cache.part(rows, tuple(Digits(split, source.size, source.channels).content()))


def refuse_unfinished(folder: Path) -> NoReturn:
    """DataError that says which shards a cache still lacks."""
    plan = read_plan(folder)
    assert plan is not None
    missing = sorted(set(range(plan.shards)) - read_reports(folder, plan).keys())
    if not missing:
        state = "damaged" if (folder / MANIFEST).exists() else "missing"
        raise DataError(f"{folder}: the cache's manifest.json is {state}; `ditkit encode` with the same words mends it")
    what = f"shards {ranges(missing)} of {plan.shards} are missing"
    raise DataError(f"{folder}: an unfinished cache: {what}; `ditkit encode` with the same words goes on with it")


def describe(manifest: Manifest) -> tuple[str, ...]:
    """What a cache holds, for people; a warning where its latents are not normalised."""
    counts, stored, found = manifest.counts, manifest.stored, manifest.statistics
    size = sum(facts.bytes for facts in manifest.contents)
    holds = [f"latents of {manifest.codec.id} in {stored.dtype}" + (" with mirrored copies" if stored.mirror else "")]
    holds += [
        f"features of {t.id} ({t.grid[0]}x{t.grid[1]} x {t.width}) in {stored.features}" for t in manifest.teachers
    ]
    holds += [f"captions by {manifest.text.id} in {stored.texts}"] if manifest.text is not None else []
    lines = [
        f"a cache of {counts.usable:,} images ({counts.rejects:,} of {counts.items:,} rejected) in "
        f"{len(manifest.contents)} shards of {size / 2**20:,.1f} MiB in all: {'; '.join(holds)}"
    ]
    mean, std = found.overall_mean, found.overall_std
    if manifest.codec.factor > 1 and not (abs(mean) < 0.5 and 0.5 < std < 2):
        lines.append(
            f"warning: the cache's latents have mean {mean:.3g} and std {std:.3g}, not about 0 and 1; check the "
            "codec's shift and scale (applied exactly once?)"
        )
    return tuple(lines)
