"""The optimizer over network and projectors, the learning rate as a function of the step, and the cut of a batch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from ditkit.training.muon import MuonAdamW
from ditkit.training.muon import matrices as muon_matrices
from ditkit.training.parallel import total_norm
from ditkit.training.settings import TrainSettings


def make_optimizer(modules: Sequence[nn.Module], settings: TrainSettings) -> torch.optim.AdamW | MuonAdamW:
    """Fused AdamW over every trainable parameter of `modules` (the network first), one group per module.

    With `settings.muon` the matrices inside the network's blocks are Muon's. ValueError if there are none.
    """
    matrices = muon_matrices(modules[0]) if settings.muon is not None else {}
    if settings.muon is not None and not matrices:
        raise ValueError(
            "training.muon: there are no whole matrices inside blocks that are trained (an adapter's stay with AdamW): "
            "leave it out"
        )
    named = [[(n, p) for n, p in module.named_parameters() if p.requires_grad] for module in modules]
    taken = [(p, matrices[n]) for n, p in named[0] if n in matrices]
    apart = {id(p) for p, _ in taken}
    groups = [[p for _, p in own if id(p) not in apart] for own in named]
    adamw = torch.optim.AdamW(
        [{"params": group} for group in groups if group],
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    return MuonAdamW(adamw, taken, settings) if taken else adamw


def describe(optimizer: torch.optim.Optimizer) -> str:
    """What each optimizer has: "Muon for 96 matrices in 64 weights (21,233,664 numbers), AdamW for 3,142 numbers"."""
    if not isinstance(optimizer, MuonAdamW):
        return f"AdamW for {_numbers(p for group in optimizer.param_groups for p in group['params']):,} numbers"
    own = optimizer.param_groups[-1]["params"]
    rest = _numbers(p for group in optimizer.param_groups[:-1] for p in group["params"])
    matrices = sum(optimizer.cuts[id(p)] for p in own)
    return f"Muon for {matrices} matrices in {len(own)} weights ({_numbers(own):,} numbers), AdamW for {rest:,} numbers"


def moments_of(optimizer: torch.optim.Optimizer) -> Callable[[Tensor], tuple[str, ...]]:
    """The names of what the optimizer remembers of a parameter."""
    matrices = optimizer.cuts if isinstance(optimizer, MuonAdamW) else {}
    return lambda parameter: ("momentum_buffer",) if id(parameter) in matrices else ("step", "exp_avg", "exp_avg_sq")


def _numbers(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The rate of update number `step` (0-based): linear warm-up, then what `schedule` says. Keeps no state.

    cosine: half a cosine from the end of the warm-up to `final_lr` at the last step. stable_decay (Hu et al. 2024,
    arXiv 2404.06395, with a linear descent): constant, then in equal parts to `final_lr` over the last `decay_steps`.
    """
    s = settings
    if step < s.warmup:
        return s.lr * (step + 1) / s.warmup
    if s.schedule == "constant":
        return s.lr
    if s.schedule == "stable_decay":
        descent = s.decay_steps or max(1, min(s.steps // 5, s.steps - s.warmup))
        return s.lr + (s.final_lr - s.lr) * min(1.0, max(0, step - (s.steps - 1 - descent)) / descent)
    done = min(1.0, (step - s.warmup) / max(1, s.steps - 1 - s.warmup))
    return s.final_lr + (s.lr - s.final_lr) * 0.5 * (1 + math.cos(math.pi * done))


def apply(optimizer: torch.optim.Optimizer, good: Tensor) -> None:
    """One update where `good` (scalar bool on the device) is true; else nothing changes, not even the update count.

    Fused AdamW and our Muon look at the flag on the device, so that the host need not wait for it (what a GradScaler
    tells an optimizer).
    """
    optimizer.found_inf = (~good).float()  # type: ignore[attr-defined]
    optimizer.step()


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group this learning rate; Muon's goes up and down in proportion."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)


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
