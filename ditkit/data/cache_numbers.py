"""Numbers as a cache stores them, and back: half precision, bytes with a scale, bytes on the disk."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ditkit.data.cache_format import DTYPES, NAMES

LEVELS = 127  # of a sign: int8 without -128


def rounded(numbers: Tensor, dtype: str) -> Tensor:
    """Numbers in the dtype of this name ("fp16", ...). OverflowError where one of them is too large for it."""
    found = numbers.to(DTYPES[NAMES[dtype]])
    if found.is_floating_point() and (lost := numbers.isfinite() & ~found.isfinite()).any():
        raise OverflowError(f"numbers up to {numbers[lost].abs().max().item():.3g} do not fit into {dtype}")
    return found


def quantised(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (..., D) -> int8 (..., D) and a float32 scale a token (...); errors are at most max |token| / 254.

    OverflowError where they do not fit into half precision, in which they come back.
    """
    tokens = tokens.float()
    largest = tokens.abs().amax(-1)
    rounded(largest, "fp16")
    scale = largest / LEVELS
    levels = (tokens / scale.clamp(min=torch.finfo(torch.float32).tiny)[..., None]).round()
    return levels.clamp(-LEVELS, LEVELS).to(torch.int8), scale


def restored(levels: Tensor, scale: Tensor) -> Tensor:
    """What `quantised` made, back: (..., D) float32."""
    return levels.float().mul_(scale[..., None])


def row_bytes(tensor: Tensor) -> np.ndarray:
    """A tensor's rows as bytes: uint8 (rows, bytes of a row), on the CPU."""
    tensor = tensor.detach().to("cpu").contiguous()
    return tensor.view(len(tensor), -1).view(torch.uint8).numpy()
