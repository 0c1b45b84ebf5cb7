"""Solvers that jump between noise levels by the data estimate: DDIM, DDPM ancestral, DPM-Solver++(2M).

They need no derivative of the path and run on every path. On a continuous path `times` are N + 1 points, as for the
ODE solvers. On a DDPM table they are the N visited times k / (T - 1) and a last jump to the data (alpha 1, sigma 0) is
implied, because index 0 still holds noise. Form of the solvers as in ode.py; draws are asked as noise(step).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ditkit.diffusion.ddpm import DDPM, Variance
from ditkit.diffusion.ode import Denoising, Draws, Times, as_grid
from ditkit.diffusion.path import Path
from ditkit.diffusion.prediction import Estimate

Variable = Literal["log_snr", "log_sigma"]


class Jump(NamedTuple):
    """From noise level (alpha, sigma) at time t to (alpha_to, sigma_to); float64 scalars, `step` counts from 0."""

    step: int
    t: Tensor
    alpha: Tensor
    sigma: Tensor
    alpha_to: Tensor
    sigma_to: Tensor

    @property
    def beta(self) -> Tensor:
        """Variance that the forward process adds between the two levels: sigma^2 - (alpha / alpha_to)^2 sigma_to^2."""
        return (self.sigma**2 - (self.alpha / self.alpha_to * self.sigma_to) ** 2).clamp(min=0)

    @property
    def posterior(self) -> Tensor:
        """Variance of q(x_to | x_t, x) (Ho et al. 2020, eq. 7; here for any path): beta sigma_to^2 / sigma^2."""
        return self.beta * self.sigma_to**2 / self.sigma**2


def jumps(path: Path, times: Times, *, to_data: bool = True) -> Iterator[Jump]:
    """The jumps along `times`; on a DDPM table with one more at the end, to the data (unless not `to_data`)."""
    extra = to_data and isinstance(path, DDPM)
    values = torch.as_tensor(times, dtype=torch.float64).cpu()
    grid = values if extra and values.shape == (1,) else as_grid(values)
    if to_data and grid[0] < grid[-1]:
        raise ValueError("times must decrease, from the noise to the data; reverse_ddim is the solver that goes up")
    levels = [(path.alpha(t), path.sigma(t)) for t in grid]
    if extra:
        levels.append((torch.ones_like(grid[0]), torch.zeros_like(grid[0])))
    for step in range(len(levels) - 1):
        yield Jump(step, grid[step], *levels[step], *levels[step + 1])


def split(estimate: Estimate, jump: Jump, clip: bool) -> tuple[Tensor, Tensor]:
    """(data, noise) of an estimate; `clip` keeps the data in [-1, 1] and recomputes the noise from it."""
    if not clip:
        return estimate.data, estimate.noise
    data = estimate.data.clamp(-1, 1)
    return data, (estimate.x - jump.alpha * data) / jump.sigma


def ddim(
    denoise: Denoising,
    path: Path,
    x: Tensor,
    times: Times,
    noise: Draws | None = None,
    *,
    eta: float = 0.0,
    clip: bool = False,
) -> Tensor:
    """DDIM (Song, Meng & Ermon 2021, eq. 12), one evaluation a step; eta 1 is DDPM's posterior variance, 0 none."""
    if eta and noise is None:
        raise ValueError("ddim: eta > 0 draws noise at every step: give noise_source")
    for jump in jumps(path, times):
        data, eps = split(denoise(x, jump.t, jump.step), jump, clip)
        variance = eta**2 * jump.posterior
        x = jump.alpha_to * data + (jump.sigma_to**2 - variance).clamp(min=0).sqrt() * eps
        if noise is not None and variance > 0:
            x = x + variance.sqrt() * noise(jump.step).to(x)
    return x


