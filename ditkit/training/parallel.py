"""Several processes that train one model: what each holds of it, and what they tell each other at every step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ditkit.ranks import ALONE, Ranks
from ditkit.training.settings import ParallelSettings


class Team:
    """The processes of one training. Alone, everything here is as if it were not there."""

    def __init__(self, ranks: Ranks = ALONE, settings: ParallelSettings | None = None):
        self.ranks, self.settings = ranks, settings or ParallelSettings()

    def share(self, module: nn.Module) -> nn.Module:
        """What the loop calls instead of `module`, so that gradients are those of the global batch."""
        return module

    @contextmanager
    def piece(self, modules: Sequence[nn.Module], last: bool) -> Iterator[None]:
        """One forward and backward pass of a step: gradients are exchanged after the last one only."""
        yield

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, on the device, the same bits in each."""
        return values

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether any process says so."""
        return flag

    def terms(self, terms: tuple, shared: nn.Module) -> tuple:
        """The aligner's terms, calling what `share` made of the aligner."""
        return terms
