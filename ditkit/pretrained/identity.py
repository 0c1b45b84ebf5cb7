"""A short name for a set of weights: what a cache, a protocol or a run folder writes down."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

SAMPLES = 2048  # elements read of each tensor: seconds become milliseconds for a billion weights


def weight_hash(state: Mapping[str, Tensor]) -> str:
    """12 hex digits over the shapes and up to 2048 evenly spaced values (as float32) of all tensors.

    Keys and their order do not count: transformers renames modules between versions, the weights stay the same.
    Dtype does not either. Cheap on purpose: it tells checkpoints apart, it proves nothing against forgery.
    """
    return hashlib.sha256("".join(sorted(map(_digest, state.values()))).encode()).hexdigest()[:12]


def _digest(tensor: Tensor) -> str:
    flat = tensor.detach().flatten()
    values = flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES].to("cpu", torch.float32).contiguous()
    return hashlib.sha256(f"{tuple(tensor.shape)}".encode() + values.numpy().tobytes()).hexdigest()
