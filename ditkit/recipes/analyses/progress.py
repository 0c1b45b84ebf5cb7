"""How what a network knows grows over a run's checkpoints: the numbers of `layers`, at one time or a few."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from ditkit.analysis.linear import PaperProbe
from ditkit.analysis.probe import spread
from ditkit.config import Settings
from ditkit.evaluation import Panel, Series
from ditkit.evaluation.sections import Cell
from ditkit.evaluation.uncertainty import Interval
from ditkit.recipes.analyses.analysis import Analysis, Bar, Floats, Found, Ints, Shown, Table
from ditkit.recipes.analyses.layers_found import cell
from ditkit.recipes.analyses.layers_said import PREPARED, PROBES, percent, score, standing
from ditkit.recipes.analyses.representation import (
    Bench,
    How,
    Kind,
    Look,
    Peak,
    Preparation,
    TeacherLook,
    no_null,
)
from ditkit.recipes.analyses.subject import Subject, chosen_blocks
from ditkit.recipes.analyses.verdicts import HALVES, changed, gap, judged, ranked, side_by_side
from ditkit.recipes.analyses.words import check_times
from ditkit.recipes.load import load
from ditkit.training import list_steps
from ditkit.training.weights import describe

MOST = 12  # checkpoints that are looked at, where none are named


class ProgressSettings(Settings):
    """Which checkpoints, where to look, and how; probe=paper has the paper's own numbers."""

    checkpoints: Ints = Field((), description=f"steps; none: all of the run, at most {MOST} evenly spread")
    t: Floats = Field((0.5,), description="times, 0 = data, 1 = noise")
    blocks: Ints = Field((), description="1-based; none: all")
    probe: Kind = Field("ridge", description="as in layers")
    k: int = Field(10, ge=2, description="as in layers")
    prepare: Preparation = Field("normalise", description="as in layers")


class Checkpoint(Settings):
    """What was seen at one step of training; peaks: what (a teacher, or "": a probe) -> the best block at each time."""

    step: int
    looks: tuple[Look, ...]
    peaks: dict[str, tuple[Peak | None, ...]]


class Change(Settings):
    """Of CKNNA with a teacher from the first checkpoint to the last, on the same images, with 95 % limits."""

    difference: float
    limits: Interval | None = None


class ProgressResult(Settings):
    """checkpoints in the order of training; the teachers do not change. changes: teacher -> at each time."""

    watched: str
    times: tuple[float, ...]
    blocks: tuple[int, ...]
    align_depth: int | None = None
    images: int
    train_images: int
    classes: int
    weights: str
    how: How
    unprobed: str = ""
    missing: str = ""
    checkpoints: tuple[Checkpoint, ...]
    changes: dict[str, tuple[Change | None, ...]] = Field(default_factory=dict)
    teachers: dict[str, TeacherLook] = Field(default_factory=dict)


def measure(subject: Subject, settings: ProgressSettings, bar: Bar) -> Found:
    """The same images, noise and teachers at every checkpoint. ValueError for steps that the run has not."""
    check_times(settings.t)
    loaded, folder = subject.loaded, subject.folder
    assert folder is not None  # `fits` has seen to it
    there = list_steps(folder)
    if wrong := [step for step in settings.checkpoints if step not in there]:
        raise ValueError(f"checkpoints={wrong[0]}: {folder} has those of steps {', '.join(map(str, there))}")
    steps = sorted(settings.checkpoints) or [there[i] for i in spread(len(there), MOST)]
    blocks = chosen_blocks(settings.blocks, loaded.settings.depth)
    bench = Bench(subject, How(probe=settings.probe, paper=PaperProbe(), k=settings.k, prepare=settings.prepare), bar)
    teachers, weights, seen = bench.teacher_looks(), loaded.weights, []
    ends: list[dict[tuple[str, int], Tensor]] = []  # of the first and the last: teacher, time -> the best's features
    for step in steps:
        model = load(folder, weights, step=step).model.to(loaded.device)
        looks: list[Look] = []
        peaks: dict[str, list[Peak | None]] = {}
        leaders: dict[tuple[str, int], Tensor] = {}
        for i, t in enumerate(settings.t):
            bench.begin()
            looks += bench.look(model, t, blocks, f"progress at step {step}")
            peaks.setdefault("", []).append(bench.probe_peak())
            for teacher in teachers:
                peaks.setdefault(teacher, []).append(bench.cknna_peak(teacher))
            leaders |= {(teacher, i): best.features for teacher, best in bench.best.items()}
        ends = [*ends[:1], leaders]
        seen.append(Checkpoint(step=step, looks=tuple(looks), peaks={what: tuple(p) for what, p in peaks.items()}))
    return Found(
        ProgressResult(
            times=settings.t, blocks=blocks, align_depth=loaded.align_depth, images=len(bench.test),
            train_images=bench.probed[0], classes=bench.classes, weights=weights, how=bench.how,
            watched=subject.watched,
            changes=changes_of(bench, ends, len(settings.t)), unprobed=bench.unprobed, missing=bench.missing,
            checkpoints=tuple(seen), teachers=teachers,
        )
    )  # fmt: skip


