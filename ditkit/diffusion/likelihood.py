"""Log-likelihood of data by the probability-flow ODE (Song et al. 2021, eq. 39; Hutchinson's estimator: FFJORD)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ditkit.config import nearest
from ditkit.diffusion.ddpm import DDPM
from ditkit.diffusion.ode import EULER, HEUN, HEUN3, MIDPOINT, RK4, Field, adaptive, runge_kutta
from ditkit.diffusion.path import Path
from ditkit.diffusion.prediction import Kind, interval
from ditkit.diffusion.sample import Denoise
from ditkit.protocols import Condition, Denoiser

TABLEAUS = {"euler": EULER, "heun": HEUN, "midpoint": MIDPOINT, "heun3": HEUN3, "rk4": RK4}


def log_likelihood(
    model: Denoiser, x: Tensor, cond: Condition | None, *, path: Path, prediction: Kind, steps: int = 50,
    solver: str = "heun", rademacher: Callable[[int], Tensor],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Data x (B, C, H, W) -> (log p(x) in nats (B,), the latent noise z (B, C, H, W)), without guidance.

    log p(x) = log N(z; 0, prior_scale^2) + integral of div v from data to noise, with div v estimated as r^T (dv/dx) r.
    rademacher(k) gives the signs r (+-1, shaped like x) of the k-th evaluation: new ones each time as SiT does, or the
    same ones, which an adaptive solver needs to control its error. solver: euler, heun, midpoint, heun3, rk4 or dopri5.
    """
    if isinstance(path, DDPM):
        raise ValueError("log_likelihood needs a continuous path; a DDPM table has its variational bound instead")
    if solver != "dopri5" and solver not in TABLEAUS:
        raise ValueError(f"log_likelihood: solver {solver!r} is not known{nearest(solver, [*TABLEAUS, 'dopri5'])}")
    grid = torch.linspace(*interval(path, prediction, "sample"), steps + 1, dtype=torch.float64)
    field = augmented(Denoise(model, cond, path=path, prediction=prediction, times=grid), x.shape, rademacher)
    state = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], dim=1)
    if solver == "dopri5":
        state = adaptive(field, state, grid, atol=1e-6, rtol=1e-5, stop_at_end=True)
    else:
        state = runge_kutta(field, state, grid, TABLEAUS[solver])
    z, gain = state[:, :-1], state[:, -1]
    scale = float(path.prior_scale)
    prior = -0.5 * (z / scale).square().sum(1) - z.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(scale))
    return prior + gain, z.reshape(x.shape)


def augmented(denoise: Denoise, shape: torch.Size, rademacher: Callable[[int], Tensor]) -> Field:
    """d(x, integral of div v)/dt for the flattened state (B, C H W + 1)."""
    count = 0

    def field(state: Tensor, t: Tensor, step: int | None) -> Tensor:
        nonlocal count
        signs = rademacher(count).to(state).reshape(shape)
        count += 1
        with torch.enable_grad():
            x = state[:, :-1].reshape(shape).detach().requires_grad_()
            v = denoise(x, t, step).velocity
            (gradient,) = torch.autograd.grad((v * signs).sum(), x)
        divergence = (gradient * signs).flatten(1).sum(1, keepdim=True)
        return torch.cat([v.detach().flatten(1), divergence], dim=1)

    return field
