"""What the analysis `layers` found, in curves and tables: of one model, and of several side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ditkit.evaluation import Panel, Series
from ditkit.evaluation.sections import Cell
from ditkit.recipes.analyses.analysis import Found, Shown, Table
from ditkit.recipes.analyses.layers_found import (
    LayersResult,
    accuracy,
    at,
    best_time,
    cell,
    cknna,
    highest,
    shared_teachers,
)
from ditkit.recipes.analyses.layers_said import note, percent, say_one, say_several, score
from ditkit.recipes.analyses.representation import Peak

ACCURACY = "Best probe accuracy"


def show(found: Mapping[str, Found]) -> Shown:
    """One model: a line for each time. Several: each at its best time, and against size where sizes differ."""
    results: dict[str, LayersResult] = {name: f.result for name, f in found.items()}  # type: ignore[misc]
    first = next(iter(results.values()))
    if len(results) == 1:
        said, panels, tables = say_one(first), panels_of_one(first), tables_of_one(first)
    else:
        said, panels, tables = say_several(results), panels_of_several(results), {"Models": table_of_several(results)}
    return Shown(said, panels, tables, note=note(first))


# ------------------------------------------------------------------------------------------------ one model


def panels_of_one(r: LayersResult) -> list[Panel]:
    """Over blocks, a line for each time; then the best block against time."""
    times = {f"t = {t:g}": at(r, t) for t in r.times}
    panels = []
    if r.best is not None:
        lines = [
            Series(name, [look.block for look in looks], [accuracy(look) for look in looks])
            for name, looks in times.items()
        ]
        own = {name: f.own.accuracy for name, f in r.teachers.items() if f.own.accuracy is not None}
        lines += [Series(name, r.blocks, [value] * len(r.blocks)) for name, value in own.items()]
        panels.append(Panel("Probe accuracy over blocks", lines, "block", "accuracy"))
    for teacher, f in r.teachers.items():
        lines = [
            Series(name, [look.block for look in looks], [cknna(look, teacher) for look in looks])
            for name, looks in times.items()
        ]
        others = {other: alike.cknna for other, alike in f.own.alike.items() if alike.cknna is not None}
        lines += [Series(other, r.blocks, [value] * len(r.blocks)) for other, value in others.items()]
        panels.append(Panel(f"CKNNA with {teacher} over blocks", lines, "block", "CKNNA"))
    return panels + best_over_time({"": r})


def best_over_time(results: Mapping[str, LayersResult]) -> list[Panel]:
    """The best block's accuracy and CKNNA against t: a line for each model, or for each teacher of one model."""
    if all(len(r.times) < 2 for r in results.values()):
        return []
    panels = []
    probed = {name: r for name, r in results.items() if r.best is not None}
    if probed:
        lines = [
            Series(name or "best block", r.times, [highest(map(accuracy, at(r, t))) for t in r.times])
            for name, r in probed.items()
        ]
        panels.append(Panel("Accuracy of the best block over t", lines, "t (0 = data, 1 = noise)", "accuracy"))
    for teacher in shared_teachers(results):
        lines = [
            Series(name or teacher, r.times, [highest(cknna(look, teacher) for look in at(r, t)) for t in r.times])
            for name, r in results.items()
        ]
        title = f"CKNNA with {teacher} of the best block over t"
        panels.append(Panel(title, lines, "t (0 = data, 1 = noise)", "CKNNA"))
    return panels


def tables_of_one(r: LayersResult) -> dict[str, Table]:
    """Blocks at the best time, and the teachers."""
    tables = {}
    t = best_time(r)
    columns = ["block", *(["accuracy"] if r.best is not None else [])]
    columns += [f"{metric}, {name}" for name in r.teachers for metric in ("CKNNA", "CKA", "mutual k-NN")]
    rows: list[list[Cell]] = []
    for look in at(r, t):
        row: list[Cell] = [str(look.block), *([cell(accuracy(look))] if r.best is not None else [])]
        for name in r.teachers:
            found = look.alike[name]
            row += [None if v is None else cell(v) for v in (found.cknna, found.cka, found.mutual_knn)]
        rows.append(row)
    if len(columns) > 1:
        tables[f"Blocks at t = {t:g}"] = Table(columns, rows)
    if r.teachers:
        head = ("teacher", "accuracy", "semantic gap", "highest CKNNA", "after block", "at t")
        lines: list[list[Cell]] = [
            [name, f.own.accuracy, f.gap, *((f.best.value, f.best.block, f.best.t) if f.best else (None,) * 3)]
            for name, f in r.teachers.items()
        ]
        tables["Teachers"] = Table(head, [[cell(v) if isinstance(v, float) else v for v in line] for line in lines])
    return tables


