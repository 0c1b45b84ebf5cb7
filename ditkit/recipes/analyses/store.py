"""Where analyses of a model are kept: NAME.json, its drawings NAME-*.svg and pictures NAME-*.png, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ditkit.config import read_settings
from ditkit.evaluation import Section, save_png
from ditkit.evaluation.images import read_png
from ditkit.evaluation.plots import draw, standalone
from ditkit.evaluation.sections import slug
from ditkit.files import write_text
from ditkit.recipes.analyses.analysis import Analysis, Found, section_of
from ditkit.recipes.analyses.registry import ANALYSES

FOLDER = "analysis"  # in a run


def save(analysis: Analysis, found: Found, asked: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write numbers, drawings and pictures; the JSON last, so that it never names what is not there."""
    shown = analysis.show({"": found})
    files = []
    for panel in shown.panels:
        drawing = draw(panel, [s.name for s in panel.series], analysis.name, legend=True)
        files.append(write_text(folder / f"{analysis.name}-{slug(panel.title)}.svg", standalone(drawing)))
    for key, picture in found.pictures.items():
        files.append(save_png(picture, folder / f"{analysis.name}-{key}.png"))
    told = {
        "analysis": analysis.name,
        "asked": dict(asked),
        "result": found.result.model_dump(mode="json"),
        "pictures": list(found.pictures),
        "said": list(shown.said),
    }
    return [write_text(folder / f"{analysis.name}.json", json.dumps(told, indent=1) + "\n"), *files]


def read(analysis: Analysis, folder: Path, asked: Mapping[str, Any] | None = None) -> Found | None:
    """What `save` wrote; None where there is nothing, or it was asked otherwise. ValueError, one line, if damaged."""
    file = folder / f"{analysis.name}.json"
    if not file.is_file():
        return None
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        if asked is not None and told["asked"] != json.loads(json.dumps(dict(asked))):
            return None
        pictures = {key: read_png(folder / f"{analysis.name}-{key}.png")[0] for key in told["pictures"]}
        return Found(read_settings(analysis.result, told["result"], str(file)), pictures)
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: not what `ditkit analyze` writes ({error!r}); remove it and analyze again") from None


def read_all(folder: Path) -> dict[str, Found]:
    """Name -> what was found, of every analysis that is kept in the folder."""
    found = {name: read(analysis, folder) for name, analysis in ANALYSES.items()}
    return {name: kept for name, kept in found.items() if kept is not None}


def sections_of(folder: Path) -> list[Section]:
    """A section for every analysis that is kept in the folder: what a run's report shows of them."""
    return [
        section_of(ANALYSES[name].title, ANALYSES[name].show({"": kept})) for name, kept in read_all(folder).items()
    ]
