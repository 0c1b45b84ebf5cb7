"""What a network costs, counted without allocating it (meta device)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from ditkit.models import AnyModel, Condition, build_model


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


def cost(settings: AnyModel, size: tuple[int, int] | None = None) -> Cost:
    """Cost of the network `settings` at latent size (H, W), default its native one; matrix products only are counted.

    Autoencoder, teacher and projectors are not included, as in the published tables. Takes about a second for XL.
    """
    with torch.device("meta"):
        model = build_model(settings).eval()
        x = torch.empty(1, settings.channels, *(size or settings.size))
        cond = Condition(label=torch.zeros(1, dtype=torch.long)) if settings.num_classes else Condition()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(x, torch.zeros(1), cond)
    trainable = sum(p.numel() for p in model.parameters())
    stored = sum(v.numel() for v in model.state_dict().values())
    return Cost(stored, trainable, counter.get_total_flops() / 2e9)
