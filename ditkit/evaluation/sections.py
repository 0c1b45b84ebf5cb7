"""The parts a report is made of, each built by one small function. A new kind of part is one more function.

All text that comes in is escaped; a section's body is HTML that only these functions write.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import Tensor

from ditkit.evaluation.images import enlarge, grid, png_bytes, viewing_factor
from ditkit.evaluation.maps import HeatMap, Ticks, draw_heat_map, draw_ticks
from ditkit.evaluation.plots import Panel, draw, style

SHEET = 480  # pixels that the longer side of a tiny sheet is brought to, about

Cell = str | int | float | None


@dataclass(frozen=True)
class Section:
    """A titled part. body: HTML, escaped by whoever built it. `join` puts several bodies under one title."""

    title: str
    body: str
    note: str = ""


def number(value: Cell, digits: int = 4, powers: bool = False) -> str:
    """A cell's text: integers with thousands separators, floats with so many significant digits, None as a dash.

    powers: floats as 1.23e-05 whatever their size, where neighbours need it.
    """
    if value is None:
        return "–"
    if isinstance(value, (bool, str)):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    if powers and value:
        return f"{value:.{digits - 1}e}"
    if value == 0 or 1e-4 <= abs(value) < 10**digits:
        places = digits - 1 - (math.floor(math.log10(abs(value))) if value else 0)
        text = f"{value:.{max(0, places)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits - 1}g}"


def paragraphs(lines: str | Iterable[str]) -> str:
    """Each line as a paragraph."""
    return "".join(f"<p>{escape(line)}</p>" for line in ([lines] if isinstance(lines, str) else lines))


def text(title: str, lines: str | Iterable[str]) -> Section:
    """Plain paragraphs."""
    return Section(title, paragraphs(lines))


def join(title: str, sections: Sequence[Section], note: str = "") -> Section:
    """Several sections as one, each under its own small heading."""
    parts = [f"<h3>{escape(s.title)}</h3>{s.body}{_note(s.note)}" for s in sections]
    return Section(title, "".join(parts), note)


def _note(note: str) -> str:
    return f'<p class="note">{escape(note)}</p>' if note else ""


def scrolling(label: str, body: str) -> str:
    """A wide part that scrolls sideways inside the page, reachable by keyboard."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{body}</div>'


def cell(value: Cell, extra: str = "", kind: str = "", powers: bool = False) -> str:
    """A table cell; numbers are set in figures of equal width. extra: HTML behind the value; powers: see `number`."""
    classes = " ".join(c for c in (kind, "" if isinstance(value, str) else "number") if c)
    shown = escape(number(value, powers=powers))
    return f"<td{f' class={chr(34)}{classes}{chr(34)}' if classes else ''}>{shown}{extra}</td>"


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]], note: str = "") -> Section:
    """A table; the first cell of each row is its header. ValueError for a row of another length than the columns."""
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in columns)
    lines = []
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"table {title!r}: a row has {len(row)} cells for {len(columns)} columns")
        first = f'<th scope="row">{escape(number(row[0]))}</th>'
        lines.append(f"<tr>{first}{''.join(cell(v) for v in row[1:])}</tr>")
    caption = f"<caption>{escape(note)}</caption>" if note else ""
    body = f'<table class="data">{caption}<thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    return Section(title, scrolling(title, body))


def facts(title: str, values: Mapping[str, Cell], note: str = "") -> Section:
    """Names and values, one a line."""
    lines = "".join(f'<tr><th scope="row">{escape(k)}</th>{cell(v)}</tr>' for k, v in values.items())
    return Section(title, scrolling(title, f'<table class="data"><tbody>{lines}</tbody></table>'), note)


def json_block(title: str, data: Any, summary: str = "Show", unfolded: bool = False) -> Section:
    """Plain data as indented JSON, folded away until it is asked for."""
    code = escape(json.dumps(data, indent=2, ensure_ascii=False, default=str))
    state = " open" if unfolded else ""
    return Section(title, f"<details{state}><summary>{escape(summary)}</summary><pre>{code}</pre></details>")


def curves(title: str, panels: Sequence[Panel], note: str = "") -> Section:
    """Drawings side by side under one legend: a series has the same colour and dashes in all of them."""
    order = list(dict.fromkeys(s.name for panel in panels for s in panel.series))
    items = "".join(f"<li>{_swatch(i)}{escape(name)}</li>" for i, name in enumerate(order))
    figures = []
    for panel in panels:
        identity = f"p{zlib.crc32(repr((title, panel)).encode()):08x}"  # unique in the page, equal for equal drawings
        drawing = draw(panel, order, identity) if panel.finite else paragraphs("No values were recorded.")
        figures.append(f"<figure><h3>{escape(panel.title)}</h3>{drawing}</figure>")
    return Section(title, f'<ul class="legend">{items}</ul><div class="panels">{"".join(figures)}</div>', note)


