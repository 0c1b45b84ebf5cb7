"""What every text-conditional network checks and answers about its text."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ditkit.nn.embed import PooledEmbed, TimeEmbed
from ditkit.nn.precision import full_precision
from ditkit.protocols import Condition


class Shaped(Protocol):
    """The fields of a transformer's settings that `check_shape` reads."""

    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def size(self) -> tuple[int, int]: ...


class Timed(Protocol):
    """The fields of a network's settings that `global_vector` reads."""

    @property
    def time_scale(self) -> float: ...
    @property
    def time_offset(self) -> float: ...


class Worded(Protocol):
    """The fields of a network's settings that are read here."""

    @property
    def text_width(self) -> int: ...
    @property
    def pooled_width(self) -> int: ...
    @property
    def depth(self) -> int: ...


def check_shape(settings: Shaped, multiple: int, name: str = "patch") -> None:
    """Raise ValueError for a width that heads or positions do not divide, a size that `multiple` (`name`) does not."""
    width, heads, size = settings.width, settings.heads, settings.size
    if width % heads:
        raise ValueError(f"width {width} is not a multiple of heads {heads}")
    if width % 4:
        raise ValueError(f"width {width} is not a multiple of 4 (sin-cos position table)")
    if any(side <= 0 or side % multiple for side in size):
        raise ValueError(f"size {size} is not a multiple of {name} {multiple}")


def global_vector(settings: Timed, time: TimeEmbed, pooled: PooledEmbed | None, t: Tensor, cond: Condition) -> Tensor:
    """What modulates every block: c (B, D) of times t (B,) and the pooled text. Float32 under autocast."""
    with full_precision(t.device):
        c = time(t.float() * settings.time_scale + settings.time_offset)
        if pooled is not None and cond.pooled is not None:
            c = c + pooled(cond.pooled.to(c.dtype))
    return c


def null_text(cond: Condition) -> Condition:
    """The unconditional counterpart in training: all encoders' outputs are zeros (SD3 appendix B.3).

    Where the condition has a mask, nothing of the text is attended. At inference SD3 guides against the encoded empty
    prompt instead: `CFG(...).against(encoder([""]))`.
    """
    zeros = {name: torch.zeros_like(value) for name, value in cond.tensors.items()}
    return Condition(**zeros, parts=cond.parts)


def check_text(name: str, settings: Worded, cond: Condition, blocks: tuple[int, ...], batch: int) -> None:
    """Raise ValueError for missing text or pooled vector, other widths, a label, or a block that does not exist.

    Also for texts of another number than `batch`, and for a mask that is not bool (B, L): attention would add a mask
    of numbers to its logits.
    """
    if cond.label is not None:
        raise ValueError(f"{name}: this model reads text, and cond has a label; it would be ignored")
    if cond.text is None:
        raise ValueError(f"{name}: this model needs cond.text (B, L, {settings.text_width})")
    if cond.text.ndim != 3 or cond.text.shape[2] != settings.text_width:
        raise ValueError(f"{name}: cond.text is {tuple(cond.text.shape)}, expected (B, L, {settings.text_width})")
    if settings.pooled_width and (cond.pooled is None or cond.pooled.shape[-1] != settings.pooled_width):
        has = "none" if cond.pooled is None else tuple(cond.pooled.shape)
        raise ValueError(f"{name}: this model needs cond.pooled (B, {settings.pooled_width}), got {has}")
    if odd := [f"{key} has {len(value)}" for key, value in cond.tensors.items() if len(value) != batch]:
        raise ValueError(f"{name}: x has {batch} samples, and cond.{odd[0]}")
    mask = cond.mask
    if mask is not None and (mask.dtype != torch.bool or mask.shape != cond.text.shape[:2]):
        has = f"{mask.dtype} {tuple(mask.shape)}"
        raise ValueError(f"{name}: cond.mask is {has}, expected torch.bool {tuple(cond.text.shape[:2])}")
    if wrong := [i for i in blocks if not 1 <= i <= settings.depth]:
        raise ValueError(f"{name}: {wrong} names no block; blocks count from 1 to {settings.depth}")


def attended(cond: Condition, tokens: int) -> Tensor | None:
    """Key mask (B, L + tokens) bool of text tokens and then image tokens; None where everything is attended."""
    if cond.mask is None:
        return None
    image = cond.mask.new_ones(len(cond.mask), tokens)
    return torch.cat([cond.mask, image], dim=1)
