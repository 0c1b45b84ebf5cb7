"""All solvers by name. A solver is a function (denoise, path, x, times, noise, *, own settings) -> x: see ode.py.

Users add their own by passing such a function to `sample`, or by adding it to `SOLVERS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import get_type_hints

from pydantic import TypeAdapter, ValidationError
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
ADAPTIVE: frozenset[Solver] = frozenset({dopri5})  # the number of evaluations is known only afterwards


def find_solver(name: str) -> Solver:
    """The solver of this name; an unknown name is answered with the nearest one."""
    if name not in SOLVERS:
        raise ValueError(f"solver {name!r} is not known{nearest(name, SOLVERS)}")
    return SOLVERS[name]


def solver_options(solver: Solver) -> dict[str, object]:
    """The solver's own settings and their defaults."""
    parameters = inspect.signature(solver).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def check_options(name: str, options: Mapping[str, object]) -> None:
    """Raise ValueError, in one line, for an option that the solver has not or a value that it does not take."""
    solver = find_solver(name)
    known, types = solver_options(solver), get_type_hints(solver)
    for key, value in options.items():
        if key not in known:
            raise ValueError(f"solver {name!r} has no option {key!r}{nearest(key, known)}")
        try:
            TypeAdapter(types[key]).validate_python(value, strict=not isinstance(value, int))
        except ValidationError as error:
            raise ValueError(f"solver {name!r}, option {key!r} = {value!r}: {error.errors()[0]['msg']}") from None


__all__ = [
    "ADAPTIVE", "FORMS", "JUMPING", "SOLVERS", "Solver", "ancestral", "check_options", "ddim", "diffusion", "dopri5",
    "dpmpp_2m", "euler", "euler_maruyama", "find_solver", "heun", "heun3", "heun_sde", "lagrange_weights", "midpoint",
    "multistep", "reverse_ddim", "rk4", "solver_options",
]  # fmt: skip
