"""Encoder sharing (DDT, section 4.3): how alike s is from evaluation to evaluation, and schedules made of it.

`state_similarity` is the paper's statistic, `velocity_error` the harm itself (see harm.py); `sharing_schedule` and
`optimal_schedule` make schedules of them (see schedule.py).
Shapes: B templates (twice that in a guided batch), N evaluations of one run, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ditkit.analysis.harm import BranchError, branch_error, evaluation_weights, velocity_error
from ditkit.analysis.schedule import cumulative_error, optimal_schedule, schedule_cost, sharing_schedule
from ditkit.analysis.templates import Templates, branches_of, draw_templates, parts, unshared
from ditkit.diffusion.path import Path
from ditkit.diffusion.prediction import Kind
from ditkit.diffusion.sample import SamplerSettings
from ditkit.diffusion.sharing import SharedEncoder, uniform_schedule
from ditkit.protocols import Decoupled

PIECE = 1 << 26  # bytes of s that are multiplied at once, in float64


@dataclass(frozen=True)
class Statistics:
    """How alike s is at the N evaluations of a run: cosines, mean over templates and tokens (float64, CPU).

    similarity: (N, N), over both guidance branches: the paper's. times: (N,). templates: how many runs.
    conditional, unconditional: (N, N), of each branch alone. between: (N,), of the two branches at one evaluation.
    Without guidance there is one branch: the latter two are None.
    """

    similarity: Tensor
    times: Tensor
    templates: int
    conditional: Tensor
    unconditional: Tensor | None = None
    between: Tensor | None = None


@torch.no_grad()
def state_similarity(
    model: Decoupled, sampler: SamplerSettings, templates: Templates, *,
    path: Path, prediction: Kind, at_once: int | None = None,
) -> Statistics:  # fmt: skip
    """Sample the templates with the encoder at every evaluation, and compare all s (DDT, section 4.3).

    The sampler's own guidance steers; both branches are evaluated always, as while sharing. at_once: templates held in
    memory together; None holds at most 1 GiB of s (but one template). The numbers do not depend on it.
    Raises ValueError for a model without an encoder to share or an adaptive solver.
    """
    sampler, everywhere = unshared(model, sampler, path, prediction)
    count = everywhere.evaluations
    branches = branches_of(sampler)
    cosines = torch.zeros(branches, count, count, dtype=torch.float64)
    between = torch.zeros(count, dtype=torch.float64)
    times: list[float] = []
    for part in parts(model, templates, branches * count, at_once):
        states: list[Tensor] = []
        times = []

        def observe(index: int, x: Tensor, t: Tensor, s: Tensor, states=states, times=times) -> None:
            states.append(F.normalize(s.float(), dim=-1).unflatten(0, (branches, -1)))
            times.append(float(t[0]))

        shared = SharedEncoder(model, everywhere, observe)
        sampler.run(shared, part.noise, part.cond, path=path, prediction=prediction, noise_source=part.draws())
        share = len(part) / len(templates)
        for branch in range(branches):
            cosines[branch] += share * _gram([s[branch] for s in states])
        if branches == 2:
            between += share * torch.stack([(s[0] * s[1]).sum(-1).double().mean().cpu() for s in states])
    both = (cosines[1], between) if branches == 2 else ()
    return Statistics(cosines.mean(0), torch.tensor(times, dtype=torch.float64), len(templates), cosines[0], *both)


def _gram(states: Sequence[Tensor]) -> Tensor:
    """(N, N) float64 on the CPU: mean over B and T of the products of unit vectors (B, T, D)."""
    rows = [s.flatten(0, 1) for s in states]
    step = max(1, PIECE // (8 * len(rows) * rows[0].shape[1]))
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows[0].device)
    for start in range(0, len(rows[0]), step):
        piece = torch.stack([r[start : start + step].flatten() for r in rows]).double()
        total += piece @ piece.T
    return (total / len(rows[0])).cpu()


__all__ = [
    "BranchError", "Statistics", "Templates", "branch_error", "cumulative_error", "draw_templates",
    "evaluation_weights", "optimal_schedule", "schedule_cost", "sharing_schedule", "state_similarity",
    "uniform_schedule", "velocity_error",
]  # fmt: skip
