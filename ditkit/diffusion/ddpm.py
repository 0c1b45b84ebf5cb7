"""The DDPM chain of T steps as a path: its tables (float64), respacing, posterior, and learned-range variance.

Index k = 0 ... T-1 is our time t = k / (T - 1), exact in float32. Index 0 already carries noise: sigma(0) = 0.01.
Ho et al. 2020 (DDPM), Nichol & Dhariwal 2021 (improved DDPM); numbers as DiT uses them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from ditkit.config import Settings
from ditkit.diffusion.broadcast import expand

Variance = Literal["learned_range", "fixed_large", "fixed_small"]


@dataclass(frozen=True)
class Tables:
    """Coefficients of one (possibly respaced) chain of N steps, each (N,) float64 on one device."""

    index: Tensor  # (N,) int64: position in the original chain, which is what the network's time says
    betas: Tensor
    alphas_bar: Tensor
    alphas_bar_prev: Tensor  # of the step before; 1 at the first
    alphas_bar_next: Tensor  # of the step after; 0 at the last
    posterior_variance: Tensor  # beta~ = beta (1 - abar_prev) / (1 - abar); 0 at the first
    posterior_log_variance: Tensor  # its logarithm, clipped: the first takes the second's value
    posterior_data: Tensor  # coefficient of x in the mean of q(x_prev | x_t, x)
    posterior_now: Tensor  # coefficient of x_t
    fixed_large_log_variance: Tensor  # log of (beta~ of step 1, beta_1, ... beta_{N-1})


class DDPM(Settings):
    """The discrete path of DiT: alpha = sqrt(abar), sigma = sqrt(1 - abar) of a chain of `steps` noisings.

    Between two indices log abar is interpolated linearly, so that ODE solvers may visit any time in [0, 1]. `indices`
    keeps only some steps (`respace`); the times of those that stay, and alpha and sigma, do not change.
    """

    kind: Literal["ddpm"] = "ddpm"
    schedule: Literal["linear", "cosine", "scaled_linear"] = Field(
        "linear", description="betas: linear (DiT), cosine (improved DDPM) or with linear roots (latent diffusion)"
    )
    steps: int = Field(1000, ge=2, description="T, the length of the chain that the network was trained on")
    indices: tuple[int, ...] | None = Field(None, min_length=1, description="steps kept by respacing; None = all")
    prior_scale: ClassVar[float] = 1.0
    sigma_data: ClassVar[float] = 1.0

    @field_validator("indices")
    @classmethod
    def _rising(cls, indices: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if indices is not None and (indices[0] < 0 or any(b <= a for a, b in pairwise(indices))):
            raise ValueError("the kept steps must rise from 0 or more, each once")
        return indices

    @model_validator(mode="after")
    def _within(self) -> DDPM:
        if self.indices is not None and self.indices[-1] >= self.steps:
            raise ValueError(f"step {self.indices[-1]} kept, but the chain ends at {self.steps - 1}")
        return self

    def respace(self, spec: str | int | Sequence[int]) -> DDPM:
        """The chain cut down to fewer steps, by `space_timesteps`."""
        return DDPM(schedule=self.schedule, steps=self.steps, indices=space_timesteps(self.steps, spec))

    @property
    def length(self) -> int:
        """N: the number of steps after respacing."""
        return self.steps if self.indices is None else len(self.indices)

    def tables(self, device: torch.device | str = "cpu") -> Tables:
        """All coefficients (float64); kept for the life of the process, one copy a device."""
        return _tables(self.schedule, self.steps, self.indices, torch.device(device))

    @property
    def betas(self) -> Tensor:
        return self.tables().betas

    @property
    def alphas_bar(self) -> Tensor:
        return self.tables().alphas_bar

    # ---------------------------------------------------------------------------------------- times

    def times(self) -> Tensor:
        """The visited times (N,) float32, falling: k / (T - 1) of the kept steps, noise first."""
        return self.tables().index.flip(0).to(torch.float32) / (self.steps - 1)

    def visited(self, steps: int, spacing: Literal["even", "ddim"] = "even") -> Tensor:
        """The times (N,) float64, falling, of this chain cut down to `steps` visits: both ends, or ddimN's stride."""
        spec = f"ddim{steps}" if spacing == "ddim" else steps
        kept = self.tables().index[list(space_timesteps(self.length, spec))]
        return kept.flip(0).to(torch.float64) / (self.steps - 1)

    def index(self, t: Tensor) -> Tensor:
        """Position (int64) of time t in the (respaced) chain; t must be one of its times, as `times` gives them."""
        original = torch.round(t.float() * (self.steps - 1)).long()
        return original if self.indices is None else torch.searchsorted(self.tables(t.device).index, original)

    def gather(self, table: str, t: Tensor) -> Tensor:
        """Entries of the named table at times t, cast from float64 to t's dtype; shape of t."""
        return getattr(self.tables(t.device), table)[self.index(t)].to(t.dtype)

    # ---------------------------------------------------------------------------------------- the path

    def _log_abar(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """log abar (float64) at any t in [0, 1] and its derivative in t; exact table values at the indices."""
        table = _tables(self.schedule, self.steps, None, t.device).alphas_bar.log()
        k = t * (self.steps - 1)  # in t's own dtype: float32 gives exactly k back
        k = torch.where((k - k.round()).abs() < 2e-4, k.round(), k).double().clamp(0, self.steps - 1)
        below = k.floor().clamp(max=self.steps - 2).long()
        slope = table[below + 1] - table[below]
        exact = table[k.round().long()]
        between = table[below] + (k - below) * slope
        return torch.where(k == k.round(), exact, between), slope * (self.steps - 1)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_abar(t)[0] / 2).to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(self._log_abar(t)[0])).to(t.dtype)

    def d_alpha(self, t: Tensor) -> Tensor:
        log, slope = self._log_abar(t)
        return (slope / 2 * torch.exp(log / 2)).to(t.dtype)

    def d_sigma(self, t: Tensor) -> Tensor:
        log, slope = self._log_abar(t)
        return (-slope / 2 * torch.exp(log) / torch.sqrt(-torch.expm1(log))).to(t.dtype)

    # ---------------------------------------------------------------------------------------- the posterior

    def posterior_mean(self, x: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Mean of q(x_prev | x_t, x) (Ho et al. 2020, eq. 7); x, x_t (B, C, H, W), t (B,) or scalar."""
        now, data = self.gather("posterior_now", t), self.gather("posterior_data", t)
        return expand(data, x_t) * x + expand(now, x_t) * x_t

    def log_variance(self, kind: Variance, t: Tensor, logits: Tensor | None = None) -> Tensor:
        """Log variance of the reverse step: (B, C, H, W) from logits for "learned_range", else the shape of t.

        learned_range: frac log beta + (1 - frac) log beta~, frac = (logits + 1) / 2 (improved DDPM, eq. 15);
        fixed_large: beta; fixed_small: beta~, the posterior's.
        """
        if kind == "fixed_large":
            return self.gather("fixed_large_log_variance", t)
        small = self.gather("posterior_log_variance", t)
        if kind == "fixed_small":
            return small
        if logits is None:
            raise ValueError("DDPM: learned_range needs the network's variance channels, and it has none")
        large = torch.log(self.tables(t.device).betas)[self.index(t)].to(t.dtype)
        fraction = (logits + 1) / 2
        return fraction * expand(large, logits) + (1 - fraction) * expand(small, logits)


def space_timesteps(steps: int, spec: str | int | Sequence[int]) -> tuple[int, ...]:
    """Which of `steps` original indices a shorter chain keeps, rising.

    250 or "250": that many, first and last kept. "10,15,20" or [10, 15, 20]: as many in each of three equal sections.
    "ddim50": an integer stride from 0. "": all. Raises ValueError where it cannot be done.
    """
    if spec == "":
        return tuple(range(steps))
    if isinstance(spec, str) and spec.startswith("ddim"):
        return _strided(steps, spec)
    if isinstance(spec, str):
        try:
            counts = [int(part) for part in spec.split(",")]
        except ValueError:
            raise ValueError(f"respacing {spec!r}: write 250, 10,15,20 or ddim50") from None
    else:
        counts = [spec] if isinstance(spec, int) else list(spec)
    size, extra = divmod(steps, len(counts))
    kept, start = [], 0
    for section, count in enumerate(counts):
        length = size + (section < extra)
        if not 1 <= count <= length:
            raise ValueError(f"respacing {spec!r}: cannot keep {count} of the {length} steps of section {section + 1}")
        stride, position = (length - 1) / (count - 1) if count > 1 else 1.0, 0.0
        for _ in range(count):
            kept.append(start + round(position))  # summed in float, rounded half to even, as published
            position += stride
        start += length
    return tuple(kept)


def _strided(steps: int, spec: str) -> tuple[int, ...]:
    """The "ddimN" rule: the integer stride from 0 that visits exactly N steps."""
    wanted = spec.removeprefix("ddim")
    for stride in range(1, steps + 1):
        if wanted.isdigit() and len(range(0, steps, stride)) == int(wanted):
            return tuple(range(0, steps, stride))
    raise ValueError(f"respacing {spec!r}: no integer stride visits exactly {wanted or '?'} of {steps} steps")


def _all_betas(schedule: str, steps: int) -> Tensor:
    """The original betas (T,) float64: linear 1e-4 ... 0.02 scaled by 1000 / T, or cosine (improved DDPM, eq. 17).

    scaled_linear: their roots linear, 8.5e-4 ... 0.012 scaled as above (Rombach et al. 2022; SD3 section 2, "linear").
    """
    if schedule == "linear":
        return torch.linspace(1e-4 * 1000 / steps, 0.02 * 1000 / steps, steps, dtype=torch.float64)
    if schedule == "scaled_linear":
        ends = math.sqrt(8.5e-4 * 1000 / steps), math.sqrt(0.012 * 1000 / steps)
        return torch.linspace(*ends, steps, dtype=torch.float64) ** 2
    level = [math.cos((k / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for k in range(steps + 1)]
    return torch.tensor([min(1 - level[k + 1] / level[k], 0.999) for k in range(steps)], dtype=torch.float64)


@lru_cache(maxsize=64)
def _tables(schedule: str, steps: int, indices: tuple[int, ...] | None, device: torch.device) -> Tables:
    betas = _all_betas(schedule, steps)
    if betas.max() >= 1:
        raise ValueError(f"DDPM: {steps} {schedule} steps give a beta of {betas.max():.3g}; use more steps or cosine")
    index = torch.arange(steps) if indices is None else torch.tensor(indices)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    if indices is not None:  # the kept steps' abar stay; betas follow from them
        kept = torch.cumprod(1 - betas, 0)[index]
        betas = 1 - kept / torch.cat([one, kept[:-1]])
    abar = torch.cumprod(1 - betas, 0)
    previous, following = torch.cat([one, abar[:-1]]), torch.cat([abar[1:], zero])
    variance = betas * (1 - previous) / (1 - abar)
    second = variance[1:2] if len(index) > 1 else betas  # a chain of one step has no second
    values = (
        index,
        betas,
        abar,
        previous,
        following,
        variance,
        torch.log(torch.cat([second, variance[1:]])),
        betas * torch.sqrt(previous) / (1 - abar),
        (1 - previous) * torch.sqrt(1 - betas) / (1 - abar),
        torch.log(torch.cat([second, betas[1:]])),
    )
    return Tables(*(value.to(device) for value in values))
