"""The ledger as one picture: a row a claim, its effect seed by seed, and the verdict by colour, sign and word."""

from __future__ import annotations

import hashlib
import io
import math
from typing import TYPE_CHECKING, NamedTuple

from ditkit.config import dump
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED
from ditkit.recipes.reproduce.ledger_page import NOT_RUN, SIGNS, Ledger
from ditkit.recipes.reproduce.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS: dict[str, str] = {HOLDS: "#1a7f4b", FAILS: "#c0392b", UNDECIDED: "#8a6d00", NOT_RUN: "#8a8f98"}
MARKERS: dict[str, str] = {HOLDS: "o", FAILS: "X", UNDECIDED: "D"}
ROW = 0.25  # inches
WIDTH = 10.0  # inches; the README shows them on some 900 pixels
DOTS = 160
MOST = 8.0  # ratios beyond are drawn at the edge, with an arrow
LEAST = 2.0  # the axis reaches at least to it
LETTERS = 62  # of our number, where there is no ratio to draw


class Row(NamedTuple):
    """One line of the picture: a paper's heading, or a claim."""

    label: str
    result: Result | None = None
    heading: bool = False


def rows_of(ledger: Ledger) -> list[Row]:
    """Every paper and its claims, from top to bottom."""
    rows = []
    for paper, names in ledger.papers.items():
        rows.append(Row(short(paper), heading=True))
        rows += [Row(name, ledger.main(name)) for name in names]
    return rows


def short(paper: str) -> str:
    """ "Representation Alignment for Generation (REPA, arXiv 2410.06940)" -> "REPA"."""
    before, _, inside = paper.rpartition(" (")
    name, comma, _ = inside.partition(", arXiv")
    return name if comma else before if inside.startswith("arXiv") else paper


def reach(rows: list[Row]) -> float:
    """The largest ratio of the axis, 2, 4 or 8: one that holds all effects, if there is one."""
    found = [ratio for row in rows if row.result for ratio in row.result.effect if ratio]
    most = max((max(ratio, 1 / ratio) for ratio in found), default=1.0)
    return min(MOST, max(LEAST, 2.0 ** math.ceil(math.log2(most))))


def drawn_from(ledger: Ledger) -> str:
    """A fingerprint of everything that the picture shows; the PNG carries it."""
    told = [[row.label, dump(row.result, "json") if row.result else ""] for row in rows_of(ledger)]
    return hashlib.sha256(str(told).encode()).hexdigest()[:16]


def ledger_picture(ledger: Ledger) -> bytes:
    """A PNG. Left of 1: better, as the paper says; dots are seeds, the bar joins them, the large sign is their mean."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = rows_of(ledger)
    height = ROW * len(rows) + 1.15
    figure = Figure(figsize=(WIDTH, height), facecolor="white")
    axes = figure.add_axes((0.20, 0.62 / height, 0.55, ROW * len(rows) / height))
    most = reach(rows)
    frame(axes, len(rows), most)
    for y, row in enumerate(rows):
        line(axes, y, row, most)
    title = ledger.headline.replace("**", "")
    figure.text(0.012, 1 - 0.16 / height, title, fontsize=12.5, weight="bold", va="top")
    under = "ratio of what the claim calls better to what it calls worse: left of 1 as claimed (small dots: seeds)"
    axes.set_xlabel(under, fontsize=9)
    out = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(out, format="png", dpi=DOTS, metadata={"Software": "ditkit", "Source": drawn_from(ledger)})
    return out.getvalue()


def frame(axes: Axes, rows: int, most: float) -> None:
    """Axis, the line at 1, and nothing else."""
    axes.set_xscale("log", base=2)
    axes.set_xlim(1 / most, most)
    halves = round(2 * math.log2(most)) if most <= 4 else round(math.log2(most))  # finer where there is room
    ticks = [most ** (i / halves) for i in range(-halves, halves + 1)]
    axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks], fontsize=9)
    axes.minorticks_off()
    axes.set_ylim(rows - 0.5, -0.5)
    axes.set_yticks([])
    axes.axvline(1, color="#444b55", linewidth=1)
    axes.grid(axis="x", color="#e3e6ea", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)


def line(axes: Axes, y: int, row: Row, most: float) -> None:
    """One row: name, seeds with their mean or our number in words, verdict."""
    beside = axes.get_yaxis_transform()
    if row.heading:
        axes.text(-0.35, y, row.label, transform=beside, fontsize=10.5, weight="bold", va="center")
        axes.axhspan(y - 0.5, y + 0.5, color="#f2f4f7", zorder=0)
        return
    verdict: str = row.result.verdict if row.result else NOT_RUN
    colour = COLOURS[verdict]
    axes.text(-0.335, y, row.label, transform=beside, fontsize=9.5, va="center", color="#1d2229")
    sign = f"{SIGNS[verdict]} {verdict}"
    axes.text(1.02, y, sign, transform=beside, fontsize=9.5, va="center", color=colour, weight="bold")
    if row.result is None:
        return
    ratios = [ratio for ratio in row.result.effect if ratio is not None and ratio > 0]
    if ratios and len(ratios) == len(row.result.effect):
        seeds(axes, y, ratios, most, (colour, MARKERS[verdict]))
    else:
        words = shortened(row.result.our_number or row.result.reason)
        axes.text(0.5, y, words, transform=beside, fontsize=8, va="center", ha="center", color="#555c66",
                  backgroundcolor="white").set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip


def seeds(axes: Axes, y: int, ratios: list[float], most: float, look: tuple[str, str]) -> None:
    """Small dots, a bar from the least to the most, the geometric mean as a large sign; arrows at the edges."""
    colour, marker = look
    inside = [min(max(ratio, 1 / most), most) for ratio in ratios]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    axes.plot([min(inside), max(inside)], [y, y], color=colour, linewidth=1.6, alpha=0.6)
    axes.plot(inside, [y] * len(inside), "o", color=colour, markersize=3.2, alpha=0.75)
    if mean < 1 / most or mean > most:
        marker = "<" if mean < 1 else ">"
    place = min(max(mean, 1 / most), most)
    axes.plot([place], [y], marker, color=colour, markersize=8, markeredgecolor="white", clip_on=False)


def shortened(text: str, letters: int = LETTERS) -> str:
    """The beginning of a text, cut between words."""
    if len(text) <= letters:
        return text
    return text[: letters - 1].rsplit(" ", 1)[0].rstrip(" ,;:") + " …"
