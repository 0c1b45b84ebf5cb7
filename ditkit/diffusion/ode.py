"""Solvers of the probability-flow ODE dx/dt = v(x, t) (Song et al. 2021; flow matching: Lipman et al. 2023).

Every solver is `(denoise, path, x, times, noise, *, own settings) -> x` with x (B, C, H, W) the state at times[0],
times N + 1 grid points in our time (0 = data; decreasing to sample, increasing to invert) and
`denoise(x, t, step) -> Estimate`. `noise` is not used here. The grid is held in float64 on the CPU: scalars of it
combine with a state of any dtype on any device without changing either, and without waiting for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ditkit.diffusion.path import Path
from ditkit.diffusion.prediction import Estimate

Denoising = Callable[[Tensor, Tensor, int | None], Estimate]
Draws = Callable[[int], Tensor]
Times = Tensor | Sequence[float]
Order = Literal[1, 2, 3, 4]
Variable = Literal["time", "log_snr"]
Field = Callable[[Tensor, Tensor, int | None], Tensor]
Tableau = tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]

# Butcher tableaus: the rows below the diagonal of A (the nodes c are their sums), then b.
EULER: Tableau = (((),), (1.0,))
HEUN: Tableau = (((), (1.0,)), (0.5, 0.5))
MIDPOINT: Tableau = (((), (0.5,)), (0.0, 1.0))
HEUN3: Tableau = (((), (1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4))
RK4: Tableau = (((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8))


def as_grid(times: Times) -> Tensor:
    """Times as float64 (N + 1,) on the CPU. Errors: fewer than two points, not strictly monotonic, outside [0, 1]."""
    grid = torch.as_tensor(times).detach().to("cpu", torch.float64)
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError(f"solver: times must be a list of at least two points, got shape {tuple(grid.shape)}")
    differences = grid.diff()
    if not (bool((differences < 0).all()) or bool((differences > 0).all())):
        raise ValueError("solver: times must be strictly decreasing (sampling) or strictly increasing (inversion)")
    if float(grid.min()) < 0 or float(grid.max()) > 1:
        raise ValueError(f"solver: times must lie in [0, 1], got {float(grid.min()):g} to {float(grid.max()):g}")
    return grid


def intervals(times: Times) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """(step, (t, next t)) for each interval of the grid, as scalar tensors."""
    return enumerate(pairwise(as_grid(times)))


def runge_kutta(field: Field, x: Tensor, times: Times, tableau: Tableau) -> Tensor:
    """Explicit Runge-Kutta over the grid: x' = x + h sum_j b_j k_j with k_j = v(x + h sum_l a_jl k_l, t + c_j h)."""
    rows, weights = tableau
    for step, (t, end) in intervals(times):
        h = end - t
        slopes: list[Tensor] = []
        for row in rows:
            node = sum(row)
            inner = x + h * weighted(row, slopes) if any(row) else x
            slopes.append(field(inner, end if abs(node - 1) < 1e-12 else t + node * h, step))
        x = x + h * weighted(weights, slopes)
    return x


