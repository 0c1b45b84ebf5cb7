"""A short name for a set of weights: what a cache, a protocol or a run folder writes down."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

SAMPLES = 2048  # elements read of each tensor: seconds become milliseconds for a billion weights


def weight_hash(state: Mapping[str, Tensor]) -> str:
    """12 hex digits over the keys, shapes and up to 2048 evenly spaced values (as float32) of each tensor.

    Cheap on purpose, so it tells checkpoints apart but proves nothing against forgery. Buffers that are not saved
    do not count; dtype does not either, so that a half-precision copy of equal values keeps the name.
    """
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().flatten()
        step = max(1, tensor.numel() // SAMPLES)
        values = tensor[::step][:SAMPLES].to("cpu", torch.float32).contiguous()
        digest.update(f"{key} {tuple(state[key].shape)} ".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:12]
