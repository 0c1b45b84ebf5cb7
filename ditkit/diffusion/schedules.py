"""Grids of noise levels as Stability's SD3 code and diffusers' FlowMatchEulerDiscreteScheduler space them.

On the linear path a time is its noise level sigma, so all of these are grids of times for solvers. The paper's own grid
is shift(uniform_grid(steps), s), which is the default of SamplerSettings; the published ones differ below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ditkit.diffusion.path import Path, interpolate
from ditkit.diffusion.times import shift as shifted

TABLE = 1000  # both keep a table of sigma = k / 1000, k = 1 ... 1000, shifted


def sd3_grid(steps: int, shift: float = 3.0) -> Tensor:
    """steps + 1 times (float64): equally spaced between the ends of the *shifted* table, shifted again, then 0.

    So the low end is shifted twice: with shift 3 the last step starts at 0.0089, not at 0.0030.
    """
    low = float(shifted(torch.tensor(1 / TABLE, dtype=torch.float64), shift))
    return _ended(shifted(torch.linspace(1, low, steps, dtype=torch.float64), shift))


def flow_match_grid(
    steps: int, shift: float = 1.0, *, mu: float | None = None, dynamic: Literal["exponential", "linear"] | None = None,
    terminal: float | None = None, spacing: Literal["even", "karras", "exponential"] = "even",
    inverted: bool = False, sigmas: Sequence[float] | None = None,
) -> Tensor:  # fmt: skip
    """diffusers' grid with its options, steps + 1 times (float64), falling to 0; `inverted` rises from near 0 to 1.

    dynamic: the table is not shifted, and the grid by e^mu ("exponential") or mu ("linear") in place of `shift`.
    terminal: stretched so that the last step starts there. spacing: between the ends so found, equal steps of
    sigma^(1/7) (Karras et al. 2022) or of log sigma. sigmas: these levels, before shifting, in place of equal steps.
    Raises ValueError for dynamic without mu or mu without dynamic, and for `terminal` with a single step.
    """
    if (dynamic is None) != (mu is None):
        raise ValueError("flow_match_grid: dynamic shifting and mu need each other: give both or neither")
    factor = shift
    if mu is not None:
        factor = math.exp(mu) if dynamic == "exponential" else mu
    if sigmas is not None:
        levels = torch.as_tensor(sigmas, dtype=torch.float64)
    else:
        low = torch.tensor(1 / TABLE, dtype=torch.float64)
        levels = torch.linspace(1, float(low if dynamic else shifted(low, shift)), steps, dtype=torch.float64)
    levels = shifted(levels, factor)
    if terminal is not None:
        if len(levels) < 2:
            raise ValueError("flow_match_grid: a terminal level needs at least two steps")
        levels = 1 - (1 - levels) * ((1 - terminal) / (1 - levels[-1]))
    if spacing != "even":
        levels = _respaced(levels, spacing)
    return torch.cat([1 - levels, levels.new_ones(1)]) if inverted else _ended(levels)


def _respaced(levels: Tensor, spacing: str) -> Tensor:
    """As many levels between the same ends, equally spaced in sigma^(1/7) or in log sigma."""
    ramp = torch.linspace(0, 1, len(levels), dtype=torch.float64)
    high, low = levels[0], levels[-1]
    if spacing == "karras":
        return (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    return high * (low / high) ** ramp


def _ended(levels: Tensor) -> Tensor:
    return torch.cat([levels, levels.new_zeros(1)])


def image_to_image(times: Tensor, strength: float, path: Path, latents: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """(state, times) that `sample` continues from, to redraw an image: the last `strength` of the steps of a grid.

    latents: the image's, normalised, (B, C, H, W); noise: unit Gaussian of that shape. As Stability's img2img, whose
    int(steps (1 - strength)) steps are left out; without its rounding error, which at 0.9 of 10 steps leaves out none.
    Strength 1 is sampling from noise alone. Raises ValueError outside (0, 1].
    """
    if not 0 < strength <= 1:
        raise ValueError(f"image_to_image: strength {strength} must be above 0 and at most 1")
    left = int(round((len(times) - 1) * (1 - strength), 6))
    kept = times[min(left, len(times) - 2) :]
    return (noise if float(kept[0]) == 1 else interpolate(path, latents, noise, kept[0].to(latents))), kept