def reverse_ddim(
    denoise: Denoising, path: Path, x: Tensor, times: Times, noise: Draws | None = None, *, clip: bool = False
) -> Tensor:
    """DDIM run towards the noise (inversion: Dhariwal & Nichol 2021, appendix F), eta 0: increasing times, no draws.

    x is the state at times[0]; N + 1 times are N steps, on a DDPM table too.
    """
    if as_grid(times)[0] > as_grid(times)[-1]:
        raise ValueError("reverse_ddim: times must increase, from the data to the noise")
    for jump in jumps(path, times, to_data=False):
        data, eps = split(denoise(x, jump.t, jump.step), jump, clip)
        x = jump.alpha_to * data + jump.sigma_to * eps
    return x


def ancestral(
    denoise: Denoising, path: Path, x: Tensor, times: Times, noise: Draws, *,
    variance: Variance = "learned_range", clip: bool = False,
) -> Tensor:  # fmt: skip
    """DDPM ancestral sampling (Ho et al. 2020, algorithm 2; learned range: Nichol & Dhariwal 2021, eq. 15).

    variance: "learned_range" needs a model with variance logits; "fixed_large" is beta, "fixed_small" the posterior's.
    """
    if variance not in get_args(Variance):
        raise ValueError(f"ancestral: variance {variance!r} is not known: use one of {', '.join(get_args(Variance))}")
    for jump in jumps(path, times):
        estimate = denoise(x, jump.t, jump.step)
        data, _ = split(estimate, jump, clip)
        # posterior mean: alpha_to beta / sigma^2 x + (alpha / alpha_to) sigma_to^2 / sigma^2 x_t
        mean = (jump.alpha_to * jump.beta / jump.sigma**2) * data
        x = mean + (jump.alpha / jump.alpha_to * jump.sigma_to**2 / jump.sigma**2) * x
        if jump.sigma_to > 0:
            x = x + deviation(estimate, jump, variance) * noise(jump.step).to(x)
    return x


def deviation(estimate: Estimate, jump: Jump, variance: Variance) -> Tensor:
    """Standard deviation of one ancestral step: scalar, or (B, C, H, W) when learned."""
    if variance == "fixed_large":
        return jump.beta.sqrt()
    if variance == "fixed_small":
        return jump.posterior.sqrt()
    if estimate.variance is None:
        raise ValueError("ancestral: this model predicts no variance: use variance='fixed_large' or 'fixed_small'")
    share = (estimate.variance + 1) / 2  # log variance = share log beta + (1 - share) log posterior
    return torch.exp(0.5 * (share * jump.beta.log() + (1 - share) * jump.posterior.log()))


def dpmpp_2m(
    denoise: Denoising, path: Path, x: Tensor, times: Times, noise: Draws | None = None, *,
    variable: Variable = "log_snr",
) -> Tensor:  # fmt: skip
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), one evaluation a step, order 2 in the half log-SNR.

    x' = sigma'/sigma x + (alpha' - alpha sigma'/sigma) D, where D extrapolates the last two data estimates. The first
    step and a step to sigma' = 0 are of first order, and so is the one after a start at alpha = 0 (infinite log-SNR).
    variable: what D is extrapolated in; SD3.5's and k-diffusion's sampler of this name uses -log sigma on any path.
    """
    if variable not in get_args(Variable):
        raise ValueError(f"dpmpp_2m: variable {variable!r} is not known: use one of {', '.join(get_args(Variable))}")
    previous, h_previous = x, math.inf
    for jump in jumps(path, times):
        data = denoise(x, jump.t, jump.step).data
        h = clock(variable, jump.alpha_to, jump.sigma_to) - clock(variable, jump.alpha, jump.sigma)
        first_order = jump.step == 0 or math.isinf(h)
        guess = data if first_order else data + (h / (2 * h_previous)) * (data - previous)
        ratio = jump.sigma_to / jump.sigma
        x = ratio * x + (jump.alpha_to - jump.alpha * ratio) * guess
        previous, h_previous = data, h
    return x


def clock(variable: Variable, alpha: Tensor, sigma: Tensor) -> float:
    """Half the log-SNR, log(alpha / sigma), or -log sigma: minus infinity where alpha is 0, infinity where sigma is."""
    return float((torch.log(alpha) if variable == "log_snr" else 0.0) - torch.log(sigma))
