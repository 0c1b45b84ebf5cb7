"""A run on a cache: whether it is what the recipe asks for, and what stands in for networks that need not run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from ditkit.data import DataError, ImageSource
from ditkit.data.cache import Cache
from ditkit.data.cache_batches import Asked
from ditkit.data.cache_format import TeacherFacts, plain
from ditkit.data.cache_read import Stack, parts_of
from ditkit.pretrained import (
    CodecSettings,
    PretrainedMissing,
    TeacherSettings,
    TextSettings,
    load_teacher,
    load_text,
    weight_hash,
)
from ditkit.pretrained.hub import is_local
from ditkit.pretrained.vit import WEIGHTS
from ditkit.protocols import BadImage, Codec, Condition, Features, TextEncoder
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.text import ToldText

EXACT = ("fp32", "uint8")
log = logging.getLogger("ditkit.data")


class StoredTeacher:
    """A teacher that has spoken: its features are in the cache, and it is neither loaded nor asked."""

    def __init__(self, facts: TeacherFacts):
        self.id, self.width, self.stored_grid = facts.id, facts.width, facts.grid

    def __call__(self, images: Tensor, *, grid: tuple[int, int] | None = None) -> Features:
        """There is nobody to ask."""
        raise ValueError(f"teacher {self.id}: its features come from the cache, it is not loaded")


class StoredText:
    """A TextEncoder that knows the cache's captions; for other prompts the encoder itself is loaded, once."""

    def __init__(self, cache: Cache, settings: TextSettings, device: torch.device):
        facts = cache.manifest.text
        assert facts is not None
        self.cache, self.settings, self.device = cache, settings, torch.device(device)
        self.id, self.width, self.length, self.pooled_width = facts.id, facts.width, facts.length, facts.pooled_width
        self.parts = parts_of(cache.plan)
        self.notes: tuple[str, ...] = ()
        self._encoder: TextEncoder | None = None

    def to(self, device: torch.device | str) -> StoredText:
        """Conditions come out on `device`."""
        self.device = torch.device(device)
        if self._encoder is not None and hasattr(self._encoder, "to"):
            self._encoder.to(device)
        return self

    def __call__(self, prompts: Sequence[str]) -> Condition:
        """What the cache holds of the prompts where it holds all of them, else what the encoder says now.

        With corrupt=skip the encoder is asked too where one of them is damaged; else that is a DataError.
        """
        if any(prompt and prompt not in self.cache.seen for prompt in prompts):
            return self._loaded()(prompts)
        stack = Stack(self.cache.plan, len(prompts), texts=True)
        try:
            for row, prompt in enumerate(prompts):
                if prompt:
                    self.cache.put_prompt(stack, row, *self.cache.seen[prompt])
                else:
                    stack.put_empty(row, self.cache.empty)
        except (DataError, BadImage) as error:
            if self.cache.corrupt == "stop":
                raise
            log.warning("%s; the text encoder is asked instead", str(error).partition(";")[0])
            return self._loaded()(prompts)
        assert stack.cond is not None
        return stack.cond.to(self.device).to(torch.float32)

    def _loaded(self) -> TextEncoder:
        if self._encoder is None:
            found = load_text(self.settings, self.device)
            if found.id != self.id:
                raise ValueError(f"text encoder: the cache was made with {self.id}, the recipe's is {found.id}")
            self._encoder = found
        return self._encoder


class FromCache(NamedTuple):
    """What a cache gives a run: teachers in name, text encoder, and what its batches bring."""

    cache: Cache
    teachers: list[StoredTeacher]
    text: ToldText | None
    asked: Asked


def from_cache(recipe: Recipe, source: ImageSource, codec: Codec, device: torch.device) -> FromCache | None:
    """What the cache behind `source` gives this recipe; None for images. ValueError, one line, if it does not fit."""
    if not isinstance(source, Cache):
        return None
    check_codec(source, codec)
    numbers = teacher_numbers(recipe, source)
    text = stored_text(recipe, source, device)
    share = recipe.data.empty_share if text is not None else 0.0
    asked = Asked(tuple(numbers), text is not None, share, pin=device.type == "cuda")
    return FromCache(source, [StoredTeacher(source.manifest.teachers[i]) for i in numbers], text, asked)


def check_codec_settings(recipe: Recipe, source: ImageSource) -> None:
    """ValueError, before a codec is loaded, where the cache's is of another kind."""
    if not isinstance(source, Cache):
        return
    facts = source.manifest.codec
    if facts.settings.get("kind") != recipe.codec.kind:
        there = CodecSettings(**facts.settings)
        raise ValueError(
            f"{source.folder}: a cache of latents of codec {named(there)} ({facts.id}), this run is set to "
            f"{named(recipe.codec)}: give --codec {there.place or there.kind}, or encode again"
        )


def named(settings: CodecSettings) -> str:
    """A codec's settings in a few words."""
    return f"{settings.kind} {settings.place}".strip()


