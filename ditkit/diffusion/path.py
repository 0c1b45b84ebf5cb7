"""Paths x_t = alpha(t) x + sigma(t) eps from data (t = 0) to noise (t = 1), and their derivatives in t.

Every method maps a tensor of times to a tensor of the same shape and dtype. `prior_scale` is the standard deviation
that sampling starts from at t = 1; `sigma_data` the standard deviation of the data that EDM's F-prediction assumes.
On Linear and Cosine the ends are exact: x_0 = x and x_1 = eps.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ditkit.config import Settings
from ditkit.diffusion.broadcast import expand
from ditkit.diffusion.ddpm import DDPM

__all__ = ["DDPM", "EDM", "VP", "AnyPath", "Cosine", "Linear", "Path", "determinant", "expand"]
__all__ += ["interpolate", "log_snr", "velocity"]


class Path(Protocol):
    """What a path is: four functions of time and two scales."""

    @property
    def kind(self) -> str:
        """Its name in settings files."""
        ...

    @property
    def prior_scale(self) -> float:
        """Standard deviation that sampling starts from at t = 1."""
        ...

    @property
    def sigma_data(self) -> float:
        """Standard deviation of the data that F-prediction assumes."""
        ...

    def alpha(self, t: Tensor) -> Tensor:
        """How much of the data is in x_t; falls (or stays 1) as t grows."""
        ...

    def sigma(self, t: Tensor) -> Tensor:
        """How much noise is in x_t; grows with t."""
        ...

    def d_alpha(self, t: Tensor) -> Tensor:
        """d alpha / dt."""
        ...

    def d_sigma(self, t: Tensor) -> Tensor:
        """d sigma / dt."""
        ...


class Linear(Settings):
    """Rectified flow (Liu et al. 2023; SiT, REPA, DDT, SD3): alpha = 1 - t, sigma = t, v = eps - x."""

    kind: Literal["linear"] = "linear"
    prior_scale: ClassVar[float] = 1.0
    sigma_data: ClassVar[float] = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -1.0)

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)


class Cosine(Settings):
    """Generalised variance preserving, a quarter circle (SiT's GVP, REPA's cosine): cos and sin of pi t / 2."""

    kind: Literal["cosine"] = "cosine"
    prior_scale: ClassVar[float] = 1.0
    sigma_data: ClassVar[float] = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin((1 - t) * (math.pi / 2))  # cos(pi t / 2), exactly 0 at t = 1

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t * (math.pi / 2))

    def d_alpha(self, t: Tensor) -> Tensor:
        return -(math.pi / 2) * self.sigma(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return (math.pi / 2) * self.alpha(t)


class VP(Settings):
    """Variance preserving SDE (Song et al. 2021; SiT's VP): alpha = exp(m), sigma = sqrt(1 - alpha^2).

    m(t) = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2. Some signal is left at t = 1 (alpha = 0.0066), and d_sigma
    is infinite at t = 0.
    """

    kind: Literal["vp"] = "vp"
    beta_min: float = Field(0.1, gt=0, description="noise rate at the data end")
    beta_max: float = Field(20.0, gt=0, description="noise rate at the noise end")
    prior_scale: ClassVar[float] = 1.0
    sigma_data: ClassVar[float] = 1.0

    def log_alpha(self, t: Tensor) -> Tensor:
        """m(t)."""
        return -(t * t) * ((self.beta_max - self.beta_min) / 4) - t * (self.beta_min / 2)

    def beta(self, t: Tensor) -> Tensor:
        """The SDE's noise rate: dx = -beta x / 2 dt + sqrt(beta) dw."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self.log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self.log_alpha(t)))  # expm1: exact where alpha is close to 1

    def d_alpha(self, t: Tensor) -> Tensor:
        return -self.beta(t) / 2 * self.alpha(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return self.beta(t) / 2 * torch.exp(2 * self.log_alpha(t)) / self.sigma(t)


class EDM(Settings):
    """Variance exploding: alpha = 1, sigma = Q(u) from sigma_min to sigma_max, u linear in t (Karras et al. 2022).

    power, eq. 5: Q = u^rho, so that uniform steps in t are EDM's own grid. The others make uniform t a distribution of
    noise levels (SD3 section 2), cut off at both ends: log_normal Q = exp(mean + std F^-1(u)), EDM's training density;
    rf Q = u / (1 - u) and cosine Q = tan(pi u / 2), the log-SNRs of those paths. The network sees x_t divided by its
    standard deviation (c_in, see prediction.network_input).
    """

    kind: Literal["edm"] = "edm"
    sigma_min: float = Field(0.002, gt=0, description="noise at t = 0: never exactly none")
    sigma_max: float = Field(80.0, gt=0, description="noise at t = 1: what sampling starts from")
    rho: float = Field(7.0, gt=0, description="power: larger puts more of the time axis at low noise")
    sigma_data: float = Field(0.5, gt=0, description="standard deviation of the data")
    schedule: Literal["power", "log_normal", "rf", "cosine"] = Field("power", description="the function Q")
    mean: float = Field(-1.2, description="log_normal: P_mean, of log sigma")
    std: float = Field(1.2, gt=0, description="log_normal: P_std, of log sigma")

    @model_validator(mode="after")
    def _ordered(self) -> EDM:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min} must be below sigma_max {self.sigma_max}")
        far = self.mean + 7 * self.std, self.mean - 30 * self.std  # beyond, no probability is left in float64
        if self.schedule == "log_normal" and not far[1] < math.log(self.sigma_min) < math.log(self.sigma_max) < far[0]:
            raise ValueError(f"sigma_max {self.sigma_max} is out of reach of log sigma ~ N({self.mean}, {self.std}^2)")
        return self

    @property
    def prior_scale(self) -> float:
        return self.sigma_max

    def _rank(self, sigma: Tensor) -> Tensor:
        """The inverse of Q."""
        if self.schedule == "power":
            return sigma ** (1 / self.rho)
        if self.schedule == "log_normal":
            return torch.special.ndtr((torch.log(sigma) - self.mean) / self.std)
        return sigma / (1 + sigma) if self.schedule == "rf" else torch.atan(sigma) * (2 / math.pi)

    def _ends(self) -> tuple[float, float]:
        """u at t = 0, and its slope."""
        low, high = self._rank(torch.tensor([self.sigma_min, self.sigma_max], dtype=torch.float64)).tolist()
        return low, high - low

    def _at(self, t: Tensor) -> Tensor:
        """u, in float64 for log_normal, whose upper tail float32 does not resolve."""
        low, slope = self._ends()
        return low + (t.double() if self.schedule == "log_normal" else t) * slope

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        u = self._at(t)
        if self.schedule == "power":
            return u**self.rho
        if self.schedule == "log_normal":
            return torch.exp(self.mean + self.std * torch.special.ndtri(u)).to(t.dtype)
        return u / (1 - u) if self.schedule == "rf" else torch.tan(u * (math.pi / 2))

    def d_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        u, slope = self._at(t), self._ends()[1]
        if self.schedule == "power":
            return self.rho * slope * u ** (self.rho - 1)
        if self.schedule == "log_normal":
            z = torch.special.ndtri(u)
            return (slope * self.std * math.sqrt(2 * math.pi) * torch.exp(self.mean + self.std * z + z * z / 2)).to(t)
        return (
            slope / (1 - u) ** 2 if self.schedule == "rf" else slope * (math.pi / 2) / torch.cos(u * math.pi / 2) ** 2
        )

    def time(self, sigma: Tensor) -> Tensor:
        """The inverse of sigma(t)."""
        low, slope = self._ends()
        return (self._rank(sigma) - low) / slope


AnyPath = Annotated[Linear | Cosine | VP | EDM | DDPM, Field(discriminator="kind")]


def interpolate(path: Path, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t = alpha(t) x + sigma(t) eps; x and eps (B, C, H, W), t (B,) or scalar."""
    return expand(path.alpha(t), x) * x + expand(path.sigma(t), x) * eps


def velocity(path: Path, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """d x_t / dt = d_alpha(t) x + d_sigma(t) eps; shapes as interpolate."""
    return expand(path.d_alpha(t), x) * x + expand(path.d_sigma(t), x) * eps


def determinant(path: Path, t: Tensor) -> Tensor:
    """alpha d_sigma - sigma d_alpha: of the 2x2 system (x, eps) -> (x_t, v). Linear: 1. Cosine: pi / 2."""
    return path.alpha(t) * path.d_sigma(t) - path.sigma(t) * path.d_alpha(t)


def log_snr(path: Path, t: Tensor) -> Tensor:
    """lambda(t) = log(alpha^2 / sigma^2) (SD3 section 2), falling in t; infinite where alpha or sigma is 0."""
    return 2 * (torch.log(path.alpha(t)) - torch.log(path.sigma(t)))
