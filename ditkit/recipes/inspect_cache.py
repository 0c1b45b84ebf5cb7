"""What `ditkit doctor` sees of a cache: every byte of it, and whether it is what the recipe asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from torch import Tensor

from ditkit.data.cache import AGAIN, Cache
from ditkit.data.cache_batches import read_held
from ditkit.data.cache_write import wrong_files
from ditkit.evaluation import spread
from ditkit.protocols import Codec
from ditkit.recipes.cached import StoredTeacher, check_codec, check_grids, teacher_numbers
from ditkit.recipes.recipe import Recipe

Level = Literal["ok", "warn", "fail"]


def look_through(cache: Cache, progress: Callable[[int, int], None] | None = None) -> Iterator[tuple[Level, str]]:
    """(level, line) of a cache: what it holds, then the files that are damaged. Every byte is read."""
    for line in cache.notes:
        yield "warn" if line.startswith("warning") else "ok", line
    wrong = list(wrong_files(cache.folder, cache.manifest, progress))
    for facts, why in wrong:
        yield "fail" if cache.corrupt == "stop" else "warn", f"{cache.folder / facts.file}: {why}; {AGAIN}"
    if not wrong:
        yield "ok", f"all {len(cache.manifest.contents)} shards have the checksums that they were written with"


def check_fits(recipe: Recipe, cache: Cache, codec: Codec) -> None:
    """ValueError, one line, where codec or grids are not those that the recipe asks for."""
    check_codec(cache, codec)
    check_grids(recipe, cache, teacher_numbers(recipe, cache))


def stored_teachers(recipe: Recipe, cache: Cache) -> list[StoredTeacher]:
    """The recipe's teachers as the cache knows them. ValueError, one line, where they are not there."""
    return [StoredTeacher(cache.manifest.teachers[i]) for i in teacher_numbers(recipe, cache)]


def some_moments(cache: Cache, n: int) -> Tensor:
    """The moments (n, C, h, w) of a few images."""
    return read_held(cache, spread(len(cache), n)).moments
