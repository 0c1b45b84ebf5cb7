"""A sweep in words, as tables and as a page with a plot for every score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ditkit.evaluation import Panel, Report, Section, Series, write_report
from ditkit.evaluation.score_table import TITLES
from ditkit.evaluation.sections import curves, facts, json_block, number, table
from ditkit.evaluation.uncertainty import seed_spread, student, within_noise
from ditkit.recipes.sweep import PAGE, Sweep, SweepPoint, Value

HEADLINES = ("frechet", "agreement")  # metrics of the printed table; the page has all
BEST = ("space", "score", "best at", "value", "95 %", "real half/half", "within noise of it")
FEWEST = 3  # seeds that say how sure a difference is: with two, Student's limits are as good as none
FRECHET = ("frechet", "spatial_frechet")


@dataclass(frozen=True)
class Behind:
    """How far another point is behind the best. noise: half of the difference's limits; None where it is not known."""

    point: SweepPoint
    difference: float
    noise: float | None

    @property
    def clear(self) -> bool | None:
        """Whether it is behind by more than noise; None where that is not known."""
        return None if self.noise is None else abs(self.difference) > self.noise


@dataclass(frozen=True)
class Best:
    """The best point for one score, and the others behind it, the nearest first."""

    space: str
    metric: str
    point: SweepPoint
    value: Value
    others: tuple[Behind, ...]

    @property
    def tied(self) -> tuple[SweepPoint, ...]:
        """The others that cannot be told from it."""
        return tuple(other.point for other in self.others if other.clear is False)

    @property
    def unknown(self) -> bool:
        """Whether there are no limits to tell by."""
        return any(other.clear is None for other in self.others)

    @property
    def equal(self) -> bool:
        """Whether all points have the very same value: none is the best."""
        return bool(self.others) and all(other.difference == 0 for other in self.others)


def distinct(sweep: Sweep) -> list[SweepPoint]:
    """The points, of those that sample alike (scale 1 in any interval) the first."""
    kept: dict[tuple[str, ...], SweepPoint] = {}
    for p in sweep.points:
        kept.setdefault(p.folders, p)
    return list(kept.values())


def find_best(sweep: Sweep) -> list[Best]:
    """The best point of every score, in the order of the scores."""
    points, found = distinct(sweep), []
    for space, first in sweep.points[0].spaces.items():
        for metric, one in first.values.items():
            sign = 1 if one.better == "lower" else -1
            best = min(points, key=lambda p: sign * p.spaces[space].values[metric].value)
            value = best.spaces[space].values[metric]
            others = [p for p in points if p is not best]
            told = [Behind(p, *gap(value, p.spaces[space].values[metric], metric, len(others))) for p in others]
            told.sort(key=lambda other: abs(other.difference))
            found.append(Best(space, metric, best, value, tuple(told)))
    return found


def gap(a: Value, b: Value, metric: str, comparisons: int = 1) -> tuple[float, float | None]:
    """(b - a, half of its 95 % limits, None where they are not known: without limits, or of two seeds).

    With several seeds by the differences seed by seed, which start from the same noise and labels; with one by the
    limits over its samples (cautious: equal noise makes the two vary together). comparisons: of which all are to hold
    together (Bonferroni). Seeds that all differ alike show no spread, which is no certainty: the whole gap is noise.
    """
    if len(a.seeds) > 1:
        found = seed_spread([y - x for x, y in zip(a.seeds, b.seeds, strict=True)])
        if len(a.seeds) < FEWEST:
            return found.mean, None
        return found.mean, student(len(a.seeds) - 1, comparisons) * found.error or abs(found.mean)
    if a.interval is None or b.interval is None:
        return b.value - a.value, None
    told = within_noise(a.value, b.value, (a.interval, b.interval), trainings=False, frechet=metric in FRECHET)
    return told.difference, told.noise * student(math.inf, comparisons) / student(math.inf)


def name_point(p: SweepPoint, sweep: Sweep) -> str:
    """ "guidance 1.5, 25 steps": what varies in this sweep, and always the scale."""
    return ", ".join([f"guidance {p.guidance:g}" if p.guidance != 1 else "no guidance", *_line(p, sweep)])


