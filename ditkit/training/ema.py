"""The averaged weights: the one that is sampled and scored, and further ones beside it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from ditkit.training.parallel import local
from ditkit.training.power import gamma_of
from ditkit.training.settings import TrainSettings


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
        trained = [(local(mine), local(other)) for mine, other in pairs if other.requires_grad]
        if not trained:
            return
        ours: list[Tensor] = [mine for mine, _ in trained]
        theirs: list[Tensor] = [other for _, other in trained]
        if good is None:
            torch._foreach_lerp_(ours, theirs, 1 - self.decay)
        else:
            weight = torch.where(good, 1 - self.decay, 0.0)  # float32: the bits of the line above
            torch._foreach_lerp_(ours, theirs, [weight] * len(ours))
        for mine, other in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(other)


class Averages:
    """The averages beside the first: of `ema_also` exponential ones, of `ema_power` power-function ones (EDM2).

    Plain tensors beside the trained parameters of `modules` (cut as they are), begun as copies. Names are those of
    their files: "ema-0.999", "power-0.05". `count`: averagings so far, for the power functions alone, and on the device
    where there are any; one that is skipped moves nothing and does not count, so that a profile is over the updates
    that were made.
    """

    def __init__(self, modules: Sequence[nn.Module], settings: TrainSettings):
        self.trained = [[(n, p) for n, p in module.named_parameters() if p.requires_grad] for module in modules]
        parameters = [p for own in self.trained for _, p in own]
        device = parameters[0].device if parameters else torch.device("cpu")
        self.rates = {file_of("ema", decay): 1 - decay for decay in settings.ema_also}
        self.powers = {file_of("power", width): gamma_of(width) + 1 for width in settings.ema_power}
        self.tensors = {name: [p.detach().clone() for p in parameters] for name in (*self.rates, *self.powers)}
        exact = torch.float32 if device.type == "mps" else torch.float64  # mps has none; up to 2^24 it counts as well
        self.count = torch.zeros((), dtype=exact, device=device if self.powers else "cpu")

    @torch.no_grad()
    def update(self, good: Tensor) -> None:
        """One averaging of all, unless `good` (scalar bool on the device) is false. The host does not wait for it."""
        if not any(self.tensors.values()):
            return
        theirs = [local(p) for own in self.trained for _, p in own]
        steps: dict[str, Tensor | float] = {**self.rates}
        if self.powers:
            self.count += good
            left = torch.log1p(-1 / self.count.clamp_min(1))  # log(1 - 1/n): -inf at the first, which is taken whole
            for name, power in self.powers.items():  # 1 - (1 - 1/n)^(gamma + 1) without cancellation
                steps[name] = -torch.expm1(power * left)
        for name, own in self.tensors.items():
            weight = torch.where(good, steps[name], 0.0).float()
            torch._foreach_lerp_([local(mine) for mine in own], theirs, [weight] * len(own))

    def of(self, name: str, module: int) -> dict[str, Tensor]:
        """Parameter name -> averaged tensor of one average and module."""
        start = sum(len(own) for own in self.trained[:module])
        names = [n for n, _ in self.trained[module]]
        return dict(zip(names, self.tensors[name][start : start + len(names)], strict=True))

    @torch.no_grad()
    def begin(self, name: str) -> None:
        """Make one average a copy of the weights of now."""
        for mine, (_, theirs) in zip(self.tensors[name], (pair for own in self.trained for pair in own), strict=True):
            local(mine).copy_(local(theirs))


def file_of(kind: str, number: float) -> str:
    """The file of an average in a checkpoint, without suffix: "ema-0.999", "power-0.05"."""
    return f"{kind}-{number!r}"
