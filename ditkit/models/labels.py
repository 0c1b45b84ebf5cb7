"""What every class-conditional network checks and answers about its labels, grid and captured blocks."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ditkit.protocols import Condition


class Patched(Protocol):
    """The field of a network's settings that `token_grid` reads."""

    @property
    def patch(self) -> int: ...


class Labelled(Protocol):
    """The fields of a network's settings that are read here."""

    @property
    def num_classes(self) -> int: ...
    @property
    def null_label(self) -> bool: ...
    @property
    def depth(self) -> int: ...


def null_condition(name: str, settings: Labelled, cond: Condition) -> Condition:
    """The unconditional counterpart: label num_classes everywhere; an unconditional model's condition is its own.

    Raises ValueError when the model has no null row or `cond` has no label. name: of the network, for the error.
    """
    if not settings.num_classes:
        return cond
    if not settings.null_label or cond.label is None:
        why = "built with null_label=False, so it has no null row" if cond.label is not None else "given no label"
        raise ValueError(f"{name}.null: this model was {why}; guidance and label drop need one")
    return cond.with_label(torch.full_like(cond.label, settings.num_classes))


def check_call(name: str, settings: Labelled, cond: Condition, capture: tuple[int, ...]) -> None:
    """Raise ValueError for a missing or unexpected label, a text, or a captured block that does not exist."""
    if (cond.label is None) == (settings.num_classes > 0):
        wants = "needs cond.label" if settings.num_classes else "is unconditional (num_classes=0), drop cond.label"
        raise ValueError(f"{name}: this model {wants}")
    if cond.text is not None or cond.pooled is not None:
        raise ValueError(f"{name}: this model knows no text, and cond has one; it would be ignored")
    if wrong := [i for i in capture if not 1 <= i <= settings.depth]:
        raise ValueError(f"{name}: capture {wrong} names no block; blocks count from 1 to {settings.depth}")


def token_grid(name: str, settings: Patched, x: Tensor, stride: int | None = None) -> tuple[int, int]:
    """Token rows and columns of x (B, C, H, W), one a patch (or a `stride`, where a U-Net lies between).

    ValueError where it does not divide the size.
    """
    height, width, side = x.shape[-2], x.shape[-1], stride or settings.patch
    if height % side or width % side:
        what = "patch" if stride is None else "patch x 2^levels ="
        raise ValueError(f"{name}: latent size {height} x {width} is not a multiple of {what} {side}")
    return height // side, width // side
