"""The demo's part about representations: what each layer of the models knows, and how like the teacher's it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ditkit.data import DataSettings
from ditkit.evaluation import Section
from ditkit.pretrained import TeacherSettings
from ditkit.recipes.analyses.analysis import Bar, Found, section_of
from ditkit.recipes.analyses.layers import ANALYSIS as LAYERS
from ditkit.recipes.analyses.layers import LayersSettings
from ditkit.recipes.analyses.perform import Plan, perform
from ditkit.recipes.analyses.store import FOLDER
from ditkit.recipes.analyses.subject import Asked, Subject
from ditkit.recipes.load import load

LEARNT = 600  # images that probes learn from: twice as many cost twice the forward passes
STAGE = "layers of"  # first words of its progress stages


def stage(name: str) -> str:
    """The progress stage of one model."""
    return f"{STAGE} {name}"


def look(
    name: str, run: Path, teacher: Path, times: tuple[float, ...], images: int, device: torch.device, bar: Bar
) -> Found:
    """Every block of one run at these times, beside the teacher; kept in the run, where `ditkit analyze` finds it.

    images: held-out ones at most; probes learn from the training images.
    """
    taught = TeacherSettings(kind="selftaught", source=str(teacher))
    asked = Asked(n=images, train=LEARNT, data=DataSettings(source="digits"), teachers=(taught,))
    subject = Subject(name, load(run).to(device), asked, run)
    plan = Plan(subject, {LAYERS.name: LayersSettings(t=times)}, run / FOLDER, run)

    def shown(_: str, done: int, total: int) -> None:
        bar(stage(name), done, total)

    return perform(plan, [LAYERS], shown, lambda line: None)[LAYERS.name]


def sections(found: Mapping[str, Found]) -> list[Section]:
    """The models side by side, and the layers of each."""
    told = [section_of("Layer by layer, side by side", LAYERS.show(found))]
    each = [section_of(f"Layer by layer: {name}", LAYERS.show({name: one})) for name, one in found.items()]
    return [*told, *(replace(section, note="") for section in each)]


def headlines(found: Mapping[str, Found]) -> list[str]:
    """What the side-by-side look says, for the top of the page."""
    return list(LAYERS.show(found).said[:2])
