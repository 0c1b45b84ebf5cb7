"""Heat maps of square matrices, and rows of ticks along one axis, as SVG text in the manner of `plots`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ditkit.evaluation.plots import COLOURS, INK, as_svg, blank, label_axes

MAP = "viridis"  # even steps of brightness: also read without colour, on light and dark pages


@dataclass(frozen=True)
class HeatMap:
    """values (N, N), row and column 0 at the upper left; NaN stays empty.

    blocks: where squares on the diagonal begin, 0 first; the last ends with the matrix. unit: what the colours measure.
    """

    title: str
    values: np.ndarray
    label: str = "evaluation"
    unit: str = ""
    blocks: Sequence[int] = ()


@dataclass(frozen=True)
class Ticks:
    """Rows of ticks among 0 ... length - 1. rows: name -> (places, group); rows of one group share a colour."""

    title: str
    rows: Mapping[str, tuple[Sequence[int], int]]
    length: int
    label: str = "evaluation"


def draw_heat_map(panel: HeatMap, identity: str) -> str:
    """The matrix as an <svg> element with its scale of colours beside it. identity: unique in the page."""
    size = len(panel.values)
    figure, axes = blank(4.0, 3.0)
    figure.set_layout_engine("none")  # a square beside its scale, with room for the page's font
    axes.set_position((0.16, 0.19, 0.58, 0.58 * 4 / 3))
    shown = axes.imshow(panel.values, cmap=MAP, interpolation="nearest", extent=(-0.5, size - 0.5, size - 0.5, -0.5))
    for start, stop in pairwise([*panel.blocks, size]):
        low, high = start - 0.5, stop - 0.5
        axes.plot([low, high, high, low, low], [low, low, high, high, low], color="white", linewidth=1.6)
        axes.plot([low, high, high, low, low], [low, low, high, high, low], color="black", linewidth=0.6)
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    label_axes(axes, panel.label, panel.label)
    scale = figure.add_axes((0.765, 0.19, 0.035, 0.58 * 4 / 3))
    bar = figure.colorbar(shown, cax=scale, format=f"{{x:.{digits(panel.values)}g}}")
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, labelsize=8)
    bar.set_label(panel.unit, color=INK, parse_math=False)
    return as_svg(figure, identity, describe_heat_map(panel))


def digits(values: np.ndarray) -> int:
    """Significant digits that tell a tenth of the values' range apart, 3 to 9; NaN are left out."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if low == high:
        return 3
    return min(9, max(3, 2 + math.ceil(math.log10(max(abs(low), abs(high)) / (high - low)))))


def describe_heat_map(panel: HeatMap) -> str:
    """The map in words: its range, and the blocks."""
    low, high = float(np.nanmin(panel.values)), float(np.nanmax(panel.values))
    text = f"{panel.title}: {panel.unit or 'values'} from {low:.4g} to {high:.4g} over {len(panel.values)} places"
    return f"{text}; blocks begin at {', '.join(map(str, panel.blocks))}" if len(panel.blocks) else text


def draw_ticks(panel: Ticks, identity: str) -> str:
    """The rows as an <svg> element, the first at the top. identity: unique in the page."""
    figure, axes = blank(8.0, 0.6 + 0.22 * len(panel.rows))
    for height, (places, group) in enumerate(panel.rows.values()):
        axes.vlines(places, height - 0.36, height + 0.36, color=COLOURS[group % len(COLOURS)], linewidth=1.8)
    axes.set_yticks(range(len(panel.rows)), list(panel.rows), parse_math=False)
    axes.set_ylim(len(panel.rows) - 0.4, -0.6)
    axes.set_xlim(-0.02 * panel.length - 0.5, 1.02 * panel.length - 0.5)
    label_axes(axes, panel.label, "")
    axes.grid(True, axis="x", color=INK, alpha=0.15, linewidth=0.6)
    return as_svg(figure, identity, describe_ticks(panel))


def describe_ticks(panel: Ticks) -> str:
    """The rows in words: the places of each."""
    rows = "; ".join(f"{name} at {', '.join(map(str, places))}" for name, (places, _) in panel.rows.items())
    return f"{panel.title}: {rows}"