def check_codec(cache: Cache, codec: Codec) -> None:
    """ValueError where the cache was made with another codec, other weights or another normalisation."""
    facts = cache.manifest.codec
    sides = [
        ("codec", facts.id, codec.id), ("codec.scale", plain(facts.scale), plain(codec.scale)),
        ("codec.shift", plain(facts.shift), plain(codec.shift)),
    ]  # fmt: skip
    for what, there, here in sides:
        if there != here:
            raise ValueError(
                f"{cache.folder}: the cache was made with {what} {there}, this run has {here}: give the codec that "
                "made it, or encode again"
            )


def teacher_numbers(recipe: Recipe, cache: Cache) -> list[int]:
    """Which of the cache's teachers are the recipe's, in its order. ValueError for one that is not there."""
    if recipe.align is None:
        return []
    there = cache.manifest.teachers
    numbers = []
    for settings in recipe.teachers:
        match = [i for i, facts in enumerate(there) if same(facts.settings, settings)]
        if not match:
            wanted = identity_or_name(settings)
            match = [i for i, facts in enumerate(there) if facts.id == wanted]
        if not match:
            held = ", ".join(facts.id for facts in there) or "no teacher"
            raise ValueError(
                f"{cache.folder}: a cache with features of {held}, the recipe's teacher is {wanted}: name the cache's, "
                "train without (--teacher none), or encode again"
            )
        numbers.append(match[0])
    return numbers


def check_grids(recipe: Recipe, cache: Cache, numbers: Sequence[int]) -> None:
    """ValueError where features stand on another grid than the recipe's model asks its teachers for."""
    if recipe.align is None or recipe.align.grid != "resize_image":
        return
    for i in numbers:
        facts, grid = cache.manifest.teachers[i], recipe.model.grid
        if facts.grid != grid:
            raise ValueError(
                f"{cache.folder}: features of {facts.id} on a grid of {facts.grid[0]}x{facts.grid[1]}, the model has "
                f"{grid[0]}x{grid[1]} tokens: encode again with this recipe, or set align.grid=resize_features"
            )


def local_places(settings: TeacherSettings | TextSettings) -> list[Path]:
    """The folders and files on this disk that networks come from."""
    places = settings.places() if isinstance(settings, TextSettings) else [settings.source]
    found = [Path(place).expanduser() for place in places if place and is_local(place)]
    return [path for path in found if path.exists()]


def same(stored: dict[str, Any], settings: TeacherSettings | TextSettings) -> bool:
    """Whether settings name the very networks of a cache: equal, and nothing on this disk that may have changed."""
    return not local_places(settings) and stored == settings.model_dump(mode="json")


def identity_or_name(settings: TeacherSettings | TextSettings) -> str:
    """The id of a teacher or text encoder; what the settings say where it cannot be had.

    It is remembered as long as the files stay as they are, so that networks are loaded for it once at most.
    """
    files = [file for path in local_places(settings) for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    stamps = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file())
    try:
        return found_id(settings, stamps)
    except PretrainedMissing:
        return f"{settings.kind} {settings.source}".strip()


@lru_cache(maxsize=8)
def found_id(settings: TeacherSettings | TextSettings, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """The id of networks whose files have these sizes and times; raises PretrainedMissing.

    A `ditkit teacher` folder's weights are only read; other networks are loaded on the CPU and let go.
    """
    if isinstance(settings, TextSettings):
        return load_text(settings).id
    if settings.kind == "selftaught":
        try:
            return f"selftaught-{weight_hash(load_file(Path(settings.source) / WEIGHTS))}"
        except Exception as error:  # a damaged file fails in many ways: loading says which
            log.debug("%s: %s", settings.source, error)
    return load_teacher(settings).id


def stored_text(recipe: Recipe, cache: Cache, device: torch.device) -> ToldText | None:
    """The recipe's text encoder as the cache knows it; None without text. ValueError where it is another one."""
    if recipe.text is None:
        return None
    facts = cache.manifest.text
    if facts is None:
        raise ValueError(f"{cache.folder}: a cache without captions, which this recipe trains on: encode with it")
    if not same(facts.settings, recipe.text):
        here = identity_or_name(recipe.text)
        if here != facts.id:
            raise ValueError(
                f"{cache.folder}: the cache's captions were encoded by {facts.id}, the recipe's text encoder is "
                f"{here}: name the cache's with --text, or encode again"
            )
    return ToldText(StoredText(cache, recipe.text, device))


def marks(cache: Cache | None, tf32: bool = False) -> dict[str, str]:
    """What a cache's rounding adds to the identity of codec, teachers and text; nothing where it is exact.

    So a run may go on from images to an exact cache and back, and never from one rounding to another. Exact are
    pixels and what networks say to the last digit that they agree on: convolutions round by which images are encoded
    together, about 1e-6 of an AutoencoderKL. tf32: whether this run, too, would compute in TensorFloat-32.
    """
    if cache is None:
        return {"codec": "", "teachers": "", "text": ""}
    stored = cache.manifest.stored
    rough = " computed in TF32" if stored.tf32 and not tf32 else ""
    by = rough if stored.precision == "fp32" else f" computed in {stored.precision}"
    half = {"fp16": " in half precision", "fp32": ""}.get(stored.texts, f" in {stored.texts}")
    return {
        "codec": by + ("" if stored.dtype in EXACT else f" stored in {stored.dtype}"),
        "teachers": by + ("" if stored.features in EXACT else f" stored in {stored.features}"),
        "text": rough + half,
    }
