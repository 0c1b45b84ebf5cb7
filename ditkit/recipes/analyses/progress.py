"""How what a network knows grows over a run's checkpoints: the numbers of `layers`, at one time or a few."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import Field

from ditkit.analysis.linear import PaperProbe
from ditkit.analysis.probe import spread
from ditkit.config import Settings
from ditkit.evaluation import Panel, Series
from ditkit.evaluation.sections import Cell
from ditkit.recipes.analyses.analysis import Analysis, Bar, Floats, Found, Ints, Shown, Table
from ditkit.recipes.analyses.layers_found import accuracy, cell, cknna, highest
from ditkit.recipes.analyses.layers_said import PREPARED, PROBES, overlap, percent, score
from ditkit.recipes.analyses.representation import (
    Bench,
    How,
    Kind,
    Look,
    Preparation,
    TeacherLook,
    no_null,
)
from ditkit.recipes.analyses.subject import Subject, chosen_blocks
from ditkit.recipes.analyses.words import check_times
from ditkit.recipes.load import load
from ditkit.training import list_steps

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
    """What was seen at one step of training."""

    step: int
    looks: tuple[Look, ...]


class ProgressResult(Settings):
    """checkpoints in the order of training; the teachers do not change."""

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
    teachers, weights, seen = bench.teacher_looks(), "raw" if loaded.weights == "raw" else "ema", []
    for step in steps:
        model = load(folder, weights, step=step).model.to(loaded.device)  # type: ignore[arg-type]
        looks = [look for t in settings.t for look in bench.look(model, t, blocks, f"progress at step {step}")]
        seen.append(Checkpoint(step=step, looks=tuple(looks)))
    return Found(
        ProgressResult(
            times=settings.t, blocks=blocks, align_depth=loaded.align_depth, images=len(bench.test),
            train_images=bench.probed[0], classes=bench.classes, weights=weights, how=bench.how,
            unprobed=bench.unprobed, missing=bench.missing, checkpoints=tuple(seen), teachers=teachers,
        )
    )  # fmt: skip


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
    tables = {"Checkpoints": _table(results)}
    return Shown(said, panels, tables, note=_note(first))


def _steps(r: ProgressResult) -> list[int]:
    return [c.step for c in r.checkpoints]


def _value(look: Look, teacher: str) -> float:
    """A look's CKNNA with a teacher, or its accuracy."""
    return cknna(look, teacher) if teacher else accuracy(look)


def _best(r: ProgressResult, t: float, teacher: str) -> list[float]:
    """Of every checkpoint the highest over blocks at one time."""
    return [highest(_value(look, teacher) for look in c.looks if look.t == t) for c in r.checkpoints]


def _where(c: Checkpoint, t: float, teacher: str) -> Look:
    """The block of a checkpoint where it is highest."""
    values = {look.block: (_value(look, teacher), look) for look in c.looks if look.t == t}
    return max(values.values(), key=lambda pair: -math.inf if math.isnan(pair[0]) else pair[0])[1]


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
        before, after = _where(first, t, teacher), _where(last, t, teacher)
        line = (
            f"{who}{what} at t = {t:g} goes from {form(values[0])} at step {first.step:,} (block {before.block}) to "
            f"{form(values[-1])} at step {last.step:,} (block {after.block})."
        )
        if not teacher and overlap(before.limits, after.limits):
            line += " Their limits overlap: the change is within noise."
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
                look = _where(c, t, teacher)
                value = cell(_value(look, teacher))
                row += [value, str(look.block) if value is not None else None]
            rows.append(row)
    return Table(columns, rows)


def _note(r: ProgressResult) -> str:
    probe = "" if r.unprobed else f" Probe: {PROBES[r.how.probe]}, {r.train_images:,} images of {r.classes} classes."
    alike = f" CKNNA: k = {r.how.k}, features {PREPARED[r.how.prepare]}." if r.teachers else ""
    averaged = "averaged (EMA)" if r.weights == "ema" else "raw"
    return (
        f"Of each checkpoint's {averaged} weights, on {r.images:,} images with the same noise; the null condition, the "
        f"mean token, the best of blocks {', '.join(map(str, r.blocks))}.{probe}{alike}"
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
