"""Curves as SVG text that can stand inside an HTML page: no file, no network, no global pyplot state.

Lines have fixed colours and dashes by their position in the legend; text and axes take the page's own text colour,
so that one drawing serves light and dark pages.
"""

from __future__ import annotations

import html
import io
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLOURS = ("#3a7bd5", "#e0702e", "#2f9e67", "#b05cc6", "#c99a10", "#7d8794")
DASHES = ("", "6 2", "2 2", "8 2 2 2", "4 1", "1 2")  # told apart without colour too
INK = "#010203"  # replaced by currentColor
MOST_POINTS = 400
RASTER = 200  # dots an inch of images inside drawings


@dataclass(frozen=True)
class Series:
    """One line: equally long x and y. smooth draws the raw values faintly under a running mean.

    limits: (low, high) of each y, drawn as bars; labels: a word beside each point. Empty, or as long as x.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    smooth: bool = False
    limits: Sequence[tuple[float, float]] = ()
    labels: Sequence[str] = ()

    def __post_init__(self):
        if len(self.x) != len(self.y):
            raise ValueError(f"series {self.name!r}: {len(self.x)} x and {len(self.y)} y values")
        if wrong := [len(given) for given in (self.limits, self.labels) if given and len(given) != len(self.x)]:
            raise ValueError(f"series {self.name!r}: {len(self.x)} points with {wrong[0]} limits or labels")

    def only(self, kept: Sequence[int]) -> Series:
        """The series of these points."""
        limits = [self.limits[i] for i in kept] if self.limits else ()
        labels = [self.labels[i] for i in kept] if self.labels else ()
        x, y = tuple(self.x[i] for i in kept), tuple(self.y[i] for i in kept)
        return Series(self.name, x, y, self.smooth, limits, labels)


@dataclass(frozen=True)
class Panel:
    """One drawing; the lines' colours are given by the legend of the figure it is part of."""

    title: str
    series: Sequence[Series]
    x_label: str = "step"
    y_label: str = ""
    log_y: bool = False

    @property
    def finite(self) -> list[Series]:
        """The series without points that cannot be drawn (NaN, infinite, not positive on a log axis)."""
        kept = []
        for s in self.series:
            points = [i for i, y in enumerate(s.y) if math.isfinite(y) and (y > 0 or not self.log_y)]
            if points:
                kept.append(s.only(points))
        return kept


def read_rows(path: str | Path) -> list[dict]:
    """The rows of a run's metrics.jsonl; a torn last line (a killed run) is left out."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def series_of(rows: Iterable[Mapping], key: str, name: str, x: str = "step", smooth: bool = False) -> Series:
    """The values of one column of metrics.jsonl; rows without it are passed over. A resumed run's later row wins."""
    points = {row[x]: row[key] for row in rows if x in row and row.get(key) is not None}
    return Series(name, list(points), [float(v) for v in points.values()], smooth)


def running_mean(values: Sequence[float], share: float = 0.04) -> list[float]:
    """Mean over `share` of the points around each, fewer towards the ends: it neither lags nor leans."""
    n = len(values)
    sums = [0.0, *itertools.accumulate(values)]
    half = int(share * n / 2)
    reach = [min(half, i, n - 1 - i) for i in range(n)]
    return [(sums[i + r + 1] - sums[i - r]) / (2 * r + 1) for i, r in enumerate(reach)]


def thin(x: Sequence[float], y: Sequence[float], most: int = MOST_POINTS) -> tuple[list[float], list[float]]:
    """At most `most` of the points, evenly chosen, both ends kept."""
    n = len(x)
    if n <= most:
        return list(x), list(y)
    chosen = [round(i * (n - 1) / (most - 1)) for i in range(most)]
    return [x[i] for i in chosen], [y[i] for i in chosen]


def style(position: int) -> tuple[str, str]:
    """(colour, SVG dash pattern) of the series at this place of the legend."""
    turn = position // len(COLOURS)  # beyond the colours, each comes again with other dashes
    return COLOURS[position % len(COLOURS)], DASHES[(position + turn) % len(DASHES)]


