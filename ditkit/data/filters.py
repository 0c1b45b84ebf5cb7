"""Filters: which images of a source stay, by size, shape, scores, captions, other index files. Nothing is deleted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from pydantic import Field

from ditkit.config import Settings
from ditkit.data.duplicate_clusters import Told, in_order
from ditkit.data.index import Rule, rows_of
from ditkit.data.source import DataError, ImageSource
from ditkit.protocols import BadImage


class FilterSettings(Settings):
    """What an image must be to stay; a rule that is left out takes none."""

    min_side: int | None = Field(None, ge=1, description="pixels of the shorter side, at least")
    min_pixels: int | None = Field(None, ge=1, description="height times width, at least")
    max_pixels: int | None = Field(None, ge=1, description="height times width, at most")
    max_ratio: float | None = Field(None, ge=1, description="the longer side over the shorter, at most")
    at_least: dict[str, float] = Field({}, description="score column -> smallest value that stays (aesthetic)")
    at_most: dict[str, float] = Field({}, description="score column -> largest value that stays (unsafe content)")
    captioned: bool = Field(False, description="an image needs a caption")
    min_words: int | None = Field(None, ge=1, description="words of its longest caption, at least")
    max_words: int | None = Field(None, ge=1, description="words of its longest caption, at most")
    indexes: tuple[str, ...] = Field((), description="index files (duplicates, other filters) that must all keep it")


def filter_source(
    source: ImageSource, settings: FilterSettings, told: Told = lambda stage, done, total: None
) -> tuple[np.ndarray, list[Rule]]:
    """(kept rows ascending, what each rule takes). An image without a score, or whose size cannot be read, goes.

    DataError where a column or an index file is not there, or no rule is given.
    """
    kept, rules = np.ones(len(source), dtype=bool), list[Rule]()
    for words, takes in _rules(source, settings, told):
        rules.append(Rule(words, int(takes.sum()), int((takes & kept).sum())))
        kept &= ~takes
    if not rules:
        raise DataError("no rule is given: name a smallest side, a score, an index, ... (see --help)")
    return np.flatnonzero(kept), rules


def _rules(source: ImageSource, settings: FilterSettings, told: Told) -> Iterator[tuple[str, np.ndarray]]:
    """(words, (n,) bool: which images the rule takes), the cheap ones first."""
    for path in settings.indexes:
        takes = np.ones(len(source), dtype=bool)
        takes[rows_of(source, path)] = False
        yield f"not kept by {path}", takes
    for name, least in settings.at_least.items():
        yield from _score(source, name, f"{name} below {least:g}", np.less, least)
    for name, most in settings.at_most.items():
        yield from _score(source, name, f"{name} above {most:g}", np.greater, most)
    yield from _captions(source, settings, told)
    yield from _sizes(source, settings, told)


def _score(
    source: ImageSource, name: str, words: str, beyond: Callable[[np.ndarray, float], np.ndarray], limit: float
) -> Iterator[tuple[str, np.ndarray]]:
    values = np.array([_number(value) for value in source.column(name)])
    if np.isnan(values).all():
        raise DataError(f"column {name!r} of {source.name(0)}: no value is a number")
    if np.isnan(values).any():
        yield f"no {name}", np.isnan(values)
    yield words, beyond(values, limit)


def _number(value: object) -> float:
    """A score; NaN where a cell holds none."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def _captions(source: ImageSource, settings: FilterSettings, told: Told) -> Iterator[tuple[str, np.ndarray]]:
    least, most = settings.min_words, settings.max_words
    if not settings.captioned and least is None and most is None:
        return
    words = np.array([found for _, found in in_order(lambda i: _words(source, i), len(source), "captions", told, 4)])
    if settings.captioned or least is not None:
        yield "no caption", words == 0
    if least is not None:
        yield f"captions below {least} words", (words < least) & (words > 0)
    if most is not None:
        yield f"captions above {most} words", words > most


def _words(source: ImageSource, index: int) -> int:
    """Words of an image's longest caption; 0 where it has none, or none that can be read."""
    try:
        found = source.all_captions(index)
    except (ValueError, OSError):
        return 0
    return max((len(text.split()) for text in (*found.original, *found.synthetic)), default=0)


def _sizes(source: ImageSource, settings: FilterSettings, told: Told) -> Iterator[tuple[str, np.ndarray]]:
    wanted = (settings.min_side, settings.min_pixels, settings.max_pixels, settings.max_ratio)
    if wanted == (None,) * 4:
        return
    shapes = np.array([found for _, found in in_order(lambda i: _shape(source, i), len(source), "sizes", told, 8)])
    unread = shapes[:, 0] == 0
    if unread.any():
        yield "size cannot be read", unread
    pixels, short, long = shapes.prod(1), shapes.min(1), shapes.max(1)
    if settings.min_side is not None:
        yield f"side below {settings.min_side}", (short < settings.min_side) & ~unread
    if settings.min_pixels is not None:
        yield f"fewer than {settings.min_pixels} pixels", (pixels < settings.min_pixels) & ~unread
    if settings.max_pixels is not None:
        yield f"more than {settings.max_pixels} pixels", pixels > settings.max_pixels
    if settings.max_ratio is not None:
        yield f"sides beyond {settings.max_ratio:g} to 1", (long > settings.max_ratio * short) & ~unread


def _shape(source: ImageSource, index: int) -> tuple[int, int]:
    try:
        return source.shape(index)
    except BadImage:
        return 0, 0
