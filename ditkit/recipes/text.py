"""Text encoders as runs use them: every prompt encoded once, and what an encoder cuts off told in one line."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ditkit.data import Batch, drop_captions
from ditkit.pretrained import CachedText, TextSettings, load_text
from ditkit.protocols import Condition, TextEncoder
from ditkit.recipes.recipe import Recipe

MOST_TOLD = 20  # prompts whose cut is told; of the others only that there are such
log = logging.getLogger("ditkit.text")


class ToldText(CachedText):
    """A CachedText whose encoder's warnings (a prompt is too long) are lines of the log "ditkit.text"."""

    told = 0

    def __call__(self, prompts: Sequence[str]) -> Condition:
        """Prompts -> what the encoder says; each unknown prompt is encoded once."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            found = super().__call__(prompts)
        for warning in caught:
            if warning.category is not UserWarning:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
            elif self.told <= MOST_TOLD:
                self.told += 1
                more = "more prompts are cut; they are not told one by one"
                log.warning("%s", warning.message if self.told <= MOST_TOLD else more)
        return found


@contextmanager
def heard(names: Sequence[str] = ("ditkit.text",)) -> Iterator[list[str]]:
    """The list of lines that these loggers say while the block runs; they say them nowhere else."""
    lines: list[str] = []
    with listening(lines.append, names):
        yield lines


@contextmanager
def listening(say: Callable[[str], None], names: Sequence[str] = ("ditkit.data", "ditkit.text")) -> Iterator[None]:
    """What is logged of the data (images that cannot be used, captions that are cut) goes to `say` in the block."""
    handler = logging.Handler()
    handler.emit = lambda record: say(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def open_text(settings: TextSettings | None, device: torch.device, folder: str | None = None) -> ToldText | None:
    """The text encoder that a recipe names; None without one. PretrainedMissing if it cannot be had.

    folder: keeps what was encoded, rounded to half precision, for other runs.
    """
    return None if settings is None else ToldText(load_text(settings, device), folder=folder)


def identity_of(text: ToldText | None) -> str | None:
    """What makes a run's conditions: the encoder's id, and whether its outputs are rounded in a cache."""
    return None if text is None else text.id + (" in half precision" if text.folder is not None else "")


def condition_of(
    batch: Batch, recipe: Recipe, text: TextEncoder | None = None, device: torch.device | str = "cpu"
) -> Condition:
    """The encoded captions of a batch, or its labels; nothing for unlabelled data.

    Captions that a cache brings encoded go to `device` in its dtype and become float32 there.
    """
    if batch.cond is not None:
        return batch.cond.to(device, non_blocking=True).to(torch.float32)
    if text is None:
        return Condition(label=batch.labels) if recipe.model.num_classes else Condition()
    share, seed = recipe.data.empty_share, recipe.training.seed
    return text(drop_captions(batch.captions, seed, batch.positions.start, share))


class Captioned:
    """Captions that are encoded when they are asked for, so that not all of them need to be held."""

    def __init__(self, text: TextEncoder, captions: Sequence[str]):
        self.text, self.captions = text, list(captions)

    def index(self, rows: Tensor) -> Condition:
        """The condition of the samples `rows`."""
        return self.text([self.captions[i] for i in rows.tolist()])
