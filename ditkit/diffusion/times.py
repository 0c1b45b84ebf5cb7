"""Densities of the training time t, with exact log-densities; the time shift; grids of times for sampling.

t = 0 is data, t = 1 noise. `sample(n, noise)` draws (n,) float32 from the stream "t"; `log_prob(t)` is the natural
logarithm of the density, -inf outside its support. Training with density pi(t) equals training with uniform t and
loss weight pi(t) (SD3 section 3.1). Maps of draws are computed in float64: in float32 the last digit of a sigmoid
depends on where in the batch it stands.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ditkit.config import Settings
from ditkit.diffusion.path import EDM
from ditkit.protocols import Noise

LOG_SQRT_2PI = math.log(2 * math.pi) / 2


class Density(Protocol):
    """What a density is."""

    def sample(self, n: int, noise: Noise) -> Tensor:
        """(n,) float32 times in [0, 1], drawn from the stream "t" of `noise`."""
        ...

    def log_prob(self, t: Tensor) -> Tensor:
        """Natural logarithm of the density at t (of the probability, for Discrete), in t's shape and dtype."""
        ...


def _support(t: Tensor, inside: Tensor, log_density: Tensor) -> Tensor:
    """`log_density` where t is inside, else -inf."""
    return torch.where(inside, log_density, torch.full_like(t, -math.inf))


class Uniform(Settings):
    """t uniform in [low, high]. SiT keeps off singular ends with it: see prediction.interval."""

    kind: Literal["uniform"] = "uniform"
    low: float = Field(0.0, ge=0, le=1, description="nearest to the data")
    high: float = Field(1.0, ge=0, le=1, description="nearest to the noise")

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        return self

    def sample(self, n: int, noise: Noise) -> Tensor:
        return self.low + (self.high - self.low) * noise.uniform("t", (n,))

    def log_prob(self, t: Tensor) -> Tensor:
        inside = (t >= self.low) & (t <= self.high)
        return _support(t, inside, torch.full_like(t, -math.log(self.high - self.low)))


class LogitNormal(Settings):
    """log(sigma / alpha) ~ N(mean, std^2) (SD3 section 3.1; DDT; REPA's "lognormal").

    On the linear path that is logit t, on the cosine path t = 2/pi atan(exp(n)). A positive mean favours noise.
    """

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = Field(0.0, description="0 centres on t = 1/2, more on the noise")
    std: float = Field(1.0, gt=0, description="a standard deviation")
    path: Literal["linear", "cosine"] = Field("linear", description="the path whose sigma / alpha is log-normal")

    def sample(self, n: int, noise: Noise) -> Tensor:
        draw = self.mean + self.std * noise.normal("t", (n,)).double()
        t = torch.sigmoid(draw) if self.path == "linear" else torch.atan(torch.exp(draw)) * (2 / math.pi)
        return t.float()

    def log_prob(self, t: Tensor) -> Tensor:
        inside = (t > 0) & (t < 1)
        s = torch.where(inside, t, torch.full_like(t, 0.5))
        if self.path == "linear":
            n, log_slope = torch.logit(s), -torch.log(s) - torch.log1p(-s)  # dn/dt = 1 / (t (1 - t))
        else:
            n = torch.log(torch.tan(s * (math.pi / 2)))
            log_slope = math.log(math.pi) - torch.log(torch.sin(math.pi * s))  # dn/dt = pi / sin(pi t)
        z = (n - self.mean) / self.std
        return _support(t, inside, -z * z / 2 - LOG_SQRT_2PI - math.log(self.std) + log_slope)


class Mode(Settings):
    """SD3's heavy-tailed density: t = 1 - u - s (cos^2(pi u / 2) - 1 + u), u uniform (SD3 eq. 20).

    scale 0 is uniform, above 0 favours the middle, below 0 the ends; the ends keep density in any case.
    """

    kind: Literal["mode"] = "mode"
    scale: float = Field(1.29, ge=-1, le=2 / (math.pi - 2), description="s; monotone from -1 to 2 / (pi - 2) = 1.75")

    def _map(self, u: Tensor) -> Tensor:
        return 1 - u - self.scale * (torch.cos(u * (math.pi / 2)) ** 2 - 1 + u)

    def sample(self, n: int, noise: Noise) -> Tensor:
        return self._map(noise.uniform("t", (n,)).double()).clamp(0, 1).float()

    def log_prob(self, t: Tensor) -> Tensor:
        low, high = torch.zeros_like(t, dtype=torch.float64), torch.ones_like(t, dtype=torch.float64)
        for _ in range(60):  # bisection: the map falls from 1 to 0
            middle = (low + high) / 2
            above = self._map(middle) > t
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        slope = 1 + self.scale - self.scale * (math.pi / 2) * torch.sin(math.pi * (low + high) / 2)  # -dt/du
        return _support(t, (t >= 0) & (t <= 1), -torch.log(slope).to(t.dtype))


class CosMap(Settings):
    """t = 1 - 1 / (tan(pi u / 2) + 1), u uniform: the cosine path's log-SNR on the linear path (SD3 eq. 21)."""

    kind: Literal["cosmap"] = "cosmap"

    def sample(self, n: int, noise: Noise) -> Tensor:
        angle = noise.uniform("t", (n,)).double() * (math.pi / 2)
        return (torch.sin(angle) / (torch.sin(angle) + torch.cos(angle))).float()

    def log_prob(self, t: Tensor) -> Tensor:
        density = 2 / (math.pi - 2 * math.pi * t + 2 * math.pi * t * t)
        return _support(t, (t >= 0) & (t <= 1), torch.log(density))


