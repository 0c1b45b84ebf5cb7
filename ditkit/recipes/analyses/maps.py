"""Feature maps as pictures: the first three principal components of tokens as colours, beside images and teachers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ditkit.analysis.components import principal_colours
from ditkit.config import Settings
from ditkit.evaluation import Panel, Series, grid
from ditkit.evaluation.images import enlarge, viewing_factor
from ditkit.recipes.analyses.analysis import Analysis, Bar, Floats, Found, Ints, Shown
from ditkit.recipes.analyses.noised import (
    no_grid,
    noised,
    picked,
    teacher_features,
    teachers_of,
    token_grid,
)
from ditkit.recipes.analyses.subject import Subject, chosen_blocks
from ditkit.recipes.analyses.words import check_times, middle, of

MOST = 6  # blocks that are shown where none are named
SIDE = 96  # about so many pixels a map
NOTE = (
    "Each column's tokens, of all images together, along their first three principal components: red, green and blue, "
    "from the 1st to the 99th percentile, one square a token. Signs are fixed (the largest weight is positive), but "
    "colours mean nothing across columns: what is to be seen is which tokens are alike, and how far the place alone "
    "decides. Null condition, where the model has one."
)


class MapsSettings(Settings):
    """What is drawn."""

    t: Floats = Field((0.1, 0.5, 0.9), description="times, 0 = data: a sheet each")
    blocks: Ints = Field((), description="blocks, counted from 1; none: six, evenly spread")
    shown: int = Field(8, ge=1, description="held-out images: a row each")


class MapsResult(Settings):
    """shares[i][j]: of the tokens' variance in the first three components, at time i after block j."""

    images: int
    t: list[float]
    blocks: list[int]
    shares: list[list[list[float]]]
    teachers: dict[str, list[float]]
    missing: str = ""


@torch.no_grad()
def measure(subject: Subject, settings: MapsSettings, bar: Bar) -> Found:
    """A sheet a time: a row an image; image, teachers, then blocks."""
    check_times(settings.t)
    blocks, places = chosen_blocks(settings.blocks, subject.loaded.settings.depth, MOST), token_grid(subject)
    rows = picked(subject, settings.shown)
    n = len(rows)
    known, missing = teachers_of(subject)
    factor = viewing_factor(min(places), SIDE)
    images = fitted(subject.test.images[rows], (places[0] * factor, places[1] * factor))
    columns, teachers = [images], {}
    for name, teacher in known.items():
        column, teachers[name] = drawn(teacher_features(subject, teacher, rows).tokens, places, factor)
        columns.append(column)
    sheets, shares = {}, []
    for done, t in enumerate(settings.t, start=1):
        hidden: dict[int, list[Tensor]] = {block: [] for block in blocks}
        for part in noised(subject, t, n):
            for block, tokens in part.run(blocks).hidden.items():
                hidden[block].append(tokens)
        pairs = [drawn(torch.cat(hidden[block]), places, factor) for block in blocks]
        shown = torch.stack([*columns, *(column for column, _ in pairs)], 1).flatten(0, 1)  # row by row
        sheets[f"t-{t:g}"] = grid(shown, len(columns) + len(pairs), gap=2)
        shares.append([share for _, share in pairs])
        bar("feature maps", done, len(settings.t))
    result = MapsResult(
        images=n, t=list(settings.t), blocks=list(blocks), shares=shares, teachers=teachers, missing=missing
    )
    return Found(result, sheets)


def drawn(tokens: Tensor, places: tuple[int, int], factor: int) -> tuple[Tensor, list[float]]:
    """Tokens (n, N, D) as uint8 maps (n, 3, H, W), every token a square; and the shares of their components."""
    colours, shares = principal_colours(tokens)
    maps = (255 * colours.mT.unflatten(2, places)).round().to(torch.uint8).cpu()
    return enlarge(maps, factor), shares


def fitted(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 images (n, C, H, W) in three channels at this size: pixels repeated where it is larger, else averaged."""
    images = images.expand(-1, 3, -1, -1).float()
    small = images.shape[2] <= size[0] and images.shape[3] <= size[1]
    resized = F.interpolate(images, size=size, mode="nearest-exact") if small else F.adaptive_avg_pool2d(images, size)
    return resized.round().to(torch.uint8)


def show(found: Mapping[str, Found]) -> Shown:
    """The sheets, and how much of the variance their colours hold over the blocks."""
    results: dict[str, MapsResult] = {name: f.result for name, f in found.items()}  # type: ignore[misc]
    alone = len(results) == 1
    pictures, series, said = {}, [], []
    for name, r in results.items():
        for i, t in enumerate(r.t):
            if alone or i == middle(r.t):
                parts = ", ".join(["image", *r.teachers, *(f"block {block}" for block in r.blocks)])
                pictures[f"{of(name)}t = {t:g}, from left to right {parts}"] = found[name].pictures[f"t-{t:g}"]
                sums = [sum(share) for share in r.shares[i]]
                series.append(Series(f"t = {t:g}" if alone else name, r.blocks, sums))
        said.append(sentence(name, r))
    said += list(dict.fromkeys(r.missing for r in results.values() if r.missing))
    panel = Panel("Variance in three components", series, "block", "share")
    return Shown(said, [panel], pictures=pictures, note=NOTE)


def sentence(name: str, r: MapsResult) -> str:
    """What share of the variance the colours show at the middle time."""
    i = middle(r.t)
    parts = [f"{100 * sum(share):.0f} % after block {b}" for b, share in zip(r.blocks, r.shares[i], strict=True)]
    parts += [f"{100 * sum(share):.0f} % of {teacher}" for teacher, share in r.teachers.items()]
    line = f"{of(name)}of the variance of the tokens of {r.images} images at t = {r.t[i]:g}, three colours show "
    return line + ", ".join(parts) + "."


ANALYSIS = Analysis(
    "maps", "Feature maps", MapsSettings, MapsResult, measure, show, no_grid, uses=("images", "teachers")
)
