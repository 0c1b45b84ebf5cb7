"""`ditkit analyze NAME MODEL`: everything checked first, then measured, kept, and written into the run's report."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ditkit.config import Settings, nearest, override
from ditkit.evaluation import Report, write_report
from ditkit.evaluation.generate import weights_fingerprint
from ditkit.evaluation.sections import json_block
from ditkit.recipes.analyses.analysis import Analysis, Bar, Found, section_of
from ditkit.recipes.analyses.registry import ANALYSES
from ditkit.recipes.analyses.store import COMPARED, FOLDER, find, save, sections_of
from ditkit.recipes.analyses.subject import Asked, Subject
from ditkit.recipes.environment import environment
from ditkit.recipes.place import check_writable
from ditkit.recipes.run_page import rewrite_run_report
from ditkit.recipes.sampling import SHORT, Choices, describe_weights, open_model
from ditkit.training import list_steps

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

    @property
    def compared(self) -> bool:
        """Whether the model is looked at beside others (`together`)."""
        return self.folder.name == COMPARED

    @cached_property
    def weights(self) -> str:
        """Fingerprint of the network's tensors."""
        return weights_fingerprint(self.subject.loaded.model)

    def asked(self, analysis: Analysis) -> dict[str, Any]:
        """Everything that decides the numbers of one analysis, as JSON."""
        subject, loaded, recipe = self.subject, self.subject.loaded, self.subject.loaded.recipe
        told: dict[str, Any] = {
            "weights": self.weights,
            "of": describe_weights(loaded),
            "step": loaded.step,
            "model": loaded.settings.model_dump(mode="json"),
            "path": loaded.path.model_dump(mode="json"),
            "prediction": loaded.prediction,
            "settings": self.settings[analysis.name].model_dump(mode="json"),
            "version": analysis.version,
        }
        if "images" in analysis.uses:
            told["images"] = subject.asked.model_dump(mode="json", exclude={"teachers", "named"})
            told["content"] = zlib.crc32(repr(subject.test.keys).encode())
            told["codec"] = recipe.codec.model_dump(mode="json")
            told["text"] = None if recipe.text is None else recipe.text.model_dump(mode="json")
        if "teachers" in analysis.uses:
            told["teachers"] = {name: teacher.id for name, teacher in subject.teachers.items()}
        if "sampling" in analysis.uses:
            told["sampling"] = recipe.sampling.model_dump(mode="json")
        if "checkpoints" in analysis.uses:
            told["checkpoints"] = list_steps(subject.folder) if subject.folder is not None else []
        return told


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
    named = any(key.partition("=")[0].strip() == "teachers" for key in images)
    asked = Asked(data=loaded.recipe.data.single(), teachers=loaded.recipe.teachers, named=named)
    run = what if (what / "recipe.json").is_file() and (what / "checkpoints").is_dir() else None
    subject = Subject(name or what.resolve().name, loaded, override(asked, images), run)
    settings = {a.name: override(a.settings(), own[a.name]) for a in analyses}
    if what.is_dir():
        home = what / FOLDER
    else:  # a published file: its name, and a word that tells two of one name apart
        home = Path(FOLDER) / f"{what.stem}-{zlib.crc32(str(what.resolve()).encode()):08x}"
    folder = out or home
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
    return [
        replace(p, subject=replace(p.subject, asked=a), folder=p.folder / COMPARED)
        for p, a in zip(plans, asked, strict=True)
    ]


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
        asked = plan.asked(analysis)
        places = (plan.folder, plan.folder.parent) if plan.compared else (plan.folder,)
        kept = next(filter(None, (find(analysis, place, asked) for place in places)), None)
        if kept is None:
            kept = analysis.measure(plan.subject, plan.settings[analysis.name], staged(plan, bar))
            save(analysis, kept, asked, plan.folder)
        found[analysis.name] = kept
    if not found:
        raise ValueError(f"{plan.subject.name}: nothing that was asked for can be measured on it")
    return found


def staged(plan: Plan, bar: Bar) -> Bar:
    """The bar, its stages told apart by the model's name where several are measured."""
    prefix = f"{plan.subject.name}: " if plan.compared else ""
    return lambda stage, *counts: bar(f"{prefix}{stage}", *counts)


def report(plan: Plan) -> Path:
    """What is kept of this model, in its run's report, or on a page of its own where it has none."""
    if plan.run is not None and (page := rewrite_run_report(plan.run)) is not None:
        return page
    loaded = plan.subject.loaded
    title = f"Analysis: {loaded.recipe.title or plan.subject.name}"
    facts = json_block("Environment", environment(loaded.device), "Show versions and machine")
    summary = f"{plan.subject.name}: {describe_weights(loaded)}."
    return write_report(Report(title, summary, [*sections_of(plan.folder), facts]), plan.folder / "report.html")


def shared(plans: Sequence[Plan], found: Sequence[Mapping[str, Found]]) -> Iterator[tuple[Analysis, dict[str, Found]]]:
    """Every analysis that was made of two models at least, with what was found by model's name, in a report's order."""
    for name, analysis in ANALYSES.items():
        of_all = {p.subject.name: results[name] for p, results in zip(plans, found, strict=True) if name in results}
        if len(of_all) > 1:
            yield analysis, of_all


def compare(plans: Sequence[Plan], found: Sequence[Mapping[str, Found]], out: Path) -> Path:
    """One page with the models side by side; found: of each plan, analysis -> what was found."""
    names = [plan.subject.name for plan in plans]
    sections = [section_of(analysis.title, analysis.show(of_all)) for analysis, of_all in shared(plans, found)]
    if not sections:
        raise ValueError("no analysis could be measured on two of these models")
    subjects = [plan.subject for plan in plans]
    first = subjects[0]
    shapes = {(s.loaded.codec.channels, *getattr(s.loaded.settings, "size", ())) for s in subjects}
    lines = [
        f"{s.name}: {describe_weights(s.loaded)}; {s.loaded.recipe.title or s.loaded.recipe.name}." for s in subjects
    ]
    lines.append(
        f"The same images ({first.data.source}) and teachers for every model"
        + (", and the same noise." if len(shapes) == 1 else "; of other latent sizes, so noise and size differ.")
    )
    seen = {s.name: s.watched for s in subjects}
    if len(set(seen.values())) > 1:
        lines.append("To some the images are new and to others not: " + "; ".join(f"{n}: {w}" for n, w in seen.items()))
    lines.append("One training of each: what another seed would change is not counted.")
    facts = json_block("Environment", environment(first.loaded.device), "Show versions and machine")
    title = f"{', '.join(names[:-1])} and {names[-1]}, side by side"
    return write_report(Report(title, lines, [*sections, facts]), out)
