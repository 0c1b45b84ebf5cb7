"""From noise to latents: a model, a path, a guidance and a solver brought together.

`sample` is the function, `Denoise` the object that solvers call (and that counts network evaluations),
`SamplerSettings` the same as data: a recipe's line "which solver, how many steps, which guidance".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ditkit.config import Settings
from ditkit.diffusion.ddpm import DDPM
from ditkit.diffusion.guidance import CFG, AnyGuidance, Autoguidance, Guidance
from ditkit.diffusion.ode import Draws, Times
from ditkit.diffusion.path import Path
from ditkit.diffusion.prediction import Estimate, Kind, interval, network_input
from ditkit.diffusion.schedules import sd3_grid
from ditkit.diffusion.sharing import SharedEncoder, Sharing
from ditkit.diffusion.solvers import ADAPTIVE, JUMPING, Solver, check_options, find_solver, reverse_ddim
from ditkit.diffusion.times import grid_with_last, shift, uniform_grid
from ditkit.protocols import Condition, Denoiser, Output


class Denoise:
    """What a solver calls: denoise(x, t, step) -> Estimate. One object per sampling run; it counts what was spent.

    evaluations: network evaluations per sample (a guided step costs 2). calls: [(rows in the batch, t)] of every call
    of a network, in order. For guidance: start, the time at which the current step began; step, its number from 0 (-1
    before the first, and for a solver without steps), of `steps` (0: not known).
    """

    def __init__(
        self, model: Denoiser, cond: Condition | None, *, path: Path, prediction: Kind,
        guidance: Guidance | None = None, times: Tensor | None = None,
        progress: Callable[[int], None] | None = None,
    ):  # fmt: skip
        self.model, self.path, self.prediction, self.guidance = model, path, prediction, guidance
        self.cond = Condition() if cond is None else cond
        self.times, self.progress = times, progress
        self.start, self.step = 1.0, -1
        self.steps = 0 if times is None else len(times) - 1
        self.evaluations = 0
        self.calls: list[tuple[int, float]] = []

    def __call__(self, x: Tensor, t: Tensor | float, step: int | None = None) -> Estimate:
        """x (B, C, H, W) at time t (scalar), in the solver's step number `step` (None where it has none) -> Estimate.

        The state keeps its dtype; the network is called in its own, with t in float32.
        """
        t = torch.as_tensor(t, dtype=torch.float64)
        self.start = float(t if step is None or self.times is None else self.times[step])
        if step is not None and step > self.step:
            self.step = step
            if self.progress is not None:
                self.progress(step)
        raw = self.passes(x, t, self.cond)[0] if self.guidance is None else self.guidance(self, x, t, self.cond)
        channels = x.shape[1]
        if raw.shape[1] not in (channels, 2 * channels):
            raise ValueError(f"model: {raw.shape[1]} channels out for {channels} in, expected as many or twice that")
        variance = raw[:, channels:] if raw.shape[1] > channels else None
        return Estimate(x, t, self.path, self.prediction, raw[:, :channels], variance)

    def passes(self, x: Tensor, t: Tensor, *conds: Condition, model: Denoiser | None = None) -> tuple[Tensor, ...]:
        """Raw outputs (B, C or 2C, H, W) under each condition, from one batched call of the (or another) network."""
        model = self.model if model is None else model
        n, count = len(x), len(conds)
        dtype = next((p.dtype for p in parameters_of(model) if p.is_floating_point()), x.dtype)
        time = torch.full((n * count,), float(t), dtype=torch.float32, device=x.device)  # filled there: no copy waits
        seen = network_input(self.path, x, t).to(dtype)
        batch = seen if count == 1 else torch.cat([seen] * count)
        self.evaluations += count
        self.calls.append((n * count, float(t)))
        out = model(batch, time, conds[0] if count == 1 else Condition.concat(conds)).sample
        return tuple(out.to(x.dtype).split(n))

    def null(self, cond: Condition) -> Condition:
        """The model's unconditional counterpart of `cond`."""
        return self.model.null(cond)


def parameters_of(model: object):
    """The parameters of a network or a wrapper of one; nothing for a plain callable."""
    parameters = getattr(model, "parameters", None)
    return parameters() if callable(parameters) else ()


