"""`ditkit analyze NAME MODEL`: everything checked first, then measured, kept, and written into the run's report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ditkit.config import Settings, nearest, override
from ditkit.evaluation import Report, Section, write_report
from ditkit.evaluation.generate import weights_fingerprint
from ditkit.evaluation.sections import json_block
from ditkit.recipes.analyses.analysis import Analysis, Bar, Found, section_of
from ditkit.recipes.analyses.registry import ANALYSES
from ditkit.recipes.analyses.store import FOLDER, read, save, sections_of
from ditkit.recipes.analyses.subject import Asked, Subject
from ditkit.recipes.environment import environment
from ditkit.recipes.place import check_writable
from ditkit.recipes.run_page import rewrite_run_report
from ditkit.recipes.sampling import SHORT, Choices, describe_weights, open_model

SHAPES = {short: full for short, full in SHORT.items() if full.startswith("shape.")}  # of published files
MODEL_KEYS = ("weights", "step", "codec", "text", "without", "shape", *SHAPES)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What was asked of one model, checked. folder: where it is kept; run: whose report it goes into, if any."""

    subject: Subject
    settings: Mapping[str, Settings]
    folder: Path
    run: Path | None

    def asked(self, name: str) -> dict[str, Any]:
        """Everything that decides the numbers of one analysis, as JSON."""
        subject = self.subject
        return {
            "weights": weights_fingerprint(subject.loaded.model),
            "of": describe_weights(subject.loaded),
            "step": subject.loaded.step,
            "images": subject.asked.model_dump(mode="json"),
            "settings": self.settings[name].model_dump(mode="json"),
        }


def choose(names: Sequence[str]) -> list[Analysis]:
    """The analyses of these names, all where there are none. ValueError names the nearest."""
    if wrong := [name for name in names if name not in ANALYSES]:
        raise ValueError(f"analysis {wrong[0]!r}: there is none{nearest(wrong[0], ANALYSES)}")
    return [ANALYSES[name] for name in names or ANALYSES]


def make_plan(
    what: Path, keys: Sequence[str], analyses: Sequence[Analysis], device: torch.device, *,
    source: str | None = None, data: str | None = None, out: Path | None = None, name: str = "",
) -> Plan:  # fmt: skip
    """Sort the words of a command line and check them. One-line errors, before anything is measured."""
    asked_keys, model_keys, own = sort_keys(keys, analyses)
    loaded = open_model(what, source, override(Choices(), model_keys), device)
    images = [f"data.source={data}", *asked_keys] if data is not None else asked_keys
    asked = Asked(data=loaded.recipe.data.single(), teachers=loaded.recipe.teachers)
    run = what if (what / "recipe.json").is_file() and (what / "checkpoints").is_dir() else None
    subject = Subject(name or what.resolve().name, loaded, override(asked, images), run)
    settings = {a.name: override(a.settings(), own[a.name]) for a in analyses}
    folder = out or (run or (what if what.is_dir() else Path(FOLDER) / what.stem)) / (FOLDER if what.is_dir() else "")
    check_writable(folder)
    return Plan(subject, settings, folder, run if out is None else None)


def together(plans: Sequence[Plan]) -> list[Plan]:
    """The same plans on the first one's images and beside all their teachers. ValueError where a model comes twice."""
    folders = [plan.folder.resolve() for plan in plans]
    if twice := [plan.subject.name for plan in plans if folders.count(plan.folder.resolve()) > 1]:
        raise ValueError(f"{twice[0]} is named twice: compare it with another model")
    teachers = dict.fromkeys(teacher for plan in plans for teacher in plan.subject.asked.teachers)
    shared = {"data": plans[0].subject.asked.data, "teachers": tuple(teachers)}
    asked = [plan.subject.asked.model_copy(update=shared) for plan in plans]
    return [replace(p, subject=replace(p.subject, asked=a)) for p, a in zip(plans, asked, strict=True)]


def sort_keys(keys: Sequence[str], analyses: Sequence[Analysis]) -> tuple[list[str], list[str], dict[str, list[str]]]:
    """KEY=VALUE words: (of the images, of the model, {analysis: its own}). ValueError for what nobody knows."""
    images: list[str] = []
    model: list[str] = []
    own: dict[str, list[str]] = {a.name: [] for a in analyses}
    known = {*Asked.model_fields, *MODEL_KEYS, *(field for a in analyses for field in a.settings.model_fields)}
    for key in keys:
        first = key.partition("=")[0].partition(".")[0].strip()
        takers = [a.name for a in analyses if first in a.settings.model_fields]
        if first in Asked.model_fields:
            images.append(key)
        elif first in MODEL_KEYS:
            model.append(f"{SHAPES.get(first, first)}{key.removeprefix(first)}")
        elif not takers:
            raise ValueError(f"{first}: unknown key{nearest(first, known)}")
        for name in takers:
            own[name].append(key)
    return images, model, own


def perform(plan: Plan, analyses: Sequence[Analysis], bar: Bar, say: Say) -> dict[str, Found]:
    """Measure what is not kept already; name -> what was found. What does not fit this model is told and left out."""
    found: dict[str, Found] = {}
    for analysis in analyses:
        if reason := analysis.fits(plan.subject):
            if len(analyses) == 1:
                raise ValueError(f"{plan.subject.name}: no {analysis.name}: {reason}")
            say(f"{plan.subject.name}: no {analysis.name}: {reason}")
            continue
        asked = plan.asked(analysis.name)
        kept = read(analysis, plan.folder, asked)
        if kept is None:
            kept = analysis.measure(plan.subject, plan.settings[analysis.name], bar)
            save(analysis, kept, asked, plan.folder)
        found[analysis.name] = kept
    if not found:
        raise ValueError(f"{plan.subject.name}: nothing that was asked for can be measured on it")
    return found


def report(plan: Plan) -> Path:
    """What is kept of this model, in its run's report, or on a page of its own where it has none."""
    if plan.run is not None and (page := rewrite_run_report(plan.run)) is not None:
        return page
    loaded = plan.subject.loaded
    title = f"Analysis: {loaded.recipe.title or plan.subject.name}"
    facts = json_block("Environment", environment(loaded.device), "Show versions and machine")
    summary = f"{plan.subject.name}: {describe_weights(loaded)}."
    return write_report(Report(title, summary, [*sections_of(plan.folder), facts]), plan.folder / "report.html")


def compare(found: Mapping[str, Mapping[str, Found]], analyses: Sequence[Analysis], out: Path) -> Path:
    """One page with the models side by side: found is model -> analysis -> what was found."""
    sections: list[Section] = []
    for analysis in analyses:
        of_all = {model: results[analysis.name] for model, results in found.items() if analysis.name in results}
        if len(of_all) > 1:
            sections.append(section_of(analysis.title, analysis.show(of_all)))
    if not sections:
        raise ValueError("no analysis could be measured on two of these models")
    names = list(found)
    title = f"{', '.join(names[:-1])} and {names[-1]}, side by side"
    return write_report(Report(title, "The same images, noise and teachers for every model.", sections), out)