def weighted(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """sum_j w_j k_j over the non-zero weights."""
    terms = [k if w == 1 else w * k for w, k in zip(weights, slopes, strict=True) if w]
    return sum(terms[1:], start=terms[0])


def velocity_field(denoise: Denoising) -> Field:
    """The right-hand side v(x, t) of the ODE."""
    return lambda x, t, step: denoise(x, t, step).velocity


def euler(denoise: Denoising, path: Path, x: Tensor, times: Times, noise: Draws | None = None) -> Tensor:
    """Euler's method, order 1, one evaluation a step. REPA's ODE sampler, DDT's, SD3's, flow matching's default."""
    return runge_kutta(velocity_field(denoise), x, times, EULER)


def heun(
    denoise: Denoising, path: Path, x: Tensor, times: Times, noise: Draws | None = None, *,
    correct_last: bool = False, reuse: bool = False,
) -> Tensor:  # fmt: skip
    """Heun's trapezoidal method, order 2, two evaluations a step (Karras et al. 2022, algorithm 1).

    The last step has no corrector (EDM, REPA: 2 N - 1 evaluations) unless `correct_last` (SiT: 2 N). reuse: the
    corrector's slope, of the predicted state, also begins the next step (DDT's release): N evaluations, still order 2.
    """
    grid, field = as_grid(times), velocity_field(denoise)
    if reuse:
        return heun_reusing(field, x, grid, correct_last=correct_last)
    if correct_last:
        return runge_kutta(field, x, grid, HEUN)
    last = len(grid) - 2
    if last:
        x = runge_kutta(field, x, grid[:-1], HEUN)
    return x + (grid[-1] - grid[-2]) * field(x, grid[-2], last)


def heun_reusing(field: Field, x: Tensor, grid: Tensor, *, correct_last: bool) -> Tensor:
    """Heun in the mode predict-evaluate-correct: the slope at a predicted state serves the corrected one as well."""
    last = len(grid) - 2
    slope = field(x, grid[0], 0)
    for step, (t, end) in enumerate(pairwise(grid if correct_last else grid[:-1])):
        ahead = field(x + (end - t) * slope, end, min(step + 1, last))
        x, slope = x + 0.5 * (end - t) * (slope + ahead), ahead
    return x if correct_last else x + (grid[-1] - grid[-2]) * slope


def midpoint(denoise: Denoising, path: Path, x: Tensor, times: Times, noise: Draws | None = None) -> Tensor:
    """The midpoint method, order 2, two evaluations a step, none at the end of the grid."""
    return runge_kutta(velocity_field(denoise), x, times, MIDPOINT)


def heun3(denoise: Denoising, path: Path, x: Tensor, times: Times, noise: Draws | None = None) -> Tensor:
    """Heun's three-stage method, order 3, three evaluations a step, none at the end of the grid."""
    return runge_kutta(velocity_field(denoise), x, times, HEUN3)


def rk4(denoise: Denoising, path: Path, x: Tensor, times: Times, noise: Draws | None = None) -> Tensor:
    """Kutta's 3/8 rule (1901), order 4, four evaluations a step; it is what torchdiffeq and SiT call rk4."""
    return runge_kutta(velocity_field(denoise), x, times, RK4)


def multistep(
    denoise: Denoising, path: Path, x: Tensor, times: Times, noise: Draws | None = None, *,
    order: Order = 2, variable: Variable = "time",
) -> Tensor:  # fmt: skip
    """Adams-Bashforth on any grid, orders 1-4, one evaluation a step (Lagrange form: DDT, Wang et al. 2025, section 3).

    The last `order` velocities are interpolated by a polynomial, which is integrated exactly; the order ramps 1, 2, ...
    variable="log_snr" (DDT's release) takes the polynomial, and its mean over a step, in log(alpha / sigma) instead of
    t, with 1e-3 added to sigma and below alpha: order 2 at most, for steps in t not below 1e-3.
    """
    if order not in get_args(Order):
        raise ValueError(f"multistep: order must be 1, 2, 3 or 4, got {order}")
    if variable not in get_args(Variable):
        raise ValueError(f"multistep: variable must be {' or '.join(get_args(Variable))}, got {variable!r}")
    nodes: list[float] = []
    slopes: list[Tensor] = []
    for step, (t, end) in intervals(times):
        start, stop = (place(path, point, variable) for point in (t, end))
        nodes = [*nodes, start][-order:]
        slopes = [*slopes, denoise(x, t, step).velocity][-order:]
        x = x + (end - t) * weighted(lagrange_weights(nodes, start, stop), slopes)
    return x


def place(path: Path, t: Tensor, variable: Variable) -> float:
    """Where the scalar t lies on the axis of interpolation: t itself, or log(max(alpha, 0.001) / (sigma + 0.001))."""
    if variable == "time":
        return float(t)
    return math.log(max(float(path.alpha(t)), 1e-3) / (float(path.sigma(t)) + 1e-3))


def lagrange_weights(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """Mean over [start, end] of each Lagrange basis polynomial of `nodes`; they sum to 1 (float64).

    With u = (node - start) / (end - start) they solve sum_j w_j u_j^k = 1 / (k + 1) for k = 0 ... n - 1.
    """
    u = (np.asarray(nodes, dtype=np.float64) - start) / (end - start)
    powers = np.vander(u, increasing=True).T
    weights = np.linalg.solve(powers, 1.0 / np.arange(1, len(u) + 1))
    return [float(w) for w in weights / weights.sum()]


def dopri5(
    denoise: Denoising, path: Path, x: Tensor, times: Times, noise: Draws | None = None, *,
    atol: float = 1e-6, rtol: float = 1e-3, stop_at_end: bool = True,
) -> Tensor:  # fmt: skip
    """Dormand & Prince (1980) order 5(4) with adaptive steps, through torchdiffeq: from times[0] to times[-1].

    The points between have no influence, and the number of evaluations follows from the tolerances. Steps are shared
    by the batch, so the result depends (below the tolerance) on how samples are batched. SiT's ODE mode lets the last
    step pass the end and interpolates back; `stop_at_end=False` does the same, and evaluates beyond t = 0.
    """
    return adaptive(velocity_field(denoise), x, times, atol=atol, rtol=rtol, stop_at_end=stop_at_end)


def adaptive(field: Field, x: Tensor, times: Times, *, atol: float, rtol: float, stop_at_end: bool) -> Tensor:
    """dx/dt = field(x, t, None) from times[0] to times[-1] by torchdiffeq's dopri5."""
    from torchdiffeq import odeint  # brings scipy: a third of a second that only this solver should cost

    grid = as_grid(times)
    low, high = float(grid.min()), float(grid.max())
    start, sign = float(grid[0]), 1.0 if grid[-1] > grid[0] else -1.0
    dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    span = torch.tensor([0.0, abs(float(grid[-1]) - start)], dtype=dtype, device=x.device)

    def forward(elapsed: Tensor, state: Tensor) -> Tensor:
        t = start + sign * elapsed.cpu().to(torch.float64)
        return sign * field(state, t.clamp(low, high) if stop_at_end else t, None)

    options = {"step_t": span[1:]} if stop_at_end else {}
    return odeint(forward, x, span, method="dopri5", atol=atol, rtol=rtol, options=options)[-1]