class EDMLogNormal(Settings):
    """log sigma ~ N(mean, std^2) on the EDM path (Karras et al. 2022, table 1), as a density of that path's t.

    Noise levels outside [sigma_min, sigma_max] (2e-5 of all, with the defaults) have no t: they are cut off and the
    density is normalised accordingly.
    """

    kind: Literal["edm_log_normal"] = "edm_log_normal"
    mean: float = Field(-1.2, description="P_mean")
    std: float = Field(1.2, gt=0, description="P_std")
    path: EDM = EDM()

    def _limits(self) -> tuple[float, float]:
        """Of (log sigma - mean) / std."""
        low, high = math.log(self.path.sigma_min), math.log(self.path.sigma_max)
        return (low - self.mean) / self.std, (high - self.mean) / self.std

    def sample(self, n: int, noise: Noise) -> Tensor:
        low, high = (math.erfc(-z / math.sqrt(2)) / 2 for z in self._limits())
        draw = noise.uniform("t", (n,)).double() + 2.0**-25  # draws are multiples of 2^-24: to their cells' middles
        sigma = torch.exp(self.mean + self.std * torch.special.ndtri(low + (high - low) * draw))
        return self.path.time(sigma).clamp(0, 1).float()

    def log_prob(self, t: Tensor) -> Tensor:
        low, high = self._limits()
        mass = (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2))) / 2
        sigma = self.path.sigma(t)
        z = (torch.log(sigma) - self.mean) / self.std
        log_slope = torch.log(self.path.d_sigma(t) / sigma)  # d log sigma / dt
        log_density = -z * z / 2 - LOG_SQRT_2PI - math.log(self.std * mass) + log_slope
        return _support(t, (t >= 0) & (t <= 1), log_density)


class Discrete(Settings):
    """One of `steps` times k / (T - 1), uniformly (DDPM, DiT); log_prob is the logarithm of the probability 1 / T."""

    kind: Literal["discrete"] = "discrete"
    steps: int = Field(1000, ge=2, description="T")

    def sample(self, n: int, noise: Noise) -> Tensor:
        k = torch.floor(noise.uniform("t", (n,)) * self.steps).clamp(max=self.steps - 1)
        return k / (self.steps - 1)

    def log_prob(self, t: Tensor) -> Tensor:
        k = t * (self.steps - 1)
        inside = (t >= 0) & (t <= 1) & ((k - k.round()).abs() < 2e-4)
        return _support(t, inside, torch.full_like(t, -math.log(self.steps)))


_Unshifted = Uniform | LogitNormal | Mode | CosMap | EDMLogNormal | Discrete


class Shifted(Settings):
    """Another density, its draws moved by `shift`: SD3 trains at 1024^2 with factor 3."""

    kind: Literal["shifted"] = "shifted"
    base: Annotated[_Unshifted, Field(discriminator="kind")] = LogitNormal()
    factor: float = Field(3.0, gt=0, description="s of shift(t, s); above 1 moves towards the noise")

    def sample(self, n: int, noise: Noise) -> Tensor:
        return shift(self.base.sample(n, noise), self.factor)

    def log_prob(self, t: Tensor) -> Tensor:
        scale = self.factor + t * (1 - self.factor)  # the unshifted time is t / scale, its derivative s / scale^2
        discrete = isinstance(self.base, Discrete)
        log_slope = 0.0 if discrete else math.log(self.factor) - 2 * torch.log(scale)
        return self.base.log_prob(shift(t, 1 / self.factor)) + log_slope


AnyDensity = Annotated[_Unshifted | Shifted, Field(discriminator="kind")]


# ------------------------------------------------------------------------------------------------ shift and grids


def shift(t: Tensor, s: float) -> Tensor:
    """s t / (1 + (s - 1) t): towards the noise for s > 1 (SD3 eq. 23; DDT's timeshift); shift(., 1/s) undoes it."""
    return s * t / (1 + (s - 1) * t)


def resolution_shift(n: float, m: float) -> float:
    """The factor sqrt(m / n) that keeps the uncertainty of the data when n pixels become m (SD3 section 5.3.2)."""
    if n <= 0 or m <= 0:
        raise ValueError(f"resolution_shift: pixel counts must be positive, given {n} and {m}")
    return math.sqrt(m / n)


def uniform_grid(steps: int, start: float = 1.0, stop: float = 0.0) -> Tensor:
    """steps + 1 equally spaced times (float64) from start to stop."""
    return torch.linspace(start, stop, steps + 1, dtype=torch.float64)


def grid_with_last(steps: int, last: float, start: float = 1.0) -> Tensor:
    """steps + 1 times (float64): `steps` equally spaced from start to `last`, then 0 (SiT, REPA and DDT: last 0.04)."""
    if not 0 < last < start:
        raise ValueError(f"grid_with_last: the last step {last} must lie between 0 and {start}")
    points = torch.linspace(start, last, steps, dtype=torch.float64)
    return torch.cat([points, torch.zeros(1, dtype=torch.float64)])
