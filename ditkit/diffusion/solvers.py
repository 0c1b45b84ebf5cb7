"""All solvers by name. A solver is a function (denoise, path, x, times, noise, *, own settings) -> x: see ode.py.

Users add their own by passing such a function to `sample`, or by adding it to `SOLVERS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from torch import Tensor

from ditkit.config import nearest
from ditkit.diffusion.discrete import ancestral, ddim, dpmpp_2m, reverse_ddim
from ditkit.diffusion.ode import dopri5, euler, heun, heun3, lagrange_weights, midpoint, multistep, rk4
from ditkit.diffusion.sde import FORMS, diffusion, euler_maruyama, heun_sde

Solver = Callable[..., Tensor]

SOLVERS: dict[str, Solver] = {
    function.__name__: function
    for function in (
        euler, heun, midpoint, heun3, rk4, multistep, dopri5,  # ODE: every continuous path
        euler_maruyama, heun_sde,  # SDE: every continuous path
        ddim, reverse_ddim, ancestral, dpmpp_2m,  # jumps: every path, and the only ones for a DDPM table
    )
}  # fmt: skip

JUMPING: frozenset[Solver] = frozenset({ddim, reverse_ddim, ancestral, dpmpp_2m})


def find_solver(name: str) -> Solver:
    """The solver of this name; an unknown name is answered with the nearest one."""
    if name not in SOLVERS:
        raise ValueError(f"solver {name!r} is not known{nearest(name, SOLVERS)}")
    return SOLVERS[name]


def solver_options(solver: Solver) -> dict[str, object]:
    """The solver's own settings and their defaults."""
    parameters = inspect.signature(solver).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


__all__ = [
    "FORMS", "JUMPING", "SOLVERS", "Solver", "ancestral", "ddim", "diffusion", "dopri5", "dpmpp_2m", "euler",
    "euler_maruyama", "find_solver", "heun", "heun3", "heun_sde", "lagrange_weights", "midpoint", "multistep",
    "reverse_ddim", "rk4", "solver_options",
]  # fmt: skip
