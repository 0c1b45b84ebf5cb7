"""report.html: one file that needs no network, no other file and no JavaScript."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from pathlib import Path

from ditkit.evaluation.files import write_bytes
from ditkit.evaluation.sections import Section, paragraphs, slug

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # the browser itself refuses to fetch anything


@dataclass(frozen=True)
class Report:
    """A page: what was done in one line, the findings in plain words, then sections in order.

    Sections come from `ditkit.evaluation.sections` and `score_table`; anything that returns a Section fits in.
    """

    title: str
    summary: str | Sequence[str]
    sections: list[Section] = field(default_factory=list)
    footer: str = ""

    def add(self, *sections: Section) -> Report:
        """The same report with further sections at its end."""
        return Report(self.title, self.summary, [*self.sections, *sections], self.footer)


def _identities(sections: Sequence[Section]) -> list[str]:
    """An anchor for each section; equal titles get numbers."""
    seen: dict[str, int] = {}
    names = []
    for section in sections:
        base = slug(section.title)
        seen[base] = seen.get(base, 0) + 1
        names.append(base if seen[base] == 1 else f"{base}-{seen[base]}")
    return names


def render(report: Report) -> str:
    """The report as one HTML document."""
    anchors = _identities(report.sections)
    links = "".join(
        f'<li><a href="#{anchor}">{escape(section.title)}</a></li>'
        for anchor, section in zip(anchors, report.sections, strict=True)
    )
    parts = []
    for anchor, section in zip(anchors, report.sections, strict=True):
        note = f'<p class="note">{escape(section.note)}</p>' if section.note else ""
        heading = f'<h2 id="{anchor}-title">{escape(section.title)}</h2>'
        parts.append(f'<section id="{anchor}" aria-labelledby="{anchor}-title">{heading}{section.body}{note}</section>')
    style = resources.files("ditkit.evaluation").joinpath("report.css").read_text(encoding="utf-8")
    navigation = f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if len(parts) > 1 else ""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(report.title)}</title><style>{style}</style>"
    )
    intro = f'<h1>{escape(report.title)}</h1><div class="summary">{paragraphs(report.summary)}</div>{navigation}'
    foot = f"<footer>{paragraphs(report.footer)}</footer>" if report.footer else ""
    body = "\n".join(parts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n'
        f"<body><header>{intro}</header>\n<main>{body}</main>{foot}</body></html>\n"
    )


def write_report(report: Report, path: str | Path) -> Path:
    """Write the report to `path`, atomically; returns the path."""
    return write_bytes(path, render(report).encode("utf-8"))
