"""The classifier that judges the runs of a shelf: trained once, kept in the pool, and checked when it is read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ditkit.data import ImageSource
from ditkit.evaluation import (
    Classifier,
    ClassifierSettings,
    classifier_id,
    read_classifier,
    read_images,
    train_classifier,
)
from ditkit.recipes.reproduce.claim import JUDGES, Show
from ditkit.recipes.reproduce.pool import Pool

FILE = "classifier.safetensors"


def kept_classifier(
    pool: Pool,
    training: tuple[Tensor, Tensor],
    classes: Sequence[str],
    held_out: ImageSource,
    steps: int,
    device: torch.device,
    show: Show,
) -> Classifier:
    """The classifier of a shelf, trained by the first who asks.

    On a GPU a second training would give another one, and the scores of two processes would not compare.
    training: images and labels, all of which it learns from; held_out: others, for its accuracy. ValueError, one line,
    where the file is no classifier, or one of other images or settings, whose scores must not stand beside new ones.
    """
    file, settings = pool.made(FILE), ClassifierSettings(steps=steps)
    with pool.hold("classifier", wait=True):
        if not file.exists():
            train_classifier(
                *training, classes, settings, held_out=read_images(held_out), device=device,
                progress=lambda done, total: show(JUDGES, done, total, "classifier"),
            ).save(file)  # fmt: skip
    kept = read_classifier(file, device)
    if kept.id != classifier_id(*training, settings):
        raise ValueError(f"{file} learned from other images or settings: remove {pool.folder}, or name another --pool")
    return kept
