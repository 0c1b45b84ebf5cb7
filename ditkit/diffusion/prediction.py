"""What a network may predict, and how any prediction becomes any other.

noise: eps. data: x. velocity: d_alpha x + d_sigma eps. score: -eps / sigma. edm: F of Karras et al. 2022, where
x = c_skip x_t + c_out F. Each is linear in (x, eps), and x_t = alpha x + sigma eps is the second equation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from ditkit.diffusion.broadcast import expand
from ditkit.diffusion.path import Path, determinant, velocity

Kind = Literal["noise", "data", "velocity", "score", "edm"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def target(kind: Kind, path: Path, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """What a perfect network of this kind returns for x_t, given x and eps (B, C, H, W) and t (B,) or scalar."""
    if kind == "noise":
        return eps
    if kind == "data":
        return x
    if kind == "velocity":
        return velocity(path, x, eps, t)
    if kind == "score":
        return -eps / expand(path.sigma(t), x)
    alpha, sigma, std = expand(path.alpha(t), x), expand(path.sigma(t), x), expand(spread(path, t), x)
    return (sigma * x - path.sigma_data**2 * alpha * eps) / (path.sigma_data * std)  # (x - c_skip x_t) / c_out


def network_input(path: Path, x_t: Tensor, t: Tensor) -> Tensor:
    """x_t as networks see it: on the EDM path divided by its standard deviation (c_in), else unchanged."""
    return x_t / expand(spread(path, t), x_t) if path.kind == "edm" else x_t


def spread(path: Path, t: Tensor) -> Tensor:
    """Standard deviation of x_t for data of standard deviation sigma_data."""
    return torch.sqrt(path.sigma(t) ** 2 + (path.sigma_data * path.alpha(t)) ** 2)


def interval(path: Path, kind: Kind, use: Literal["train", "sample"] = "train") -> tuple[float, float]:
    """SiT's times (low, high) in our direction, within which this pair is defined: Uniform(low, high) trains on it.

    Velocity (and F) on Linear and Cosine: [0, 1]. Other predictions there: 1e-3 off both ends, where alpha or sigma is
    0. VP: 1e-5 off the data when training, 1e-3 when sampling. EDM and DDPM have noise at t = 0 and data at t = 1.
    """
    if path.kind == "vp":
        return (1e-5 if use == "train" else 1e-3), 1.0
    if path.kind in ("edm", "ddpm") or kind in ("velocity", "edm"):
        return 0.0, 1.0
    return 1e-3, 1 - 1e-3


def _nonzero(value: Tensor, what: str, estimate: Estimate) -> Tensor:
    """`value`, or an error where it is 0 or not finite: there this prediction does not say what was asked for."""
    if not bool(((value != 0) & value.isfinite()).all()):
        low, high = interval(estimate.path, estimate.kind, "sample")
        raise ValueError(
            f"{estimate.kind} prediction on the {estimate.path.kind} path has no {what} at this end of time: "
            f"stay within [{low:g}, {high:g}] or predict the velocity"
        )
    return value


@dataclass(frozen=True)
class Estimate:
    """One denoiser call, convertible: the currency of all solvers.

    x: the state x_t (B, C, H, W). t: (B,) or scalar. value: the network's output of `kind`, x's shape. variance: raw
    learned-range logits (B, C, H, W) or None. Results have x's dtype. Coefficients are computed in t's dtype.
    Raises ValueError where the prediction does not determine the quantity (noise at alpha = 0, data at sigma = 0).
    """

    x: Tensor
    t: Tensor
    path: Path
    kind: Kind
    value: Tensor
    variance: Tensor | None = None

    def _as(self, kind: Kind) -> Tensor | None:
        return self.value.to(self.x.dtype) if self.kind == kind else None

    def _expand(self, value: Tensor) -> Tensor:
        return expand(value, self.x)

    def _divisor(self, value: Tensor, what: str) -> Tensor:
        return self._expand(_nonzero(value, what, self))

    @cached_property
    def _alpha(self) -> Tensor:
        return self.path.alpha(self.t)

    @cached_property
    def _sigma(self) -> Tensor:
        return self.path.sigma(self.t)

    @cached_property
    def data(self) -> Tensor:
        """The clean x (posterior mean), (B, C, H, W)."""
        if (own := self._as("data")) is not None:
            return own
        value = self.value.to(self.x.dtype)
        if self.kind == "velocity":  # (x_t, v) = [[alpha, sigma], [d_alpha, d_sigma]] (x, eps), solved for x
            d = self._divisor(determinant(self.path, self.t), "data")
            return (self._expand(self.path.d_sigma(self.t)) * self.x - self._expand(self._sigma) * value) / d
        if self.kind == "edm":
            std, sd = self._expand(spread(self.path, self.t)), self.path.sigma_data
            return (sd**2 * self._expand(self._alpha) * self.x / std + sd * self._expand(self._sigma) * value) / std
        return (self.x - self._expand(self._sigma) * self.noise) / self._divisor(self._alpha, "data")

    @cached_property
    def noise(self) -> Tensor:
        """The noise eps, (B, C, H, W)."""
        if (own := self._as("noise")) is not None:
            return own
        value = self.value.to(self.x.dtype)
        if self.kind == "velocity":
            d = self._divisor(determinant(self.path, self.t), "noise")
            return (self._expand(self._alpha) * value - self._expand(self.path.d_alpha(self.t)) * self.x) / d
        if self.kind == "edm":
            std, sd = self._expand(spread(self.path, self.t)), self.path.sigma_data
            return (self._expand(self._sigma) * self.x / std - sd * self._expand(self._alpha) * value) / std
        if self.kind == "score":
            return -self._expand(self._sigma) * value
        return (self.x - self._expand(self._alpha) * value) / self._divisor(self._sigma, "noise")

    @cached_property
    def velocity(self) -> Tensor:
        """d x_t / dt of the probability-flow ODE, (B, C, H, W)."""
        if (own := self._as("velocity")) is not None:
            return own
        self._divisor(determinant(self.path, self.t), "velocity")  # VP's is infinite at t = 0
        return velocity(self.path, self.data, self.noise, self.t)

    @cached_property
    def score(self) -> Tensor:
        """The gradient of the log density of x_t, (B, C, H, W)."""
        own = self._as("score")
        return -self.noise / self._divisor(self._sigma, "score") if own is None else own


def convert(estimate: Estimate, kind: Kind) -> Tensor:
    """The estimate as a prediction of another kind; round trips are exact up to rounding."""
    if kind == "edm":
        own = estimate._as("edm")
        return target(kind, estimate.path, estimate.data, estimate.noise, estimate.t) if own is None else own
    return getattr(estimate, kind)