def _line(p: SweepPoint, sweep: Sweep) -> list[str]:
    told = [f"{p.steps} steps"] if len({q.steps for q in sweep.points}) > 1 else []
    if p.interval is not None and p.guidance != 1 and len({q.interval for q in sweep.points}) > 1:
        told.append(f"for {p.interval[0]:g} <= t <= {p.interval[1]:g}")
    return told


def limits_of(value: Value) -> str:
    """ "12.1 to 13.4", or nothing."""
    return "" if value.interval is None else f"{number(value.interval[0])} to {number(value.interval[1])}"


def best_lines(sweep: Sweep) -> list[tuple[str, ...]]:
    """The cells of BEST for every score."""
    lines: list[tuple[str, ...]] = []
    for b in find_best(sweep):
        floor = sweep.floors[b.space].get(b.metric)
        if b.metric == "agreement":
            floor = sweep.classifier_accuracy
        at, limits = "all equal" if b.equal else name_point(b.point, sweep), limits_of(b.value)
        lines.append((b.space, b.metric, at, number(b.value.value), limits, number(floor), _tied(b, sweep)))
    return lines


def _tied(b: Best, sweep: Sweep) -> str:
    """The points that cannot be told from the best one, in words; "none" where it is clearly the best."""
    if b.equal:
        return "all others"
    if b.unknown:
        return "not known"
    if len(b.tied) > 1 and len(b.tied) == len(b.others):
        return "all others"
    return "; ".join(name_point(p, sweep) for p in b.tied) or "none"


def summary(sweep: Sweep) -> list[str]:
    """The finding in words: the best point by Fréchet distance in each space, and how sure that is."""
    lines = []
    for b in find_best(sweep):
        if b.metric != "frechet":
            continue
        if b.equal:
            lines.append(f"Fréchet distance in {b.space}: all points are equal, {number(b.value.value)}.")
            continue
        limits = f" ({limits_of(b.value)})" if b.value.interval else ""
        at = f"best with {name_point(b.point, sweep)}, {number(b.value.value)}{limits}"
        said = f"Fréchet distance in {b.space}: {at}.{_how_sure(b, sweep)}"
        if (edge := at_edge(b.point, sweep)) and not b.tied:
            said += f" It is at the {edge} end of the scales: sweep further."
        lines.append(said)
    return [*lines, "The best of many is flattered by chance: for a table, score it once more with another seed."]


def _how_sure(b: Best, sweep: Sweep) -> str:
    """What the limits of the differences say of the best point; "" for the only one."""
    if not b.others:
        return ""
    if b.unknown and len(b.value.seeds) == 2:
        return f" Two seeds do not say how sure that is: take --seeds {FEWEST}."
    if b.unknown:
        return f" There are no limits to say how sure that is: take --seeds {FEWEST}."
    if b.tied:
        return f" Within noise of it: {_tied(b, sweep)}."
    near, noise = abs(b.others[0].difference), b.others[0].noise or 0.0
    together = f" for all {len(b.others)} comparisons together" if b.others[1:] else ""
    limits = f"95 % limits of the difference{together} {number(near - noise)} to {number(near + noise)}"
    nearest = f"the nearest, {name_point(b.others[0].point, sweep)}, is {number(near)} worse ({limits})"
    return f" It is better than every other point by more than noise; {nearest}."


def at_edge(p: SweepPoint, sweep: Sweep) -> str:
    """ "upper" or "lower" where the best scale is the last one tried; scale 1 is a natural end."""
    scales = sorted({q.guidance for q in sweep.points})
    if len(scales) < 2 or p.guidance not in (scales[0], scales[-1]) or p.guidance == 1:
        return ""
    return "upper" if p.guidance == scales[-1] else "lower"


def columns(sweep: Sweep) -> list[str]:
    """The heads of `rows`."""
    return ["guidance", "interval", "steps", "evaluations", *(f"{m}, {s}" for s, m in _headlines(sweep))]


