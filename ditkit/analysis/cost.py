"""What a network costs, counted without allocating it (meta device)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ditkit.diffusion.sharing import check_budget
from ditkit.models import AnyModel, Condition, SelfCondition, build_model, example_condition
from ditkit.protocols import Decoupled


@dataclass(frozen=True)
class Cost:
    """Numbers of one network at one latent size.

    parameters: every stored number, with the frozen position table. trainable: without it, what the papers print.
    gmacs: 1e9 multiply-accumulates of one forward pass of one sample. The DiT, SiT and REPA papers call these "Gflops";
    a counter of floating point operations says twice as much.
    """

    parameters: int
    trainable: int
    gmacs: float


@dataclass(frozen=True)
class SharingCost:
    """1e9 multiply-accumulates of one evaluation of a DDT on one sample, and of its parts (matrix products only).

    full: encoder and decoder. encoder: making s, the share that sharing saves. decoder: an evaluation that reuses s
    but computes its modulations again. shared: one that has kept them too (bit-equal).
    """

    full: float
    encoder: float
    decoder: float
    shared: float

    def run(self, evaluations: int, budget: int, keep: bool = True) -> float:
        """GMACs a sample of a run of N `evaluations` whose encoder runs `budget` times. ValueError outside 1 ... N."""
        check_budget(evaluations, budget)
        return budget * self.full + (evaluations - budget) * (self.shared if keep else self.decoder)

    def speedup(self, evaluations: int, budget: int, keep: bool = True) -> float:
        """Predicted ratio of time, no sharing over sharing; `keep` the modulations, or not. ValueError as `run`."""
        return evaluations * self.full / self.run(evaluations, budget, keep)


def cost(settings: AnyModel, size: tuple[int, int] | None = None) -> Cost:
    """Cost of the network `settings` at latent size (H, W), default its native one; matrix products only are counted.

    Autoencoder, teacher and projectors are not included, as in the published tables. Takes about a second for XL.
    """
    with torch.device("meta"), torch.no_grad():
        model, x, t, cond = _stand_in(settings, size)
        with FlopCounterMode(display=False) as counter:
            model(x, t, cond)
    trainable = sum(p.numel() for p in model.parameters())
    stored = sum(v.numel() for v in model.state_dict().values())
    return Cost(stored, trainable, _gmacs(counter))


def sharing_cost(settings: AnyModel, size: tuple[int, int] | None = None) -> SharingCost:
    """Cost of the halves of the DDT `settings` at latent size (H, W), default its native one.

    ValueError for a network without encode and decode, or (improved DiT) without an encoder to share.
    """
    counters = [FlopCounterMode(display=False) for _ in range(4)]
    with torch.device("meta"), torch.no_grad():
        model, x, t, cond = _stand_in(settings, size)
        if not isinstance(model, Decoupled) or not getattr(settings, "encoder_blocks", 1):
            raise ValueError(f"sharing_cost: this {type(model).__name__} has no encoder to share: only a DDT has one")
        with counters[0]:
            model(x, t, cond)
        with counters[1]:
            s = SelfCondition(model.encode(x, t, cond))
        with counters[2]:
            model.decode(x, s)
        with counters[3]:
            model.decode(x, s)
    return SharingCost(*(_gmacs(counter) for counter in counters))


def _stand_in(settings: AnyModel, size: tuple[int, int] | None) -> tuple[nn.Module, Tensor, Tensor, Condition]:
    """The network and one sample of its input, on the device that is set."""
    cond = example_condition(settings, 1, "meta")
    x = torch.empty(1, settings.channels, *(size or settings.size))
    return build_model(settings).eval(), x, torch.zeros(1), cond


def _gmacs(counter: FlopCounterMode) -> float:
    return counter.get_total_flops() / 2e9
