"""How straight sampling paths are, and what coarse steps cost on them.

A path is a solution of the probability-flow ODE from noise (our t = 1) to data (t = 0). Straight and evenly travelled,
one Euler step is exact (rectified flow: Liu et al., arXiv 2209.03003, section 2.2).
Shapes: B paths, M recorded times, latents (C, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ditkit.analysis.ratio import Ratio
from ditkit.diffusion.guidance import Guidance
from ditkit.diffusion.path import Path
from ditkit.diffusion.prediction import Estimate, Kind
from ditkit.diffusion.sample import Denoise, SamplerSettings, integrate
from ditkit.protocols import Condition, Denoiser

SURE, ROUNDING, ORDER = 4, 1e-5, 3  # errors that tell a solver's order: see least_error, observed_order
STORED = 1 << 30  # bytes of velocities that are held at once, unless one path alone needs more


@dataclass(frozen=True)
class Flow:
    """An ODE to integrate: a network under conditions (B), or none, with its path, prediction and guidance."""

    model: Denoiser
    cond: Condition | None
    path: Path
    prediction: Kind
    guidance: Guidance | None = None

    def run(self, noise: Tensor, solver: str, steps: int, logbook: bool = False) -> tuple[Tensor, Denoise]:
        """(latents after so many even steps from unit noise (B, C, H, W), the Denoise that was called)."""
        options: dict = {"correct_last": True} if solver == "heun" else {}
        sampler = SamplerSettings(solver=solver, steps=steps, options=options)
        kind = Logbook if logbook else Denoise
        denoise = kind(self.model, self.cond, path=self.path, prediction=self.prediction, guidance=self.guidance)
        times = sampler.times(self.path, self.prediction)
        return integrate(denoise, noise, sampler.function, times, None), denoise

    def of(self, rows: slice) -> Flow:
        """The flow of these samples."""
        cond = self.cond if self.cond is None or not len(self.cond) else self.cond.index(rows)
        return Flow(self.model, cond, self.path, self.prediction, self.guidance)


class Logbook(Denoise):
    """A Denoise that keeps time, state and velocity wherever a step begins."""

    def __call__(self, x: Tensor, t: Tensor | float, step: int | None = None) -> Estimate:
        """As Denoise; the first call of a step is kept."""
        new = step is None or step > self.step
        estimate = super().__call__(x, t, step)
        if new:
            self.entries = [*getattr(self, "entries", []), (float(t), x, estimate.velocity)]
        return estimate


@dataclass(frozen=True)
class Travel:
    """Paths as travelled: times (M,), falling; velocities dx/dt there (B, M, numbers); both ends (B, numbers)."""

    times: Tensor
    velocities: Tensor
    start: Tensor
    end: Tensor


def travel(flow: Flow, noise: Tensor, steps: int) -> tuple[Travel, Tensor]:
    """(the paths from unit noise (B, C, H, W) by Heun's method in so many even steps, their latents)."""
    latents, denoise = flow.run(noise, "heun", steps, logbook=True)
    assert isinstance(denoise, Logbook) and denoise.times is not None
    denoise(latents, denoise.times[-1])  # the velocity at the end too
    times, states, velocities = zip(*denoise.entries, strict=True)
    kept = torch.stack(velocities, 1).flatten(2)
    return Travel(torch.tensor(times, dtype=torch.float64), kept, states[0].flatten(1), latents.flatten(1)), latents


@dataclass(frozen=True)
class Straightness:
    """Of each of B paths, float64. deviation (B, M): |chord - v|^2 at each time; chord (B,): |chord|^2, the chord being
    the mean velocity. length (B,): of the path, over the straight distance, 1 if straight. turn (B, M - 1): degrees
    between successive velocities, 0 where one of them stands still.
    """

    times: Tensor
    deviation: Tensor
    chord: Tensor
    length: Tensor
    turn: Tensor

    @staticmethod
    def join(parts: Sequence[Straightness]) -> Straightness:
        """The paths of all parts, which have the same times."""
        names = ("deviation", "chord", "length", "turn")
        return Straightness(parts[0].times, *(torch.cat([getattr(p, n) for p in parts]) for n in names))

    @property
    def s(self) -> Ratio:
        """Liu et al.'s S over E|chord|^2: the mean over t of E|chord - v|^2; 0 for straight, evenly travelled paths."""
        return Ratio.of(torch.trapezoid(self.deviation, self.times) / (self.times[-1] - self.times[0]), self.chord)

    @property
    def deviation_at(self) -> Tensor:
        """(M,): E|chord - v|^2 / E|chord|^2 at each time; S is its mean over t."""
        return self.deviation.mean(0) / self.chord.mean().clamp(min=torch.finfo(torch.float64).tiny)

    @property
    def turn_rate(self) -> Tensor:
        """(M - 1,): mean degrees of turning per unit of t, between successive times."""
        return self.turn.mean(0) / self.times.diff().abs()


def straightness(found: Travel) -> Straightness:
    """Straightness of travelled paths; integrals over t by the trapezoidal rule."""
    v, times = found.velocities.double().cpu(), found.times
    shift = (found.end.double() - found.start.double()).cpu()
    chord = shift / (times[-1] - times[0])
    deviation = (v - chord[:, None]).square().sum(2)
    speed = v.norm(dim=2)
    length = torch.trapezoid(speed, times).abs() / shift.norm(dim=1).clamp(min=1e-300)
    length = length.clamp(min=1)  # less is rounding, or coarse steps
    unit = v / speed.clamp(min=1e-300)[..., None]
    half = (unit[:, 1:] - unit[:, :-1]).norm(dim=2) / 2  # precise for small angles, which a cosine is not
    still = speed < 1e-6 * speed.mean(1, keepdim=True)  # has no direction
    turn = torch.where(still[:, 1:] | still[:, :-1], 0.0, 2 * torch.rad2deg(half.clamp(max=1).asin()))
    return Straightness(times, deviation, chord.square().sum(1), length, turn)


@dataclass(frozen=True)
class StepErrors:
    """errors (B, K): relative L2 distance of the latents from those of the fine run; evaluations (K,) of each count."""

    errors: Tensor
    evaluations: tuple[int, ...]


def step_errors(flow: Flow, noise: Tensor, fine: Tensor, solver: str, counts: Sequence[int]) -> StepErrors:
    """Integrate again with few even steps of a solver ("euler", "heun") and compare with the fine latents."""
    errors, spent = [], []
    scale = fine.flatten(1).double().norm(dim=1).clamp(min=1e-300)
    for steps in counts:
        latents, denoise = flow.run(noise, solver, steps)
        errors.append((latents.double() - fine.double()).flatten(1).norm(dim=1) / scale)
        spent.append(denoise.evaluations)
    return StepErrors(torch.stack(errors, 1).cpu(), tuple(spent))


def least_error(reference: float) -> float:
    """Below which an error says nothing of its solver, where the fine run ends `reference` off one of half its steps.

    Heun's own error is about a third of that; four times it is what 1 in 12 of an error is not made of. And ROUNDING.
    """
    return max(SURE * reference, ROUNDING)


def observed_order(counts: Sequence[int], errors: Sequence[float], least: float = 0.0) -> float | None:
    """p of error ~ N^-p: fitted in logarithms to the last ORDER errors from `least` to 1; None of fewer than 2."""
    points = [(math.log(n), math.log(e)) for n, e in zip(counts, errors, strict=True) if least < e <= 1][-ORDER:]
    if len(points) < 2:
        return None
    x, y = torch.tensor(points, dtype=torch.float64).T
    x = x - x.mean()
    return -float((x @ y) / (x @ x))


def at_once(numbers: int, steps: int, most: int) -> int:
    """Paths that are recorded together: at most `most`, and as many as fit STORED bytes."""
    return max(1, min(most, STORED // (4 * numbers * (steps + 1))))