def changes_of(
    bench: Bench, ends: list[dict[tuple[str, int], Tensor]], times: int
) -> dict[str, tuple[Change | None, ...]]:
    """How likeness to each teacher changed at each time; None where it was undefined, or at a single checkpoint."""
    first, last = ends[0], ends[-1]

    def change(teacher: str, i: int) -> Change | None:
        if len(ends) < 2 or (teacher, i) not in first or (teacher, i) not in last:
            return None
        try:
            difference, limits = bench.cknna_change(teacher, first[teacher, i], last[teacher, i])
        except ValueError:  # undefined on the images that judge
            return None
        return Change(difference=difference, limits=limits)

    return {teacher: tuple(change(teacher, i) for i in range(times)) for teacher in bench.teachers}


def show(found: Mapping[str, Found]) -> Shown:
    """The best block over training: a line for each time, or for each model at its first time."""
    results: dict[str, ProgressResult] = {name: f.result for name, f in found.items()}  # type: ignore[misc]
    alone = len(results) == 1
    lines = [(name or f"t = {t:g}", r, t) for name, r in results.items() for t in (r.times if alone else r.times[:1])]
    panels = []
    if probed := [line for line in lines if not line[1].unprobed]:
        drawn = [Series(name, _steps(r), _best(r, t, "")) for name, r, t in probed]
        if alone:
            own = {name: look.accuracy for name, look in probed[0][1].teachers.items() if look.accuracy is not None}
            drawn += [Series(name, _steps(probed[0][1]), [v] * len(drawn[0].x)) for name, v in own.items()]
        panels.append(Panel("Accuracy of the best block over training", drawn, "step", "accuracy"))
    first = lines[0][1]
    for teacher in (name for name in first.teachers if all(name in r.teachers for r in results.values())):
        drawn = [Series(name, _steps(r), _best(r, t, teacher)) for name, r, t in lines]
        panels.append(Panel(f"CKNNA with {teacher} of the best block over training", drawn, "step", "CKNNA"))
    said = [sentence for name, r, t in lines for sentence in _say("" if alone else name, r, t)]
    said += [] if alone else side_by_side(_say_several(results))
    tables = {"Checkpoints": _table(results)}
    return Shown(said, panels, tables, note=_note(first))


def _steps(r: ProgressResult) -> list[int]:
    return [c.step for c in r.checkpoints]


def _peak(c: Checkpoint, r: ProgressResult, t: float, teacher: str) -> Peak | None:
    """The block of a checkpoint where CKNNA with a teacher, or accuracy (""), is highest at one time."""
    return c.peaks[teacher][r.times.index(t)]


def _best(r: ProgressResult, t: float, teacher: str) -> list[float]:
    """Of every checkpoint the number of its best block at one time; NaN where there is none."""
    peaks = [_peak(c, r, t, teacher) for c in r.checkpoints]
    return [math.nan if peak is None else peak.value for peak in peaks]