class _StandIn:
    """A network for counting calls: zeros, with variance logits for the solvers that want them."""

    def __call__(self, x: Tensor, t: Tensor, cond: Condition, *, capture: tuple[int, ...] = ()) -> Output:
        return Output(torch.cat([x, x], dim=1) * 0)

    def null(self, cond: Condition) -> Condition:
        return cond


def no_draws(step: int) -> Tensor:
    """Stands where no noise source was given."""
    raise ValueError("sample: this solver draws noise at every step: give noise_source (for example SampleNoise)")


@torch.no_grad()
def sample(
    model: Denoiser, noise: Tensor, cond: Condition | None, *, path: Path, prediction: Kind,
    solver: Solver | str, times: Times, guidance: Guidance | None = None, noise_source: Draws | None = None,
) -> Tensor:  # fmt: skip
    """Integrate from `noise` (B, C, H, W) along `times` to latents (B, C, H, W) in the dtype of `noise`.

    noise: unit Gaussian where times begin at 1 (scaled here by path.prior_scale); else the state at times[0].
    solver: a function of `ditkit.diffusion.solvers` (functools.partial for its settings) or its name.
    times: N + 1 points for ODE and SDE solvers; on a DDPM table the N visited times k / (T - 1).
    noise_source: step -> (B, C, H, W), for solvers that draw. To see the network evaluations spent, build a `Denoise`
    and call the solver with it: this function does nothing else.
    """
    function = find_solver(solver) if isinstance(solver, str) else solver
    denoise = Denoise(model, cond, path=path, prediction=prediction, guidance=guidance)
    return integrate(denoise, noise, function, times, noise_source)


def integrate(denoise: Denoise, noise: Tensor, solver: Solver, times: Times, noise_source: Draws | None) -> Tensor:
    """Run `solver` on `denoise` from `noise` along `times`; times and the prior's scale are put right here."""
    grid = torch.as_tensor(times).detach().to("cpu", torch.float64)
    visits = isinstance(denoise.path, DDPM) and getattr(solver, "func", solver) in JUMPING - {reverse_ddim}
    denoise.times, denoise.steps = grid, len(grid) if visits else len(grid) - 1
    x = noise * denoise.path.prior_scale if float(grid[0]) == 1 else noise
    return solver(denoise, denoise.path, x, grid, noise_source or no_draws)


