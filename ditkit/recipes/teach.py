"""A teacher of one's own: train it on one's images and say what it learned."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ditkit.analysis.probe import probe_report
from ditkit.data import ImageSource, Subset, stratified_split
from ditkit.files import write_text
from ditkit.pretrained import SelfTaught
from ditkit.recipes.place import check_new
from ditkit.training.log import Row
from ditkit.training.teacher import TeacherTraining, train_teacher

ENOUGH = 50  # labelled images below which a probe says nothing
PROBE_IMAGES, PROBE_CLASSES = 2500, 50  # a probe of more would take longer than the training
SEEN = "the teacher trained on these images too, without labels; only the labels were held out"
UNSEEN = "the teacher never saw the tested images"


def teach(
    source: ImageSource, training: TeacherTraining, folder: Path, *, hold_out: bool = False, seed: int = 0,
    device: torch.device | str = "cpu", progress: Callable[[int, Row], None] | None = None,
) -> SelfTaught:  # fmt: skip
    """Train a teacher on `source` and write it to the new `folder`, all or nothing.

    hold_out: train on the fixed four fifths only, so that a probe tests on images that were never seen. Images that
    cannot be read are listed under facts["rejects"]. Raises what `check_new` (at once) and `train_teacher` raise.
    """
    check_new(folder)
    part = Subset(source, stratified_split(source.labels, "train")) if hold_out else source
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the list says more than the warning
        return train_teacher(part, training, folder, seed=seed, device=device, progress=progress)


def no_probe(source: ImageSource) -> str | None:
    """Why this data cannot be probed; None if it can."""
    if len(source.classes) < 2:
        return "a probe asks for classes, and these images have " + ("one" if source.classes else "no labels")
    if len(source) < ENOUGH:
        return f"{len(source)} labelled images are too few; a probe needs {ENOUGH}"
    return None


def probe(teacher: SelfTaught, source: ImageSource, folder: Path, *, hold_out: bool, seed: int = 0) -> dict:
    """What the teacher, its random initialisation and raw pixels know of the classes; written to folder/probe.json.

    Fitted on labels of the fixed four fifths, tested on the rest. `protocol` says how many images and classes were
    used, and whether the teacher saw the tested images ("seen").
    """
    untrained = SelfTaught.untrained(teacher.settings, seed).to(teacher.network.position.device)
    parts = [Subset(source, probe_rows(source, part)) for part in ("train", "test")]
    found = probe_report(teacher, untrained, *parts, seed=seed)
    found["protocol"] |= {"seen": UNSEEN if hold_out else SEEN, "classes": min(len(source.classes), PROBE_CLASSES)}
    write_text(folder / "probe.json", json.dumps(found, indent=2) + "\n")
    return found


def probe_rows(source: ImageSource, part: str) -> np.ndarray:
    """Rows of the "train" or "test" fifths: of the first 50 classes, evenly thinned to 2,000 and 500 images."""
    rows = stratified_split(source.labels, part)
    rows = rows[source.labels[rows] < PROBE_CLASSES]
    most = PROBE_IMAGES // 5 * (4 if part == "train" else 1)
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)]
