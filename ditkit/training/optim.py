"""AdamW over network and projectors, the learning rate as a function of the step, and the cut of a batch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ditkit.training.parallel import total_norm
from ditkit.training.settings import TrainSettings


def make_optimizer(modules: Iterable[nn.Module], settings: TrainSettings) -> torch.optim.AdamW:
    """Fused AdamW over every trainable parameter of `modules`, one group per module."""
    groups = [[p for p in module.parameters() if p.requires_grad] for module in modules]
    return torch.optim.AdamW(
        [{"params": group} for group in groups if group],
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The rate of update number `step` (0-based): linear warm-up, then constant or half a cosine. Keeps no state."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return settings.lr
    done = min(1.0, (step - settings.warmup) / max(1, settings.steps - 1 - settings.warmup))
    return settings.final_lr + (settings.lr - settings.final_lr) * 0.5 * (1 + math.cos(math.pi * done))


def apply(optimizer: torch.optim.Optimizer, good: Tensor) -> None:
    """One update where `good` (scalar bool on the device) is true; else nothing changes, not even the update count.

    Fused AdamW looks at the flag on the device, so that the host need not wait for it (what a GradScaler tells it).
    """
    optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]
    optimizer.step()


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def pieces(rows: int, settings: TrainSettings) -> list[tuple[int, int]]:
    """Cut a device's `rows` into the (start, stop) of its forward passes, as even as they go.

    How a batch is cut changes nothing but memory: draws are keyed by the row's place in the global batch, and each
    piece's loss counts by its rows.
    """
    if settings.micro_batch is not None:
        count = math.ceil(rows / settings.micro_batch)
    else:
        count = min(settings.accumulate or 1, rows)
    edges = [rows * i // count for i in range(count + 1)]
    return list(itertools.pairwise(edges))


def gradient_norm(parameters: Iterable[Tensor], clip: float | None) -> Tensor:
    """The norm of all gradients together before clipping (scalar); gradients are scaled in place if it is over `clip`.

    REPA clips network and projectors jointly at 1.0; DiT, SiT and DDT do not clip.
    """
    used = [p for p in parameters if p.grad is not None]
    norm = total_norm([p.grad for p in used if p.grad is not None])
    if clip is not None:
        nn.utils.clip_grads_with_norm_(used, clip, norm, foreach=True)
    return norm