# ------------------------------------------------------------------------------------------------ several


def panels_of_several(results: Mapping[str, LayersResult]) -> list[Panel]:
    """Each model over blocks at its best time, against time and size, where these differ; teachers as levels."""
    panels = []
    first = next(iter(results.values()))
    probed = {name: r for name, r in results.items() if r.best is not None}
    if probed:
        lines = []
        for name, r in probed.items():
            looks = at(r, best_time(r))
            limits = [look.limits or (accuracy(look),) * 2 for look in looks]
            lines.append(Series(name, [x.block for x in looks], [accuracy(x) for x in looks], limits=limits))
        lines += levels(results, {t: first.teachers[t].own.accuracy for t in shared_teachers(results)})
        panels.append(Panel("Probe accuracy over blocks, each at its best t", lines, "block", "accuracy"))
    for teacher in shared_teachers(results):
        lines = []
        for name, r in results.items():
            peak = r.teachers[teacher].best
            looks = at(r, peak.t if peak else r.times[0])
            lines.append(Series(name, [x.block for x in looks], [cknna(x, teacher) for x in looks]))
        lines += levels(results, {t: alike.cknna for t, alike in first.teachers[teacher].own.alike.items()})
        panels.append(Panel(f"CKNNA with {teacher} over blocks, each at its best t", lines, "block", "CKNNA"))
    return panels + best_over_time(results) + against_size(results)


def levels(results: Mapping[str, LayersResult], of_teachers: Mapping[str, float | None]) -> list[Series]:
    """A flat line over all blocks for each teacher that has a number."""
    ends = [min(r.blocks[0] for r in results.values()), max(r.blocks[-1] for r in results.values())]
    return [Series(name, ends, [v, v]) for name, v in of_teachers.items() if v is not None]


def against_size(results: Mapping[str, LayersResult]) -> list[Panel]:
    """The peaks over millions of parameters; nothing for models of about one size."""
    sizes = [r.parameters for r in results.values()]
    if max(sizes) < 1.1 * min(sizes):
        return []
    peaks = {ACCURACY: {name: r.best for name, r in results.items()}}
    for teacher in shared_teachers(results):
        peaks[f"Best CKNNA with {teacher}"] = {name: r.teachers[teacher].best for name, r in results.items()}
    panels = []
    for what, of_models in peaks.items():
        lines = [
            Series(name, [results[name].parameters / 1e6], [p.value], limits=[p.limits or (p.value,) * 2])
            for name, p in of_models.items()
            if p is not None
        ]
        if len(lines) > 1:
            panels.append(
                Panel(f"{what} over size", lines, "million parameters", "accuracy" if "probe" in what else "CKNNA")
            )
    return panels


def table_of_several(results: Mapping[str, LayersResult]) -> Table:
    """A row a model."""
    teachers = shared_teachers(results)
    columns = ["model", "parameters", "best accuracy", "limits", "block", "t"]
    for teacher in teachers:
        columns += [f"best CKNNA, {teacher}", "block", "t", "semantic gap"]
    rows: list[list[Cell]] = []
    for name, r in results.items():
        best = r.best
        row: list[Cell] = [name, r.parameters, *(_peak(best, percent))]
        for teacher in teachers:
            f = r.teachers[teacher]
            value, _, block, t = _peak(f.best, score)
            row += [value, block, t, None if f.gap is None else cell(f.gap)]
        rows.append(row)
    return Table(columns, rows)


def _peak(p: Peak | None, form: Callable[[float], str]) -> list[Cell]:
    """value, limits, block and time."""
    if p is None:
        return [None] * 4
    return [
        cell(p.value),
        f"{form(p.limits[0])} to {form(p.limits[1])}" if p.limits else None,
        str(p.block),
        f"{p.t:g}",
    ]
