"""Where analyses of a model are kept: NAME.json, its drawings NAME-*.svg and pictures NAME-*.png, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditkit.config import read_settings
from ditkit.evaluation import Section, save_png
from ditkit.evaluation.images import read_png
from ditkit.evaluation.plots import draw, standalone
from ditkit.evaluation.sections import slug, text
from ditkit.files import write_text
from ditkit.recipes.analyses.analysis import Analysis, Found, section_of
from ditkit.recipes.analyses.registry import ANALYSES

FOLDER = "analysis"  # in a run
COMPARED = "compared"  # under it: analyses on images and beside teachers that other models brought


@dataclass(frozen=True)
class Kept:
    """What was found, and what was asked: weights, images, settings and all else that decides the numbers."""

    found: Found
    asked: Mapping[str, Any]

    def of(self, now: int | None = None) -> str:
        """On which weights, in words; now: the run's newest step, which may be another."""
        step = self.asked.get("step")
        later = f" (the run is at step {now:,} now)" if now is not None and step not in (None, now) else ""
        images = self.asked.get("images") or {}
        where = (images.get("data") or {}).get("source")
        return f"{self.asked.get('of', 'weights untold')}{later}" + (f"; images: {where}" if where else "")


def save(analysis: Analysis, found: Found, asked: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write numbers, drawings and pictures; the JSON goes first and comes last, so that it never tells of others."""
    _clear(analysis, folder)
    shown = analysis.show({"": found}).alone
    drawn = {
        f"{analysis.name}-{slug(panel.title).removeprefix('s-')}.svg": standalone(
            draw(panel, [s.name for s in panel.series], analysis.name, legend=True)
        )
        for panel in shown.panels
    }
    files = [write_text(folder / name, drawing) for name, drawing in drawn.items()]
    files += [save_png(picture, folder / f"{analysis.name}-{key}.png") for key, picture in found.pictures.items()]
    told = {
        "analysis": analysis.name,
        "asked": dict(asked),
        "result": found.result.model_dump(mode="json"),
        "pictures": list(found.pictures),
        "files": [file.name for file in files],
        "said": list(shown.said),
    }
    return [write_text(folder / f"{analysis.name}.json", json.dumps(told, indent=1) + "\n"), *files]


def _clear(analysis: Analysis, folder: Path) -> None:
    """Remove what is kept of an analysis, the JSON first."""
    file = folder / f"{analysis.name}.json"
    try:
        names = json.loads(file.read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        names = []
    file.unlink(missing_ok=True)
    for name in names:
        if isinstance(name, str) and Path(name).name == name and name.startswith(f"{analysis.name}-"):
            (folder / name).unlink(missing_ok=True)


def read(analysis: Analysis, folder: Path) -> Kept | None:
    """What `save` wrote; None where there is nothing. ValueError, one line, where another version wrote it."""
    file = folder / f"{analysis.name}.json"
    if not file.is_file():
        return None
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        pictures = {key: read_png(folder / f"{analysis.name}-{key}.png")[0] for key in told["pictures"]}
        return Kept(Found(read_settings(analysis.result, told["result"], str(file)), pictures), told["asked"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file}: not what this version of `ditkit analyze` writes ({first}); analyze again") from None


def find(analysis: Analysis, folder: Path, asked: Mapping[str, Any]) -> Found | None:
    """What is kept of exactly this; None where it is not there, was asked otherwise, or cannot be read."""
    try:
        kept = read(analysis, folder)
    except ValueError:
        return None
    same = kept is not None and kept.asked == json.loads(json.dumps(dict(asked)))
    return kept.found if kept is not None and same else None


def sections_of(folder: Path, now: int | None = None) -> list[Section]:
    """A section for every analysis that is kept in the folder: what a run's report shows of them.

    now: the newest step of the run. One that cannot be read is a sentence, and stops nothing.
    """
    sections = []
    for analysis in ANALYSES.values():
        try:
            kept = read(analysis, folder)
        except ValueError as error:
            sections.append(text(analysis.title, str(error)))
            continue
        if kept is not None:
            shown = analysis.show({"": kept.found}).alone
            sections.append(section_of(analysis.title, shown, kept.of(now)))
    return sections
