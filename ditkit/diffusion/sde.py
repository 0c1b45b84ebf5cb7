"""Solvers of the reverse-time SDE with a free diffusion coefficient (SiT, Ma et al. 2024, eq. 5 and section 3.3).

In our time (running from 1 to 0) dx = (v - D s) dt + sqrt(2 D) dw, with v the velocity, s the score and any D(t) >= 0.
SiT's paper and REPA write w = 2 D. D s is computed as -(D / sigma) eps: the quotient stays finite where s does not.
Form of the solvers and of `times` as in ode.py; `noise(step)` gives one draw per noisy step, shaped like x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from ditkit.diffusion.ode import Denoising, Draws, Times, as_grid, intervals
from ditkit.diffusion.path import Path
from ditkit.diffusion.prediction import Estimate

Form = Literal["constant", "sbdm", "sigma", "linear", "decreasing", "increasing-decreasing"]
Rule = Literal["mean", "euler", "tweedie", "none"]


def _sbdm(path: Path, t: Tensor, norm: float) -> Tensor:
    """norm times half the squared diffusion of the forward process: sigma d_sigma - sigma^2 d_alpha / alpha."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    if float(alpha) < 1e-6:
        return torch.full_like(t, math.inf)
    return norm * sigma * (path.d_sigma(t) - sigma * path.d_alpha(t) / alpha)


# D(t) by name (SiT, table 6 and its appendix; SiT's time is 1 - t)
FORMS: dict[str, Callable[[Path, Tensor, float], Tensor]] = {
    "constant": lambda path, t, norm: torch.full_like(t, norm),
    "sbdm": _sbdm,
    "sigma": lambda path, t, norm: norm * path.sigma(t),
    "linear": lambda path, t, norm: norm * t,
    "decreasing": lambda path, t, norm: 0.25 * (1 - norm * torch.cos(math.pi * t)) ** 2,
    "increasing-decreasing": lambda path, t, norm: norm * torch.sin(math.pi * t) ** 2,
}


def diffusion(form: Form, path: Path, t: Tensor, norm: float = 1.0) -> tuple[Tensor, Tensor]:
    """(D(t), D(t) / sigma(t)) for a scalar t; where sigma is 0 the quotient is its limit.

    Errors: unknown form; D or the quotient infinite at t (sbdm where alpha is 0, constant where sigma is 0).
    """
    if form not in FORMS:
        raise ValueError(f"diffusion form {form!r} is not known: use one of {', '.join(FORMS)}")
    d = FORMS[form](path, t, norm)
    sigma = path.sigma(t)
    if float(sigma) > 0:
        quotient = d / sigma
    elif float(d) == 0:
        near = torch.full_like(t, 1e-6)
        quotient = FORMS[form](path, near, norm) / path.sigma(near)
    else:
        quotient = torch.full_like(t, math.inf)
    if not (math.isfinite(float(d)) and math.isfinite(float(quotient))):
        raise ValueError(
            f"diffusion form {form!r} is infinite at t = {float(t):g} on the {path.kind} path: "
            "keep the grid away from this end, or choose another form"
        )
    return d, quotient


def drift(estimate: Estimate, quotient: Tensor) -> Tensor:
    """v - D s, the drift of the reverse-time SDE."""
    return estimate.velocity + quotient * estimate.noise


def euler_maruyama(
    denoise: Denoising, path: Path, x: Tensor, times: Times, noise: Draws, *,
    form: Form = "sigma", norm: float = 1.0, last_rule: Rule = "mean",
) -> Tensor:  # fmt: skip
    """Euler-Maruyama, one evaluation a step (SiT's and REPA's SDE sampler; REPA is form="linear" on every path).

    The last interval of the grid follows `last_rule` without noise: "mean" the SDE drift, "euler" the ODE drift,
    "tweedie" the data estimate; "none" treats it as all others.
    """
    grid, noisy = split_grid(times, last_rule)
    for step, (t, end) in intervals(noisy) if len(noisy) > 1 else ():
        d, quotient = diffusion(form, path, t, norm)
        h = end - t
        x = x + h * drift(denoise(x, t, step), quotient) + (2 * d * h.abs()).sqrt() * noise(step).to(x)
    return last_step(denoise, path, x, grid, form=form, norm=norm, last_rule=last_rule)


