"""Islands of full precision inside autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def full_precision(device: torch.device) -> AbstractContextManager:
    """A context in which autocast is off, for times and conditioning vectors: bfloat16 keeps 8 bits of a time.

    The meta device knows no autocast and needs none.
    """
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