class SamplerSettings(Settings):
    """How to sample: solver, steps, grid and guidance. A published row's sampler is one of these.

    Examples: DiT `solver="ancestral", steps=250`; SiT's ODE `solver="heun", steps=125, options={"correct_last": True}`,
    its SDE `solver="euler_maruyama", steps=250, last=0.04`; REPA's SDE the same with `options={"form": "linear"}`.
    """

    solver: str = Field("euler", description="a name in ditkit.diffusion.solvers.SOLVERS")
    steps: int = Field(50, ge=1, description="steps of the solver; on a DDPM table the number of visited indices")
    options: dict[str, bool | int | float | str] = Field(default_factory=dict, description="the solver's own settings")
    guidance: AnyGuidance | None = Field(None, description="None: the conditional pass alone")
    shift: float = Field(1.0, gt=0, description="time shift of the grid; > 1 spends more steps near the noise")
    last: float | None = Field(None, gt=0, lt=1, description="size of the last step (SiT, REPA, DDT: 0.04)")
    start: float | None = Field(None, gt=0, le=1, description="first time; None: 1, or the nearest finite time")
    stop: float | None = Field(None, ge=0, lt=1, description="last time; None: 0, or the nearest finite time")
    spacing: Literal["even", "ddim", "sd3"] = Field(
        "even",
        description="even: with both ends; ddim: ddimN's DDPM indices; sd3: as Stability and diffusers, see sd3_grid",
    )
    state: Literal["float32", "float64"] = Field("float32", description="dtype of the solver's state (REPA: float64)")
    sharing: Sharing | None = Field(None, description="evaluations at which a DDT's encoder runs; None: all")

    @model_validator(mode="after")
    def _known(self) -> SamplerSettings:
        check_options(self.solver, self.options)
        return self

    @property
    def function(self) -> Solver:
        """The solver with its options bound."""
        return partial(find_solver(self.solver), **self.options)

    def times(self, path: Path, prediction: Kind) -> Tensor:
        """The grid, float64: N + 1 points, or N visited times on a DDPM table; increasing for reverse_ddim."""
        solver = find_solver(self.solver)
        if self.spacing == "sd3":
            if path.kind != "linear" or any(end is not None for end in (self.last, self.start, self.stop)):
                raise ValueError(
                    "sampler: spacing sd3 is for the linear path, and has no last, start or stop: remove them"
                )
            grid = sd3_grid(self.steps, self.shift)
        elif isinstance(path, DDPM) and solver in JUMPING:
            grid = self.visited(path)
        else:
            low, high = interval(path, prediction, "sample")
            start = high if self.start is None else self.start
            if solver in JUMPING and solver is not reverse_ddim:
                low = 0.0  # the last jump lands on the data without looking there
            stop = low if self.stop is None else self.stop
            if self.last is None:
                grid = uniform_grid(self.steps, start, stop)
            elif self.stop is None:
                grid = grid_with_last(self.steps, self.last, start)
            else:
                raise ValueError("sampler: the step of size `last` ends at 0: remove `stop`")
            grid = shift(grid, self.shift)
        return grid.flip(0) if solver is reverse_ddim else grid

    def visited(self, path: DDPM) -> Tensor:
        """The visited times (N,) of a DDPM table, falling: those of a respaced path, else `steps` of all."""
        if self.shift != 1 or self.last is not None or self.start is not None or self.stop is not None:
            raise ValueError("sampler: shift, last, start and stop have no meaning on a DDPM table: remove them")
        if path.indices is not None and path.length != self.steps:
            raise ValueError(f"sampler: {self.steps} steps asked on a path respaced to {path.length}: make them equal")
        return path.visited(self.steps, "ddim" if self.spacing == "ddim" else "even")

    @torch.no_grad()
    def evaluations(self, path: Path, prediction: Kind) -> int:
        """Calls of the network in one run, counted on a stand-in; both branches of CFG are one call.

        Raises ValueError for an adaptive solver: its calls are known only afterwards.
        """
        if find_solver(self.solver) in ADAPTIVE:
            raise ValueError(
                f"sampler: {self.solver!r} chooses its evaluations as it goes, and adaptive solvers cannot share "
                "the encoder: use one with fixed steps, such as euler"
            )
        still = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
        denoise = Denoise(_StandIn(), None, path=path, prediction=prediction)
        integrate(denoise, still, self.function, self.times(path, prediction), lambda step: still)
        return len(denoise.calls)

    def shared(self, model: Denoiser, path: Path, prediction: Kind) -> Denoiser:
        """The model with its encoder shared as `sharing` says, for one run; the model itself where that is None.

        Raises ValueError for a schedule made for another number of evaluations, or a model that cannot share.
        """
        if self.sharing is None:
            return model
        count = self.evaluations(path, prediction)
        if count != self.sharing.evaluations:
            raise ValueError(
                f"sampler: the sharing schedule {self.sharing.rule!r} was made for {self.sharing.evaluations} "
                f"evaluations and this sampler makes {count}: make one for it"
            )
        return SharedEncoder(model, self.sharing)

    @torch.no_grad()
    def run(
        self, model: Denoiser, noise: Tensor, cond: Condition | None, *, path: Path, prediction: Kind,
        noise_source: Draws | None = None, autoguide: Denoiser | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[Tensor, int]:  # fmt: skip
        """noise (B, C, H, W) -> (latents, network evaluations per sample).

        autoguide: the weaker model of an Autoguidance. progress(step, steps) is called when a step begins. While
        sharing, CFG runs both branches at every evaluation (s is of one batch); a weaker model is not shared.
        """
        guidance = self.guidance
        model = self.shared(model, path, prediction)
        if self.sharing is not None and isinstance(guidance, CFG):
            guidance = guidance.model_copy(update={"skip_outside": False})
        if isinstance(guidance, Autoguidance) and autoguide is not None:
            guidance = guidance.against(autoguide)
        denoise = Denoise(model, cond, path=path, prediction=prediction, guidance=guidance)
        if progress is not None:
            denoise.progress = lambda step: progress(step, self.steps)
        noise = noise.to(getattr(torch, self.state))
        latents = integrate(denoise, noise, self.function, self.times(path, prediction), noise_source)
        return latents, denoise.evaluations