def _say_several(results: Mapping[str, ProgressResult]) -> list[str]:
    """Which model is ahead at its last checkpoint, at the first time."""
    said = []
    first = next(iter(results.values()))
    for what in ("", *first.teachers):
        last = {
            n: _peak(r.checkpoints[-1], r, r.times[0], what)
            for n, r in results.items()
            if what in r.checkpoints[-1].peaks
        }
        seen = {n: standing(p) for n, p in last.items() if p is not None}
        named = f"CKNNA with {what}" if what else "the accuracy of a linear probe"
        said += ranked(f"At the last checkpoint, in {named}", seen, score if what else percent)
    return said


def _say(name: str, r: ProgressResult, t: float) -> list[str]:
    """First and last checkpoint, and where it was highest."""
    said = []
    first, last = r.checkpoints[0], r.checkpoints[-1]
    who = f"{name}: " if name else ""
    for teacher in ([] if r.unprobed else [""]) + list(r.teachers):
        values = _best(r, t, teacher)
        if not any(map(math.isfinite, values)):
            continue
        form = score if teacher else percent
        what = f"CKNNA with {teacher}" if teacher else "The accuracy of a linear probe"
        before, after = _peak(first, r, t, teacher), _peak(last, r, t, teacher)
        if before is None or after is None:
            continue
        line = (
            f"{who}{what} at t = {t:g} goes from {form(values[0])} at step {first.step:,} (block {before.block}) to "
            f"{form(values[-1])} at step {last.step:,} (block {after.block})"
        )
        if teacher:
            change = r.changes[teacher][r.times.index(t)]
            how = gap(standing(after), standing(before)) if change is None else judged(change.difference, change.limits)
        else:
            how = gap(standing(after), standing(before))
        line += f": {changed(how)}."
        top = max(range(len(values)), key=lambda i: -math.inf if math.isnan(values[i]) else values[i])
        if top != len(values) - 1:
            line += f" It is highest at step {r.checkpoints[top].step:,}: {form(values[top])}."
        said.append(line)
    if r.missing:
        said.append(f"{who}likeness to the recipe's teacher was not measured: {r.missing}")
    return said


def _table(results: Mapping[str, ProgressResult]) -> Table:
    """A row for each checkpoint and time."""
    teachers = list(dict.fromkeys(name for r in results.values() for name in r.teachers))
    columns = ["step", "model", "t", "best accuracy", "block"]
    columns += [word for name in teachers for word in (f"best CKNNA, {name}", "block")]
    rows: list[list[Cell]] = []
    for model, r in results.items():
        for c, t in ((c, t) for c in r.checkpoints for t in r.times):
            row: list[Cell] = [c.step, model or "model", f"{t:g}"]
            for teacher in ("", *teachers):
                peak = _peak(c, r, t, teacher) if teacher in c.peaks and t in r.times else None
                row += [None, None] if peak is None else [cell(peak.value), str(peak.block)]
            rows.append(row)
    return Table(columns, rows)


def _note(r: ProgressResult) -> str:
    probe = "" if r.unprobed else f" Probe: {PROBES[r.how.probe]}, {r.train_images:,} images of {r.classes} classes."
    alike = f" CKNNA: k = {r.how.k}, features {PREPARED[r.how.prepare]}." if r.teachers else ""
    averaged = describe(r.weights)
    return (
        f"Of each checkpoint's {averaged} weights, on {r.images:,} {r.watched} with the same noise; null condition, "
        f"mean token, the best of blocks {', '.join(map(str, r.blocks))}.{probe}{alike} {HALVES}."
    )


def fits(subject: Subject) -> str:
    """Only a run with several checkpoints can be followed."""
    if subject.folder is None:
        return "it is no run, so it has no checkpoints of its training"
    steps = list_steps(subject.folder)
    if len(steps) < 2:
        return f"the run has kept {len(steps)} checkpoint; training.keep_every=N or keep_last=N keeps more"
    return no_null(subject)


ANALYSIS = Analysis(
    "progress",
    "What is learned when",
    ProgressSettings,
    ProgressResult,
    measure,
    show,
    fits,
    uses=("images", "teachers", "checkpoints"),
)
