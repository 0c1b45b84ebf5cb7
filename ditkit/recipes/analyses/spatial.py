"""Spatial structure: how alike the tokens of one image are, near, far and by region, in every block and teacher."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field

from ditkit.analysis.spatial import Structure, colour_regions, spatial_structure
from ditkit.config import Settings
from ditkit.evaluation import Panel, Series
from ditkit.evaluation.sections import Cell
from ditkit.recipes.analyses.analysis import Analysis, Bar, Floats, Found, Ints, Shown, Table
from ditkit.recipes.analyses.noised import no_grid, noised, teacher_features, teachers_of, token_grid
from ditkit.recipes.analyses.subject import Subject, chosen_blocks
from ditkit.recipes.analyses.words import check_times, compared, middle, of, plus_minus, rivals, standard_error

SCORES = {
    "lds": "Near less distant similarity (LDS)",
    "cds": "Fall of similarity with distance (CDS)",
    "rmsc": "Spatial contrast (RMSC)",
    "region": "Same less other region, at equal distance (ours)",
}
NOTE = (
    "Cosine similarity of the tokens of one image, mean over images, after iREPA (arXiv 2512.10794). LDS: pairs below "
    "half the shorter side of the grid, less the others. CDS: least-squares fall over one shorter side. RMSC: root "
    "mean square distance of unit tokens from their mean. Its SRSS needs masks of regions, which images do not bring: "
    "in its place (ours) two regions by colour, and pairs inside them less pairs across at the same distance. Ours "
    "too: Euclidean distance, both radii. Null condition, where the model has one; ± is one standard error over images."
)


class SpatialSettings(Settings):
    """Where tokens are looked at."""

    t: Floats = Field((0.1, 0.5, 0.9), description="times, 0 = data")
    blocks: Ints = Field((), description="blocks, counted from 1; none: all")


class SpatialScores(Settings):
    """Means over images and their standard errors; profile: mean similarity of tokens 1, 2, ... apart."""

    values: dict[str, float | None]
    errors: dict[str, float | None]
    profile: list[float]


class SpatialResult(Settings):
    """scores[i][j]: at time i after block j."""

    images: int
    grid: tuple[int, int]
    t: list[float]
    blocks: list[int]
    scores: list[list[SpatialScores]]
    teachers: dict[str, SpatialScores]
    missing: str = ""


def scores_of(parts: list[Structure]) -> SpatialScores:
    """The structure of all images as numbers; a region score is of the images that have regions."""
    whole = Structure.join(parts)
    values: dict[str, float | None] = {}
    errors: dict[str, float | None] = {}
    for name in SCORES:
        column = getattr(whole, name)
        column = column[~column.isnan()]
        values[name] = float(column.mean()) if len(column) else None
        errors[name] = standard_error(column) if len(column) else None
    return SpatialScores(values=values, errors=errors, profile=whole.profile.mean(0).tolist())


@torch.no_grad()
def measure(subject: Subject, settings: SpatialSettings, bar: Bar) -> Found:
    """Every block at every time, and each teacher once."""
    check_times(settings.t)
    blocks, grid, n = (
        chosen_blocks(settings.blocks, subject.loaded.settings.depth),
        token_grid(subject),
        len(subject.test),
    )
    regions = colour_regions(subject.test.images, grid)
    scores, device = [], subject.loaded.device
    for i, t in enumerate(settings.t):
        found: dict[int, list[Structure]] = {block: [] for block in blocks}
        for part in noised(subject, t, n):
            hidden = part.run(blocks).hidden
            for block, parts in found.items():
                parts.append(spatial_structure(hidden[block], grid, regions[part.rows].to(device)))
            bar("spatial structure", i * n + int(part.rows[-1]) + 1, len(settings.t) * n)
        scores.append([scores_of(parts) for parts in found.values()])
    teachers, (known, missing) = {}, teachers_of(subject)
    for name, teacher in known.items():
        parts = []
        for rows in torch.arange(n).split(subject.asked.batch):
            tokens = teacher_features(subject, teacher, rows).tokens
            parts.append(spatial_structure(tokens, grid, regions[rows].to(tokens.device)))
        teachers[name] = scores_of(parts)
    return Found(
        SpatialResult(
            images=n, grid=grid, t=list(settings.t), blocks=list(blocks), scores=scores, teachers=teachers,
            missing=missing,
        )
    )  # fmt: skip


def show(found: Mapping[str, Found]) -> Shown:
    """A panel a score, over blocks: one model's times, or several models at the middle time; teachers as levels."""
    results: dict[str, SpatialResult] = {name: f.result for name, f in found.items()}  # type: ignore[misc]
    alone = len(results) == 1
    lines = [
        (f"t = {t:g}" if alone else name, r, i)
        for name, r in results.items()
        for i, t in enumerate(r.t)
        if alone or i == middle(r.t)
    ]
    panels = [panel_of(score, title, lines) for score, title in SCORES.items()]
    panels.append(profile_panel(lines))
    said = [line for name, r in results.items() for line in said_of(name, r)]
    highest = {name: r.scores[middle(r.t)][best(r, middle(r.t), "lds")] for name, r in results.items()}
    said += compared("the highest LDS", {n: (s.values["lds"] or 0.0, s.errors["lds"]) for n, s in highest.items()})
    said += list(dict.fromkeys(r.missing for r in results.values() if r.missing))
    columns = ("model", "t", "block", "LDS", "CDS", "RMSC", "region")
    rows: list[list[Cell]] = [
        [name or "model", t, r.blocks[j], *s.values.values()]
        for name, r in results.items()
        for t, at in zip(r.t, r.scores, strict=True)
        for j, s in enumerate(at)
        if alone or t == r.t[middle(r.t)]
    ]
    first = next(iter(results.values()))
    rows += [[teacher, None, None, *s.values.values()] for teacher, s in first.teachers.items()]
    return Shown(said, panels, {"Spatial structure": Table(columns, rows)}, note=NOTE)


