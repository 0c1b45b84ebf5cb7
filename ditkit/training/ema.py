"""The averaged weights that are sampled and scored."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from ditkit.training.parallel import local


class Ema:
    """Exponential moving average: starts as a copy, then w <- decay w + (1 - decay) model, without bias correction.

    All four papers average this way with decay 0.9999. `model` is the averaged copy: frozen, in eval mode, never
    compiled. Buffers are copied, not averaged. Weights that are frozen when it starts are shared, not copied: of a
    model with an adapter only the adapter is averaged.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        shared = {id(p): p for p in model.parameters() if not p.requires_grad}
        self.model = deepcopy(model, shared).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: nn.Module, good: Tensor | None = None) -> None:
        """One step towards `model`, whose parameters must be those that the average was started from.

        good: scalar bool on their device; where it is false nothing moves. The host does not wait for it.
        """
        pairs = zip(self.model.parameters(), model.parameters(), strict=True)
        trained = [(mine, other) for mine, other in pairs if other.requires_grad]
        ours: list[Tensor] = [local(mine) for mine, _ in trained]  # of cut weights this process's parts
        theirs: list[Tensor] = [local(other) for _, other in trained]
        if good is None:
            torch._foreach_lerp_(ours, theirs, 1 - self.decay)
        else:
            weight = torch.where(good, 1 - self.decay, 0.0)  # float32: the bits of the line above
            torch._foreach_lerp_(ours, theirs, [weight] * len(ours))
        for mine, other in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(other)
