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
from ditkit.recipes.analyses.verdicts import (
    HALVES,
    Standing,
    above,
    changed,
    gap,
    halves,
    ranked,
    side_by_side,
)
from ditkit.recipes.analyses.words import check_times, middle, of, plus_minus, standard_error

SCORES = {
    "lds": "Near less distant similarity (LDS)",
    "cds": "Fall of similarity with distance (CDS)",
    "rmsc": "Spatial contrast (RMSC)",
    "region": "Same less other region, at equal distance (ours)",
}
WORDS = {"lds": "local structure (LDS)", "rmsc": "spatial contrast (RMSC)"}
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


class Peak(Settings):
    """The block where a score is highest, by half of the images, and what the others have there (`each`, in order).

    rivals: the blocks that it is not above there beyond noise, image by image.
    """

    block: int
    value: float
    error: float
    rivals: list[int]
    each: list[float]


class SpatialResult(Settings):
    """scores[i][j]: at time i after block j, of all images; peaks[score][i]: None where the score is undefined."""

    images: int
    watched: str
    peaks: dict[str, list[Peak | None]]
    grid: tuple[int, int]
    t: list[float]
    blocks: list[int]
    scores: list[list[SpatialScores]]
    teachers: dict[str, SpatialScores]
    missing: str = ""


def scores_of(whole: Structure) -> SpatialScores:
    """The structure of all images as numbers; a region score is of the images that have regions."""
    values: dict[str, float | None] = {}
    errors: dict[str, float | None] = {}
    for name in SCORES:
        column = getattr(whole, name)
        column = column[~column.isnan()]
        values[name] = float(column.mean()) if len(column) else None
        errors[name] = standard_error(column) if len(column) else None
    return SpatialScores(values=values, errors=errors, profile=whole.profile.mean(0).tolist())


def peak_of(score: str, seen: Mapping[int, Structure]) -> Peak | None:
    """Where a score is highest over blocks; None where an image has none, or there is a single image."""
    table = torch.stack([getattr(whole, score) for whole in seen.values()])  # (blocks, images)
    choose, judge = halves(table.shape[1])
    if table.isnan().any() or not len(judge):
        return None
    best = int(table[:, choose].mean(1).argmax())
    each, blocks = table[best, judge], list(seen)
    rivals = [blocks[j] for j, other in enumerate(table[:, judge]) if j != best and not above(each - other)]
    error = standard_error(each)
    return Peak(block=blocks[best], value=float(each.mean()), error=error, rivals=rivals, each=each.tolist())


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
    peaks: dict[str, list[Peak | None]] = {"lds": [], "rmsc": []}
    for i, t in enumerate(settings.t):
        found: dict[int, list[Structure]] = {block: [] for block in blocks}
        for part in noised(subject, t, n):
            hidden = part.run(blocks).hidden
            for block, parts in found.items():
                parts.append(spatial_structure(hidden[block], grid, regions[part.rows].to(device)))
            bar("spatial structure", i * n + int(part.rows[-1]) + 1, len(settings.t) * n)
        seen = {block: Structure.join(parts) for block, parts in found.items()}
        scores.append([scores_of(whole) for whole in seen.values()])
        for score, at in peaks.items():
            at.append(peak_of(score, seen))
    teachers, (known, missing) = {}, teachers_of(subject)
    for name, teacher in known.items():
        parts = []
        for rows in torch.arange(n).split(subject.asked.batch):
            tokens = teacher_features(subject, teacher, rows).tokens
            parts.append(spatial_structure(tokens, grid, regions[rows].to(tokens.device)))
        teachers[name] = scores_of(Structure.join(parts))
    return Found(
        SpatialResult(
            images=n, watched=subject.watched, peaks=peaks, grid=grid, t=list(settings.t),
            blocks=list(blocks), scores=scores, teachers=teachers,
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
    panels = [panel for panel in (*panels, profile_panel(lines)) if panel.finite]
    said = [line for name, r in results.items() for line in said_of(name, r)]
    for score, word in WORDS.items():
        highest = {name: p for name, r in results.items() if (p := r.peaks[score][middle(r.t)]) is not None}
        seen = {n: Standing(p.value, each=p.each, where=f" after block {p.block}") for n, p in highest.items()}
        verdict = ranked(f"In {word}", seen, plus_minus)
        said += side_by_side(verdict) if score == "lds" else verdict
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
    of_what = f"Of {first.images} {first.watched}. {HALVES}; curves and the table are of all. "
    return Shown(said, panels, {"Spatial structure": Table(columns, rows)}, note=of_what + NOTE)


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
        if (peak := r.peaks["lds"][i]) is None:
            continue
        profile = r.scores[i][r.blocks.index(peak.block)].profile
        series.append(Series(name, list(range(1, len(profile) + 1)), profile))
    for teacher, s in lines[0][1].teachers.items():
        series.append(Series(teacher, list(range(1, len(s.profile) + 1)), s.profile))
    return Panel("Similarity over distance, block of highest LDS", series, "distance in tokens", "cosine")


def said_of(name: str, r: SpatialResult) -> list[str]:
    """What is seen at the time that is nearest to 0.5."""
    i = middle(r.t)
    said = []
    for score, word in WORDS.items():
        if (peak := r.peaks[score][i]) is None:
            said.append(f"{of(name)}{word} is undefined on a grid of {r.grid[0]} x {r.grid[1]}, or for a single image.")
            continue
        line = f"{of(name)}at t = {r.t[i]:g}, {word} is highest after block {peak.block}, "
        line += plus_minus(peak.value, peak.error)
        if peak.rivals:
            line += f" (not surely above block {', '.join(map(str, peak.rivals))})"
        levels = [f"{n} {plus_minus(v, s.errors[score])}" for n, s in r.teachers.items() if (v := s.values[score])]
        said.append(line + (f"; teachers: {', '.join(levels)}." if levels else "."))
    first, last = r.peaks["lds"][0], r.peaks["lds"][-1]
    if len(r.t) > 1 and first is not None and last is not None:
        how = gap(Standing(last.value, each=last.each), Standing(first.value, each=first.each))
        said.append(
            f"{of(name)}the highest LDS of any block is {plus_minus(first.value, first.error)} at t = {r.t[0]:g} "
            f"and {plus_minus(last.value, last.error)} at t = {r.t[-1]:g}: {changed(how)}."
        )
    return said


def too_small(subject: Subject) -> str:
    """Why near and far tokens cannot be told apart; "" where they can."""
    return no_grid(subject, 3)


ANALYSIS = Analysis(
    "spatial",
    "Spatial structure",
    SpatialSettings,
    SpatialResult,
    measure,
    show,
    too_small,
    uses=("images", "teachers"),
)
