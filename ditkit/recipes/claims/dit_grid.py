"""The twelve models of DiT's study of scale, at our size: four widths and depths with three sizes of token each."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ditkit.analysis.cost import cost
from ditkit.data import DataError
from ditkit.models import AnyModel
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.reproduce.rules import Paired
from ditkit.recipes.reproduce.testbed import Shape, Testbed

MOST_TOKENS, FEWEST_TOKENS = 256, 4
SIZES = ("S", "B", "L", "XL")  # in the order of the paper's; ours are far smaller
# Gflops and FID-50K at 400K steps without guidance of the paper's twelve (Table 4)
PAPER = {
    "S/8": (0.36, 153.60), "S/4": (1.41, 100.41), "S/2": (6.06, 68.40), "B/8": (1.42, 122.74), "B/4": (5.56, 68.38),
    "B/2": (23.01, 43.47), "L/8": (5.01, 118.87), "L/4": (19.70, 45.64), "L/2": (80.71, 23.33), "XL/8": (7.39, 106.41),
    "XL/4": (29.05, 43.01), "XL/2": (118.64, 19.47),
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    """One of the twelve."""

    size: str
    patch: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """As the paper's, with the width and depth that it has here: "B/2 (32 x 3)"."""
        m = self.recipe.model
        return f"{self.size}/{self.patch} ({m.width} x {m.depth})"

    @property
    def gflops(self) -> float:
        """1e9 multiply-accumulates of one pass of one sample, as the paper counts Gflops."""
        return gflops(self.recipe.model)


@lru_cache(maxsize=64)
def gflops(model: AnyModel) -> float:
    """`cost` of a network, counted once."""
    return cost(model).gmacs


def shapes(small: Shape, medium: Shape) -> dict[str, Shape]:
    """Width, depth and heads by size: three quarters of the small model, itself, half-way to the medium, and that."""
    width, depth, heads = small
    middle = [(a + b) / 2 for a, b in zip(small, medium, strict=True)]
    between = max(1, round(middle[2]))
    return {
        "S": (fitting(width * 3 / 4, heads), max(1, depth * 3 // 4), heads),
        "B": small,
        "L": (fitting(middle[0], between), round(middle[1]), between),
        "XL": medium,
    }


def fitting(width: float, heads: int) -> int:
    """The widest up to `width` that heads and sin-cos position tables can share; at least one such."""
    unit = 4 * heads
    return max(1, int(width / unit)) * unit


def patches(size: tuple[int, int]) -> tuple[int, int, int]:
    """The three finest patch sides of (H, W) with at most 256 tokens and at least 4. DataError where there are not."""
    sides = [p for p in range(1, min(size) + 1) if size[0] % p == 0 and size[1] % p == 0]
    good = [p for p in sides if FEWEST_TOKENS <= size[0] * size[1] // p**2 <= MOST_TOKENS]
    if len(good) < 3:
        raise DataError(f"images of {size[0]}x{size[1]} numbers have no three sizes of token: resize them")
    return good[0], good[1], good[2]


def grid(bed: Testbed) -> list[Point]:
    """All twelve, with half the usual batch: the finest tokens are slow."""
    b = bed.budget
    fine = patches(bed.sit().model.size)
    batch = max(1, b.batch // 2)
    return [
        Point(
            size, patch,
            bed.sit(changes={
                "model.width": width, "model.depth": depth, "model.heads": heads, "model.patch": patch,
                "training.batch": batch,
            }),
        )
        for size, (width, depth, heads) in shapes(b.small, b.medium).items()
        for patch in fine
    ]  # fmt: skip


def neighbours(points: list[Point]) -> list[tuple[Point, Point]]:
    """Pairs (smaller, next larger) of one size of token."""
    by = {(p.size, p.patch): p for p in points}
    steps = list(itertools.pairwise(SIZES))
    return [(by[a, patch], by[b, patch]) for patch in sorted({p.patch for p in points}) for a, b in steps]


def mean_ratio(pairs: Mapping[str, np.ndarray], seeds: int) -> Paired:
    """The geometric mean of ratios over pairs, seed by seed; nan where there is no pair."""
    if not pairs:
        return Paired(np.full(seeds, np.nan))
    with np.errstate(divide="ignore", invalid="ignore"):  # of a run that diverged, 0 or infinite
        return Paired(np.exp(np.log(np.array(list(pairs.values()))).mean(0)))


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's, of the logarithms; nan where a number is not finite."""
    logs = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    return float(np.corrcoef(*logs)[0, 1]) if all(np.isfinite(v).all() for v in logs) else float("nan")