def panel_of(score: str, title: str, lines: list[tuple[str, SpatialResult, int]]) -> Panel:
    """One score over the blocks."""
    series = []
    for name, r, i in lines:
        at = [(b, s.values[score], s.errors[score] or 0.0) for b, s in zip(r.blocks, r.scores[i], strict=True)]
        kept = [(b, v, e) for b, v, e in at if v is not None]
        limits = [(v - e, v + e) for _, v, e in kept]
        series.append(Series(name, [b for b, _, _ in kept], [v for _, v, _ in kept], limits=limits))
    first = lines[0][1]
    ends = [first.blocks[0], first.blocks[-1]]
    levels = {teacher: s.values[score] for teacher, s in first.teachers.items()}
    series += [Series(teacher, ends, [v, v]) for teacher, v in levels.items() if v is not None]
    return Panel(title, series, "block", score)


def profile_panel(lines: list[tuple[str, SpatialResult, int]]) -> Panel:
    """Similarity over distance, after the block of highest LDS, and of the teachers."""
    series = []
    for name, r, i in lines:
        profile = r.scores[i][best(r, i, "lds")].profile
        series.append(Series(name, list(range(1, len(profile) + 1)), profile))
    for teacher, s in lines[0][1].teachers.items():
        series.append(Series(teacher, list(range(1, len(s.profile) + 1)), s.profile))
    return Panel("Similarity over distance, block of highest LDS", series, "distance in tokens", "cosine")


def best(r: SpatialResult, i: int, score: str) -> int:
    """The place of the block of the highest score at time i."""
    return max(range(len(r.blocks)), key=lambda j: r.scores[i][j].values[score] or 0.0)


def said_of(name: str, r: SpatialResult) -> list[str]:
    """What is seen at the time that is nearest to 0.5."""
    i = middle(r.t)
    said = []
    for score, word in (("lds", "local structure (LDS)"), ("rmsc", "spatial contrast (RMSC)")):
        values = [s.values[score] or 0.0 for s in r.scores[i]]
        errors = [s.errors[score] for s in r.scores[i]]
        j = best(r, i, score)
        line = f"{of(name)}at t = {r.t[i]:g}, {word} is highest after block {r.blocks[j]}, "
        line += plus_minus(values[j], errors[j])
        if close := rivals(values, errors, j):
            line += f" (not told apart from block {', '.join(str(r.blocks[k]) for k in close)})"
        levels = [f"{n} {plus_minus(s.values[score] or 0.0, s.errors[score])}" for n, s in r.teachers.items()]
        said.append(line + (f"; teachers: {', '.join(levels)}." if levels else "."))
    if len(r.t) > 1:
        ends = [(r.t[k], r.scores[k][best(r, k, "lds")].values["lds"] or 0.0) for k in (0, len(r.t) - 1)]
        said.append(
            f"{of(name)}the highest LDS of any block is {plus_minus(ends[0][1])} at t = {ends[0][0]:g} "
            f"and {plus_minus(ends[1][1])} at t = {ends[1][0]:g}."
        )
    return said


ANALYSIS = Analysis(
    "spatial", "Spatial structure", SpatialSettings, SpatialResult, measure, show, no_grid, uses=("images", "teachers")
)
