"""The harm that sharing DDT's encoder does to what the network says: between evaluations, and between branches.

Measured along sampling runs without sharing, by decoding each state again with another s. B templates (twice that in a
guided batch), N evaluations of one run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ditkit.analysis.schedule import check_schedule
from ditkit.analysis.templates import Templates, branches_of, parts, unshared
from ditkit.diffusion.guidance import Guidance
from ditkit.diffusion.path import Path
from ditkit.diffusion.prediction import Estimate, Kind
from ditkit.diffusion.sample import Denoise, SamplerSettings, integrate, parameters_of
from ditkit.diffusion.sharing import uniform_schedule
from ditkit.protocols import Condition, Decoupled, Output

Alternatives = Callable[[int, Tensor], Iterable[tuple[int, Tensor]]]
Tell = Callable[[int, int, Tensor, Tensor], None]


class _Pinned:
    """A Decoupled denoiser that can be told which s to decode with; `s` is what it encoded last."""

    def __init__(self, model: Decoupled):
        self.model, self.s = model, torch.empty(0)
        self.pinned: Tensor | None = None

    def __call__(self, x: Tensor, t: Tensor, cond: Condition, *, capture: tuple[int, ...] = ()) -> Output:
        if self.pinned is not None:
            return Output(self.model.decode(x, self.pinned))
        self.s = self.model.encode(x, t, cond)
        return Output(self.model.decode(x, self.s))

    def null(self, cond: Condition) -> Condition:
        return self.model.null(cond)

    def parameters(self) -> Iterable[Tensor]:
        return parameters_of(self.model)


class _Comparing(Denoise):
    """A Denoise that repeats every evaluation with other s, and tells what changes; the run itself stays as it is."""

    def __init__(
        self, model: Decoupled, cond: Condition, alternatives: Alternatives, tell: Tell, *,
        path: Path, prediction: Kind, guidance: Guidance | None,
    ):  # fmt: skip
        self.other = _Pinned(model)
        super().__init__(self.other, cond, path=path, prediction=prediction, guidance=guidance)
        self.alternatives, self.tell, self.index = alternatives, tell, 0

    def __call__(self, x: Tensor, t: Tensor | float, step: int | None = None) -> Estimate:
        true = super().__call__(x, t, step)
        for name, s in self.alternatives(self.index, self.other.s):
            self.other.pinned = s
            self.tell(self.index, name, super().__call__(x, t, step).value - true.value, true.value)
        self.other.pinned = None
        self.index += 1
        return true


class _Pulse:
    """A network of zeros, but for a one at its i-th call in row i."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x: Tensor, t: Tensor, cond: Condition, *, capture: tuple[int, ...] = ()) -> Output:
        out = torch.zeros_like(x)
        out[self.calls] = 1
        self.calls += 1
        return Output(torch.cat([out, torch.zeros_like(x)], dim=1))  # variance logits for the solvers that want them

    def null(self, cond: Condition) -> Condition:
        return cond


@torch.no_grad()
def evaluation_weights(sampler: SamplerSettings, path: Path, prediction: Kind) -> Tensor:
    """(N,) float64: how far the final sample moves when the network's output moves by 1 at one evaluation.

    The network's later answers to that are left out: for Euler it is the step dt of the evaluation; for multistep the
    summed Adams coefficients times their steps; for Heun about half a step. One run of the solver on pulses tells it.
    """
    count = sampler.evaluations(path, prediction)
    still = torch.zeros(count, 1, 1, 1, dtype=torch.float64)
    denoise = Denoise(_Pulse(), None, path=path, prediction=prediction)
    grid = sampler.times(path, prediction)
    return integrate(denoise, still, sampler.function, grid, lambda step: still).flatten()


def _compare(
    model: Decoupled, sampler: SamplerSettings, part: Templates, alternatives: Alternatives, tell: Tell, *,
    path: Path, prediction: Kind,
) -> None:  # fmt: skip
    """One run of `part` with every evaluation repeated for each of the alternatives(index, s) -> (name, other s).

    tell(index, name, change, output): how the guided network output (B, C, H, W) of this evaluation changes.
    """
    denoise = _Comparing(
        model, part.cond, alternatives, tell, path=path, prediction=prediction, guidance=sampler.guidance
    )
    noise = part.noise.to(getattr(torch, sampler.state))
    integrate(denoise, noise, sampler.function, sampler.times(path, prediction), part.draws())