def rows(sweep: Sweep) -> list[list[str]]:
    """A line for each point: how it samples, and its main scores with limits."""
    lines = []
    for p in distinct(sweep):
        interval = "" if p.interval is None or p.guidance == 1 else f"{p.interval[0]:g} to {p.interval[1]:g}"
        cells = [f"{p.guidance:g}", interval, f"{p.steps}", f"{p.evaluations:g}"]
        for space, metric in _headlines(sweep):
            value = p.spaces[space].values[metric]
            limits = f" ({limits_of(value)})" if value.interval else ""
            cells.append(f"{number(value.value)}{limits}")
        lines.append(cells)
    return lines


def _headlines(sweep: Sweep) -> list[tuple[str, str]]:
    spaces = sweep.points[0].spaces
    return [(s, m) for s, space in spaces.items() for m in HEADLINES if m in space.values]


def panels(sweep: Sweep, space: str) -> list[Panel]:
    """A drawing for every score of a space: over the scale, or over the steps where there is one scale only."""
    by_steps = len({p.guidance for p in sweep.points}) == 1 and len({p.steps for p in sweep.points}) > 1
    groups: dict[str, list[SweepPoint]] = {}
    for p in sweep.points:
        several = len({q.interval for q in sweep.points}) > 1 and p.interval is not None
        interval = f"{p.interval[0]:g} <= t <= {p.interval[1]:g}" if several and p.interval else ""
        steps = "" if by_steps else f"{p.steps} steps"
        groups.setdefault(", ".join(filter(None, (steps, interval))) or "scores", []).append(p)
    drawn = []
    for metric, one in sweep.points[0].spaces[space].values.items():
        lines = [series(name, group, space, metric, by_steps) for name, group in groups.items()]
        title = f"{TITLES.get(metric, metric)} ({one.better} is better)"
        drawn.append(Panel(title, lines, "steps" if by_steps else "guidance scale"))
    return drawn


def series(name: str, points: Sequence[SweepPoint], space: str, metric: str, by_steps: bool) -> Series:
    """One line of a drawing, with its limits as bars."""
    values = [p.spaces[space].values[metric] for p in points]
    x = [float(p.steps) if by_steps else p.guidance for p in points]
    limits = [v.interval or (v.value, v.value) for v in values]
    return Series(name, x, [v.value for v in values], limits=limits if any(v.interval for v in values) else ())


def page(sweep: Sweep) -> Report:
    """The report of a sweep."""
    over = f"over {len(sweep.seeds)} seeds (Student's t)" if len(sweep.seeds) > 1 else "over the samples of one seed"
    note = f"Bars: 95 % limits {over}. Scale 1 is no guidance."
    best = table(
        "Best points", BEST, best_lines(sweep),
        "All points start from the same noise and labels, so that they are compared pairwise where there are seeds, "
        f"{FEWEST} at least. Limits of differences hold for all other points together (Bonferroni).",
    )  # fmt: skip
    plots = [curves(f"Over the scale: {space}", panels(sweep, space), note) for space in sweep.points[0].spaces]
    return Report(
        f"Sweep of {sweep.what}", summary(sweep),
        [best, *plots, table("Points", columns(sweep), rows(sweep), note), how(sweep),
         json_block("Numbers", sweep.model_dump(mode="json"), "Show all numbers and protocols")],
    )  # fmt: skip


def how(sweep: Sweep) -> Section:
    """What was held against what."""
    values: dict[str, str | int | float | None] = {
        "weights": sweep.weights, "real images": sweep.data, "images of each point and seed": sweep.n,
        "seeds": ", ".join(map(str, sweep.seeds)), "classifier, held-out accuracy": sweep.classifier_accuracy,
    }  # fmt: skip
    values |= {f"protocol, {s}": p.protocol.sentence() for s, p in sweep.points[0].spaces.items()}
    return facts(
        "How it was measured", {k: v for k, v in values.items() if v is not None}, "Protocols of the first point."
    )


def write_page(sweep: Sweep, folder: Path) -> Path:
    """Write sweep.html."""
    return write_report(page(sweep), folder / PAGE)