def draw(panel: Panel, order: Sequence[str], identity: str, legend: bool = False) -> str:
    """The panel as an <svg> element. identity: unique in the page; every id inside begins with it.

    legend: names the lines inside the drawing, where no page does.
    """
    figure, axes = blank()
    for s in panel.finite:
        colour, dash = style(order.index(s.name) if s.name in order else len(order))
        pattern = (0, tuple(float(v) for v in dash.split())) if dash else "solid"
        if s.smooth:
            axes.plot(*thin(s.x, s.y), color=colour, alpha=0.25, linewidth=0.8)
        y = running_mean(s.y) if s.smooth else s.y
        marker = "o" if len(s.x) <= 12 else None
        style_of = {"color": colour, "linewidth": 1.8, "linestyle": pattern, "marker": marker, "markersize": 3}
        axes.plot(*thin(s.x, y), label=s.name, **style_of)
        if s.limits:
            axes.vlines(s.x, *zip(*s.limits, strict=True), color=colour, linewidth=1.0, alpha=0.6)
        for x, height, word in zip(s.x, y, s.labels, strict=bool(s.labels)):
            place = {"xytext": (4, 3), "textcoords": "offset points", "fontsize": 8, "color": INK, "parse_math": False}
            axes.annotate(word, (x, height), **place)
    if panel.log_y:
        axes.set_yscale("log")
    label_axes(axes, panel.x_label, panel.y_label)
    place_ticks(axes, panel)
    axes.grid(True, color=INK, alpha=0.15, linewidth=0.6)
    if legend and len(panel.finite) > 1:
        axes.legend(fontsize=7, frameon=False, labelcolor=INK)
    return as_svg(figure, identity, description(panel))


def place_ticks(axes: Any, panel: Panel) -> None:
    """Whole numbers (blocks, steps) have no ticks between them; a single place has its own tick alone."""
    from matplotlib.ticker import MaxNLocator

    places = {float(x) for s in panel.finite for x in s.x}
    if len(places) == 1:
        axes.set_xticks(list(places))
    elif all(x.is_integer() for x in places):
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))


def blank(width: float = 4.0, height: float = 2.5) -> tuple[Any, Any]:
    """An empty (figure, axes) of so many inches, without pyplot."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def label_axes(axes: Any, x_label: str, y_label: str) -> None:
    """Name the axes; ticks, and lines at the left and below only, in the page's ink."""
    axes.set_xlabel(x_label, color=INK, parse_math=False)
    axes.set_ylabel(y_label, color=INK, parse_math=False)
    axes.tick_params(colors=INK, which="both", labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
        spine.set_alpha(0.5)


def as_svg(figure: Any, identity: str, label: str) -> str:
    """A matplotlib figure as an <svg> element of a page; see `embeddable`."""
    import matplotlib

    buffer = io.StringIO()
    plain: Any = {"svg.fonttype": "none", "svg.hashsalt": identity, "font.family": "sans-serif"}
    with matplotlib.rc_context(plain):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None}, dpi=RASTER)
    return embeddable(buffer.getvalue(), identity, label)


def description(panel: Panel) -> str:
    """The panel in words, for readers who do not see it: where each line ends."""
    ends = [f"{s.name} ends at {s.y[-1]:.4g} at {panel.x_label} {s.x[-1]:g}" for s in panel.finite]
    return f"{panel.title}: {'; '.join(ends) if ends else 'no values'}"


def standalone(svg: str) -> str:
    """An <svg> element as a file of its own, dark on white."""
    look = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    look += 'style="color: #222; background: #fff; font-family: sans-serif" '
    return svg.replace("<svg ", f"<svg {look}", 1) + "\n"


def embeddable(svg: str, identity: str, label: str) -> str:
    """A standalone SVG file as an element of an HTML page: no prologue, no metadata, ids of its own, a text label."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sid="([^"]*)"', rf' id="{identity}-\1"', svg)
    svg = re.sub(r'xlink:href="#', 'href="#', svg)
    svg = re.sub(r'href="#', f'href="#{identity}-', svg)
    svg = re.sub(r"url\(#", f"url(#{identity}-", svg)
    svg = re.sub(r'<svg\s[^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img" LABEL>', svg, count=1)
    svg = re.sub(r"font-family: [^;\"]*;?\s*", "", svg)  # the page's own font
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"base64,[^\"]*", lambda found: "".join(found[0].split()), svg)
    svg = re.sub(r"\s*\n\s*", " ", svg)
    svg = svg.replace(INK, "currentColor")
    return svg.replace("LABEL", f'aria-label="{html.escape(label)}"', 1).strip()