def heat_maps(title: str, panels: Sequence[HeatMap], note: str = "") -> Section:
    """Square matrices side by side, each with its own scale of colours."""
    figures = []
    for panel in panels:
        identity = f"h{zlib.crc32(repr(panel.title).encode() + panel.values.tobytes()):08x}"
        figures.append(f"<figure><h3>{escape(panel.title)}</h3>{draw_heat_map(panel, identity)}</figure>")
    return Section(title, f'<div class="panels">{"".join(figures)}</div>', note)


def tick_rows(title: str, panel: Ticks, note: str = "") -> Section:
    """Rows of ticks under each other, along one axis."""
    drawing = draw_ticks(panel, f"t{zlib.crc32(repr((title, panel)).encode()):08x}")
    return Section(title, scrolling(panel.title, f'<figure class="wide">{drawing}</figure>'), note)


def _swatch(position: int) -> str:
    colour, dash = style(position)
    pattern = f' stroke-dasharray="{dash}"' if dash else ""
    line = f'<line x1="0" y1="4" x2="32" y2="4" stroke="{colour}" stroke-width="3"{pattern}/>'
    return f'<svg viewBox="0 0 32 8" aria-hidden="true">{line}</svg>'


def slug(title: str) -> str:
    """A title as an id: lower-case letters, digits and dashes; never empty, never beginning with a digit."""
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in title.lower())
    return "s-" + "-".join(part for part in kept.split("-") if part)


def picture(images: Tensor, alt: str, factor: int = 1, columns: int = 1) -> str:
    """uint8 images (N, C, H, W) on one inline PNG, `columns` abreast, every pixel enlarged factor x factor times."""
    shown = grid(enlarge(images, factor), min(columns, len(images)), gap=3, background=128)
    data = base64.b64encode(png_bytes(shown)).decode()
    size = f'width="{shown.shape[2]}" height="{shown.shape[1]}"'
    tiny = ' class="tiny"' if factor > 1 else ""
    return f'<img{tiny} src="data:image/png;base64,{data}" {size} alt="{escape(alt)}">'


def by_class(images: Tensor, labels: Tensor, classes: Sequence[int], each: int) -> list[Tensor]:
    """The first `each` images (n <= each, C, H, W) of every class number, in the order of the images."""
    return [images[(labels == k).nonzero().flatten()[:each]] for k in classes]


def class_grids(
    title: str,
    rows: Mapping[str, tuple[Tensor, Tensor]],
    names: Sequence[str],
    *,
    each: int = 4,
    most: int = 10,
    note: str = "",
) -> Section:
    """Samples by class: a row for each source (put the real images among them), a column for each class.

    rows: name -> (uint8 images (N, C, H, W), labels (N,)). names: of the classes 0..K-1; beyond `most` classes, evenly
    spread ones are shown. each: images of a class, two abreast.
    """
    k = len(names)
    shown = range(k) if k <= most else [i * k // most for i in range(most)]
    head = "".join(f'<th scope="col">{escape(names[i])}</th>' for i in shown)
    lines = []
    for source, (images, labels) in rows.items():
        side = int(min(images.shape[-2:]))
        factor = viewing_factor(side, 40)
        cells = []
        for i, part in zip(shown, by_class(images, labels, shown, each), strict=True):
            alt = f"{source}: {len(part)} samples of class {names[i]}"
            sheet = picture(part, alt, factor, columns=2) if len(part) else "–"
            cells.append(f"<td>{sheet}</td>")
        lines.append(f'<tr><th scope="row">{escape(source)}</th>{"".join(cells)}</tr>')
    header = f'<thead><tr><th scope="col"><span>class</span></th>{head}</tr></thead>'
    body = f'<table class="samples">{header}<tbody>{"".join(lines)}</tbody></table>'
    return Section(title, scrolling(title, body), note)


def sheets(title: str, rows: Mapping[str, Tensor], columns: int = 10, note: str = "") -> Section:
    """Samples without classes: a sheet for each source, uint8 images (N, C, H, W) by name.

    Tiny images are enlarged; a single one is taken for a sheet of many.
    """
    figures = []
    for source, images in rows.items():
        height, width = images.shape[-2:]
        factor = (
            viewing_factor(min(height, width), 48) if len(images) > 1 else viewing_factor(max(height, width), SHEET)
        )
        sheet = picture(images, f"{source}: {len(images)} samples", factor, columns)
        figures.append(f"<figure>{scrolling(source, sheet)}<figcaption>{escape(source)}</figcaption></figure>")
    return Section(title, "".join(figures), note)


def spread(n: int, count: int) -> Tensor:
    """`count` numbers spread evenly over 0..n-1, for choosing what to show."""
    return torch.linspace(0, n - 1, min(n, count)).round().long()