def heun_sde(
    denoise: Denoising, path: Path, x: Tensor, times: Times, noise: Draws, *,
    form: Form = "sigma", norm: float = 1.0, last_rule: Rule = "mean", reuse: bool = False,
) -> Tensor:  # fmt: skip
    """SiT's Heun SDE sampler, two evaluations a step: the noise first, then a trapezoidal step of the drift.

    `last_rule` as in `euler_maruyama`. reuse: DDT's release, one evaluation a step; see `heun_sde_reusing`.
    """
    grid, noisy = split_grid(times, last_rule)
    if reuse:
        return heun_sde_reusing(denoise, path, x, grid, noise, form=form, norm=norm, last_rule=last_rule)
    for step, (t, end) in intervals(noisy) if len(noisy) > 1 else ():
        d, quotient = diffusion(form, path, t, norm)
        h = end - t
        x = x + (2 * d * h.abs()).sqrt() * noise(step).to(x)
        first = drift(denoise(x, t, step), quotient)
        second = drift(denoise(x + h * first, end, step), diffusion(form, path, end, norm)[1])
        x = x + 0.5 * h * (first + second)
    return last_step(denoise, path, x, grid, form=form, norm=norm, last_rule=last_rule)


def heun_sde_reusing(
    denoise: Denoising, path: Path, x: Tensor, grid: Tensor, noise: Draws, *, form: Form, norm: float, last_rule: Rule
) -> Tensor:
    """Heun's SDE step with D held at its start, whose second evaluation also begins the next step (and the last).

    The draw is part of both the predicted and the corrected state. Raises ValueError for the last-step rule "none".
    """
    if last_rule == "none":
        raise ValueError("heun_sde: with reuse the last step needs a rule: set last_rule to mean, euler or tweedie")
    estimate = denoise(x, grid[0], 0)
    for step, (t, end) in enumerate(pairwise(grid[:-1])):
        d, quotient = diffusion(form, path, t, norm)
        h = end - t
        first, draw = drift(estimate, quotient), (2 * d * h.abs()).sqrt() * noise(step).to(x)
        estimate = denoise(x + h * first + draw, end, step + 1)
        x = x + 0.5 * h * (first + drift(estimate, d / path.sigma(end))) + draw
    return last_move(estimate, path, x, grid, form=form, norm=norm, last_rule=last_rule)


def split_grid(times: Times, last_rule: Rule) -> tuple[Tensor, Tensor]:
    """(all points, those between which steps are noisy): the last interval has its own rule unless that is none."""
    if last_rule not in get_args(Rule):
        raise ValueError(f"last step rule {last_rule!r} is not known: use one of {', '.join(get_args(Rule))}")
    grid = as_grid(times)
    if grid[0] < grid[-1]:
        raise ValueError("SDE solvers run from the noise to the data: times must decrease")
    return grid, grid if last_rule == "none" else grid[:-1]


def last_step(
    denoise: Denoising, path: Path, x: Tensor, grid: Tensor, *, form: Form, norm: float, last_rule: Rule
) -> Tensor:
    """The deterministic step over the last interval of the grid: mean, euler, tweedie, or none."""
    if last_rule == "none":
        return x
    estimate = denoise(x, grid[-2], len(grid) - 2)
    return last_move(estimate, path, x, grid, form=form, norm=norm, last_rule=last_rule)


def last_move(
    estimate: Estimate, path: Path, x: Tensor, grid: Tensor, *, form: Form, norm: float, last_rule: Rule
) -> Tensor:
    """The last step from x by an estimate at its start."""
    if last_rule == "tweedie":
        return estimate.data
    t, h = grid[-2], grid[-1] - grid[-2]
    return x + h * (estimate.velocity if last_rule == "euler" else drift(estimate, diffusion(form, path, t, norm)[1]))
