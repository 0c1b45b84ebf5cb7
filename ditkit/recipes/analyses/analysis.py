"""What an analysis is: something to measure on a model, and how that is told. One file each, beside this one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator
from torch import Tensor

from ditkit.config import Settings
from ditkit.evaluation import Panel, Section
from ditkit.evaluation.sections import Cell, curves, join, paragraphs, sheets, table
from ditkit.recipes.analyses.subject import Subject

Bar = Callable[..., None]  # bar(stage, done, total)
Uses = Literal["images", "teachers", "sampling", "checkpoints"]


def _parts(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, (int, float)) and not isinstance(value, bool) else _parts(value)


Floats = Annotated[tuple[float, ...], BeforeValidator(_listed)]  # t=0.1,0.5 on a command line
Ints = Annotated[tuple[int, ...], BeforeValidator(_listed)]
Words = Annotated[tuple[str, ...], BeforeValidator(_parts)]


@dataclass(frozen=True)
class Found:
    """What was measured on one model: numbers that JSON holds, and pictures by name, uint8 (C, H, W)."""

    result: Settings
    pictures: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A small table: the first cell of a row is its header."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Shown:
    """The same for people, of one model or of several side by side.

    said: sentences that say what is seen, with its numbers and how sure it is. panels: drawings under one legend.
    pictures: title -> uint8 (C, H, W). note: how it was measured.
    """

    said: Sequence[str]
    panels: Sequence[Panel] = ()
    tables: Mapping[str, Table] = field(default_factory=dict)
    pictures: Mapping[str, Tensor] = field(default_factory=dict)
    note: str = ""

    @property
    def alone(self) -> Shown:
        """The same of one model, whose sentences begin with no name: each with a capital letter."""
        return replace(self, said=[line[:1].upper() + line[1:] for line in self.said])


@dataclass(frozen=True)
class Analysis:
    """One analysis. A new one is one file with an Analysis in it and one line in `analyses.ANALYSES`.

    name: its sub-command and the stem of its files. title: of its section. settings: what can be set, as data;
    result: what its JSON holds. measure(subject, settings, bar) -> Found; show({model's name: Found}) -> Shown, for one
    model or several. fits(subject) says in one line why it cannot be measured on a model, "" where it can. uses: what
    its numbers depend on beside the model and its settings. version: goes up when the same words give other numbers.
    """

    name: str
    title: str
    settings: type[Settings]
    result: type[Settings]
    measure: Callable[[Subject, Any, Bar], Found]
    show: Callable[[Mapping[str, Found]], Shown]
    fits: Callable[[Subject], str] = lambda subject: ""
    uses: tuple[Uses, ...] = ("images",)
    version: int = 1


def section_of(title: str, shown: Shown, of: str = "") -> Section:
    """What was found as a section of a report: sentences, then drawings, tables, pictures, and how it was measured.

    of: on which weights.
    """
    parts = []
    if shown.panels:
        parts.append(curves("Curves", shown.panels))
    parts += [table(name, t.columns, t.rows, t.note) for name, t in shown.tables.items()]
    if shown.pictures:
        parts.append(sheets("Pictures", {name: picture[None] for name, picture in shown.pictures.items()}, columns=1))
    said = Section("", paragraphs(shown.said))
    body = join(title, parts).body if len(parts) > 1 else "".join(part.body for part in parts)
    return Section(title, said.body + body, " ".join(filter(None, (f"Measured on {of}." if of else "", shown.note))))