@torch.no_grad()
def velocity_error(
    model: Decoupled, sampler: SamplerSettings, templates: Templates, *,
    path: Path, prediction: Kind, reach: int | None = None, at_once: int | None = None, coherent: bool = True,
) -> Tensor:  # fmt: skip
    """(N, N) float64 for `optimal_schedule`: how reusing s changes the final sample, evaluation by evaluation.

    Along the run without sharing, the (guided) network output v at evaluation l is computed again with the s of each
    earlier j: d = w_l (v(x_l, s_j) - v(x_l, s_l)), w from `evaluation_weights` (Euler: dt). coherent: d of one s add up
    as vectors, as they do in the sample, so that cumulative_error of the result at [i][j] is the mean square of
    d_jj + ... + d_ij, and entries are its increments (a negative one takes harm back). Else each entry is the mean
    square of its own d. Means over templates and latent numbers. What the network answers to a changed x is left out.
    reach: the longest reuse that is measured, all else is infinite (never), so that N reach instead of N^2 / 2 decoder
    runs a template are needed; 2 N / K does for K encoder runs. at_once as in `state_similarity`.
    Raises ValueError for reach below 1, a model without encode and decode, an adaptive solver.
    """
    sampler, everywhere = unshared(model, sampler, path, prediction)
    count = everywhere.evaluations
    if reach is not None and reach < 1:
        raise ValueError(f"sharing: a reach of {reach} leaves nothing to reuse: give 1 or more")
    reach = min(reach or count, count - 1)
    weights = evaluation_weights(sampler, path, prediction)
    total = torch.zeros(count, count, dtype=torch.float64)
    for part in parts(model, templates, branches_of(sampler) * (reach + 1), at_once):
        kept: dict[int, Tensor] = {}
        sums: dict[int, Tensor] = {}

        def alternatives(index: int, s: Tensor, kept=kept, sums=sums) -> Iterator[tuple[int, Tensor]]:
            yield from kept.items()
            kept[index] = s
            for passed in (kept, sums):
                passed.pop(index - reach, None)

        def tell(index: int, j: int, change: Tensor, output: Tensor, sums=sums) -> None:
            change = change * float(weights[index])
            if coherent:
                change = sums[j] = sums[j] + change if j in sums else change
            total[index, j] += float(change.square().mean(dim=(1, 2, 3)).sum()) / len(templates)

        _compare(model, sampler, part, alternatives, tell, path=path, prediction=prediction)
    if coherent:
        below = torch.tril(torch.ones_like(total), diagonal=-1).bool()
        total[1:] -= torch.where(below, total, 0.0)[:-1]
    rows = torch.arange(count)
    total[rows[:, None] - rows > reach] = torch.inf
    return total


@dataclass(frozen=True)
class BranchError:
    """Sharing between the guidance branches against sharing in time, at equal encoder work.

    Errors are of the guided output, each (N,) float64, weighted and averaged as velocity_error's squares; `output` is
    the same of the output itself. branch: the unconditional s is the conditional one plus their difference at the last
    full evaluation. time: both s are those of the last evaluation of `schedule`. same: the unconditional s is the
    conditional one; as s is all that the decoder knows, both outputs are then equal, and guidance itself is lost.
    work: encoder runs of either way, as a share of the 2 N (up to rounding, for `time`).
    """

    branch: Tensor
    time: Tensor
    same: Tensor
    output: Tensor
    work: float
    schedule: tuple[int, ...]


@torch.no_grad()
def branch_error(
    model: Decoupled, sampler: SamplerSettings, templates: Templates, full: Sequence[int], *,
    path: Path, prediction: Kind, schedule: Sequence[int] | None = None, at_once: int | None = None,
) -> BranchError:  # fmt: skip
    """Try to encode the conditional branch alone, and both only at the evaluations `full` (ascending from 0).

    That is N + len(full) of 2 N encoder runs, more than half of them always. schedule: the evaluations of the sharing
    in time that it is compared with; None: the uniform schedule of the same work.
    Raises ValueError without classifier-free guidance, or for lists that do not ascend from 0 below N.
    """
    sampler, everywhere = unshared(model, sampler, path, prediction)
    count = everywhere.evaluations
    if branches_of(sampler) != 2:
        raise ValueError("sharing: without classifier-free guidance there is one branch: nothing to share between")
    known, work = check_schedule(full, count), (count + len(full)) / (2 * count)
    against = check_schedule(uniform_schedule(count, int(work * count)) if schedule is None else schedule, count)
    squares = (evaluation_weights(sampler, path, prediction) ** 2).tolist()
    errors = torch.zeros(4, count, dtype=torch.float64)
    for part in parts(model, templates, 2 * 4, at_once):
        kept: dict[str, Tensor] = {}

        def alternatives(index: int, s: Tensor, kept=kept) -> Iterator[tuple[int, Tensor]]:
            strong, weak = s.chunk(2)
            if index in known:
                kept["difference"] = weak - strong
            if index in against:
                kept["s"] = s
            yield 0, s if index in known else torch.cat([strong, strong + kept["difference"]])
            yield 1, kept["s"]
            yield 2, torch.cat([strong, strong])

        def tell(index: int, name: int, change: Tensor, output: Tensor) -> None:
            for row, value in ((name, change), (3, output))[: 1 + (name == 0)]:
                mean = float(value.square().mean(dim=(1, 2, 3)).sum())
                errors[row, index] += squares[index] * mean / len(templates)

        _compare(model, sampler, part, alternatives, tell, path=path, prediction=prediction)
    branch, time, same, output = errors
    return BranchError(branch, time, same, output, work, against)
