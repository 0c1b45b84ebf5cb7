"""report.html of one run: curves, the sheet of samples, cost, recipe and environment on a page that stands alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ditkit.analysis.cost import cost
from ditkit.data import read_rejects
from ditkit.evaluation import Panel, Report, Section, read_rows, series_of, write_report
from ditkit.evaluation.images import read_png
from ditkit.evaluation.sections import curves, facts, json_block, sheets
from ditkit.recipes.analyses.store import FOLDER, sections_of
from ditkit.recipes.online_page import score_curves
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.registry import from_file

REPORT = "report.html"


def write_run_report(recipe: Recipe, folder: Path, sheet: Path) -> Path:
    """Write the report of a run folder that has its recipe, environment and metrics; sheet: the PNG of samples."""
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    rows = read_rows(folder / "metrics.jsonl") if (folder / "metrics.jsonl").is_file() else []
    last = rows[-1] if rows else {}
    title = recipe.title or recipe.name
    done = f"{last.get('step', 0):,} of {recipe.training.steps:,} steps of {recipe.training.batch} images"
    images = environment["data"]["images"]
    summary = [f"{done}, on {images:,} images of {recipe.data.source} ({environment['device']})."]
    if skipped := next((row["skipped"] for row in reversed(rows) if "skipped" in row), 0):
        summary.append(f"{skipped:,} steps were skipped because their gradient was not finite.")
    if rejected := len(read_rejects(folder / "rejects.jsonl")):
        summary.append(
            f"Images or captions that could not be used, which others replaced: {rejected:,} (rejects.jsonl)."
        )
    what = "captions of the data" if recipe.text is not None else "classes in turn"
    note = f"{sheet.name}: averaged weights, the recipe's sampler, {what}."
    sections = [
        sheets("Samples", {title: read_png(sheet)[0][None]}, columns=1, note=note),
        training_curves({title: rows}),
        *score_curves(folder, rows),
        costs(recipe, next((row for row in reversed(rows) if "seconds" in row), {})),
        *sections_of(folder / FOLDER, last.get("step")),
        json_block("Recipe", recipe.model_dump(mode="json"), "Show the resolved recipe"),
        json_block("Environment", environment, "Show versions and machine"),
    ]
    return write_report(Report(title, summary, sections), folder / REPORT)


def rewrite_run_report(folder: Path) -> Path | None:
    """The report of a run again, with what was analysed since; None where the run has not ended with its samples."""
    sheets_there = sorted((folder / "samples").glob("[0-9]*.png"))
    if not sheets_there or not (folder / REPORT).is_file():
        return None
    return write_run_report(from_file(folder / "recipe.json"), folder, sheets_there[-1])


def training_curves(runs: Mapping[str, Sequence[dict]], held_out: str = "") -> Section:
    """Training, validation and alignment losses side by side; runs: name -> rows of metrics.jsonl."""
    smooth = [series_of(rows, "loss_denoise", name, smooth=True) for name, rows in runs.items()]
    panels = [
        Panel("Training loss", smooth, y_label="loss"),
        Panel(f"Validation loss{held_out}", [series_of(r, "validation_loss", name) for name, r in runs.items()]),
    ]
    from_aligned = {name: rows for name, rows in runs.items() if any("loss_align" in row for row in rows)}
    if aligned := [series_of(rows, "loss_align", name, smooth=True) for name, rows in from_aligned.items()]:
        panels.append(Panel("Alignment loss (minus cosine)", aligned))
    notes = [
        "Training: means over the steps from one point to the next, smoothed, of times drawn as the recipe says.",
        "Validation: the same images, noise and times every time, averaged weights; all times count alike, so the two "
        "losses need not be equal.",
        *(heaviest(name, rows) for name, rows in runs.items()),
    ]
    return curves("Curves", panels, " ".join(filter(None, notes)))


def heaviest(name: str, rows: Sequence[dict]) -> str:
    """A sentence about the time bin that makes most of the last validation loss; "" where none makes half of it."""
    prefix = "validation_loss_t"
    last: dict = next((row for row in reversed(rows) if any(key.startswith(prefix) for key in row)), {})
    bins = {key.removeprefix(prefix): value for key, value in last.items() if key.startswith(prefix)}
    most = max(bins, key=lambda t: bins[t], default="")
    share = bins[most] / sum(bins.values()) if most and sum(bins.values()) > 0 else 0.0
    if not 0.5 <= share <= 1:
        return ""
    return f"{share:.0%} of the validation loss of {name} comes from times around t = {float(most):.2g}."


def costs(recipe: Recipe, last: Mapping[str, float]) -> Section:
    """Size of the model and what the training took. last: the last row of metrics.jsonl that tells of training."""
    spent = cost(recipe.model)
    values: dict[str, str | int | float | None] = {
        "parameters": spent.trainable,
        "GMAC per forward": spent.gmacs,
        "training seconds": last.get("seconds"),
        "images/s": last.get("images_per_s"),
        "peak memory, GiB": last.get("memory_gib"),
    }
    return facts("Cost", values, "Projectors, teachers and codec are not counted in parameters.")
