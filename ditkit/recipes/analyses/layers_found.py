"""What the analysis `layers` found on one model, as JSON holds it, and numbers that are read from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from pydantic import Field

from ditkit.config import Settings
from ditkit.evaluation.sections import Cell
from ditkit.evaluation.uncertainty import Interval
from ditkit.recipes.analyses.representation import How, Look, Peak, TeacherLook


class TeacherFound(Settings):
    """A teacher's own numbers, where a block is most alike to it (CKNNA), and the semantic gap with its limits.

    gap: on the images that did not choose the best block.
    """

    own: TeacherLook
    best: Peak | None = None
    gap: float | None = None
    limits: Interval | None = None


class LayersResult(Settings):
    """looks: every block at every time. train_images, test_images: of the probe; images: of likeness."""

    blocks: tuple[int, ...]
    times: tuple[float, ...]
    depth: int
    align_depth: int | None = None
    encoder_blocks: int | None = Field(None, description="DDT: blocks before its decoder's")
    parameters: int
    images: int
    train_images: int
    test_images: int
    classes: int
    how: How
    watched: str
    unprobed: str = Field("", description="why there is no probe")
    missing: str = Field("", description="why the recipe's teachers could not be had")
    looks: tuple[Look, ...]
    teachers: dict[str, TeacherFound] = Field(default_factory=dict)
    best: Peak | None = Field(None, description="highest accuracy")


def accuracy(look: Look) -> float:
    """NaN, which is not drawn, where there is none."""
    return math.nan if look.accuracy is None else look.accuracy


def cknna(look: Look, teacher: str) -> float:
    """NaN, which is not drawn, where there is none."""
    found = look.alike.get(teacher)
    return math.nan if found is None or found.cknna is None else found.cknna


def at(r: LayersResult, t: float) -> list[Look]:
    """The blocks at one time, in order."""
    return [look for look in r.looks if look.t == t]


def highest(values: Iterable[float]) -> float:
    """Of those that are numbers; NaN where none is."""
    return max((v for v in values if math.isfinite(v)), default=math.nan)


def cell(value: float) -> Cell:
    """A table's cell; None for NaN."""
    return round(value, 4) if math.isfinite(value) else None


def best_time(r: LayersResult) -> float:
    """The time of the highest accuracy; without probes, of the highest CKNNA with the first teacher that has one."""
    peaks = [p for p in (r.best, *(f.best for f in r.teachers.values())) if p is not None]
    return peaks[0].t if peaks else r.times[0]


def shared_teachers(results: Mapping[str, LayersResult]) -> list[str]:
    """Teachers that every model was held against, in the order of the first."""
    first, *others = results.values()
    return [name for name in first.teachers if all(name in r.teachers for r in others)]
