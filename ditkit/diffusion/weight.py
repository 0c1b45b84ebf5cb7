"""Loss weights: w(t), a factor of each sample's squared error.

weight(path, t, kind) -> (B,) multiplies the squared error of a network that predicts `kind`; weight(path, t) that of
the noise. (For "score" the error is sigma * score + eps, the noise's.) A weight on the noise error becomes one on
another prediction's error by w / g^2, error = g * noise error, so that the loss does not depend on the choice.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ditkit.config import Settings
from ditkit.diffusion.path import Path, determinant, log_snr
from ditkit.diffusion.prediction import Kind, spread
from ditkit.diffusion.times import AnyDensity


class Plain(Settings):
    """Weight 1 on the network's own error: what velocity, noise or data prediction trains with by default."""

    kind: Literal["none"] = "none"

    def __call__(self, path: Path, t: Tensor, kind: Kind = "noise") -> Tensor:
        return torch.ones_like(t)


class SiTWeight(Settings):
    """SiT's weights for noise and score prediction (appendix A; its code's loss_weight).

    velocity: (d / alpha)^2 with d = alpha d_sigma - sigma d_alpha, the velocity's squared error; likelihood:
    d / (alpha sigma), a bound of the likelihood. As in SiT's code, a velocity prediction keeps weight 1 under both.
    """

    kind: Literal["sit"] = "sit"
    form: Literal["velocity", "likelihood"] = Field("velocity", description="SiT's loss_weight")

    def __call__(self, path: Path, t: Tensor, kind: Kind = "noise") -> Tensor:
        if kind == "velocity":
            return torch.ones_like(t)
        ratio = determinant(path, t) / path.alpha(t)
        w = ratio**2 if self.form == "velocity" else ratio / path.sigma(t)
        return w / squared_gain(path, t, kind)


class SD3Weight(Settings):
    """SD3's weightings w(lambda) in the loss -1/2 w lambda' |eps error|^2, lambda the log-SNR (SD3 sections 2 and 3).

    rf: exp(-lambda/2), rectified flow (weight 1 on its velocity). v_cos: the same, as velocity prediction on the cosine
    path has it. eps_cos: sech(lambda/2), noise prediction on that path. edm: N(lambda; -2 mean, (2 std)^2)
    (exp(-lambda) + sigma_data^2), EDM's density and weight.
    """

    kind: Literal["sd3"] = "sd3"
    form: Literal["rf", "v_cos", "eps_cos", "edm"] = Field("rf", description="the formulation whose weight this is")
    mean: float = Field(-1.2, description="edm: P_mean")
    std: float = Field(1.2, gt=0, description="edm: P_std")
    sigma_data: float = Field(0.5, gt=0, description="edm: standard deviation of the data")

    def __call__(self, path: Path, t: Tensor, kind: Kind = "noise") -> Tensor:
        # -lambda'/2 = d / (alpha sigma); with w = sigma/alpha * h the noise error's factor is d / alpha^2 * h
        alpha, sigma, d = path.alpha(t), path.sigma(t), determinant(path, t)
        own = {"velocity": 1 / d, "data": d / sigma**2, "edm": d * path.sigma_data**2 / spread(path, t) ** 2}
        return own.get(kind, d / alpha**2) * self._relative(path, t)

    def _relative(self, path: Path, t: Tensor) -> Tensor:
        """h = w(lambda) exp(lambda / 2)."""
        alpha, sigma = path.alpha(t), path.sigma(t)
        if self.form == "eps_cos":
            return 2 * alpha**2 / (alpha**2 + sigma**2)
        if self.form == "edm":
            inside = (alpha > 0) & (sigma > 0)  # at the ends the normal density wins over everything: 0
            snr = torch.where(inside, log_snr(path, t), torch.zeros_like(t))
            z = (snr + 2 * self.mean) / (2 * self.std)
            normal = torch.exp(-z * z / 2) / (2 * self.std * math.sqrt(2 * math.pi))
            h = normal * (torch.exp(-snr / 2) + self.sigma_data**2 * torch.exp(snr / 2))
            return torch.where(inside, h, torch.zeros_like(t))
        return torch.ones_like(t)


class SNRWeight(Settings):
    """The weights of the velocity's error in DDT's release (flow_matching/training.py): r = alpha / sigma, not squared.

    inverse_sigma: 1 / sigma^2. snr: r. snr_floor: max(r, limit), there named minsnr. snr_cap: min(r, limit), there
    named maxsnr. All but snr_cap are infinite at t = 0: draw times from a density that keeps off it.
    """

    kind: Literal["snr"] = "snr"
    form: Literal["inverse_sigma", "snr", "snr_floor", "snr_cap"] = Field("snr", description="function of alpha, sigma")
    limit: float = Field(5.0, gt=0, description="of snr_floor and snr_cap")

    def __call__(self, path: Path, t: Tensor, kind: Kind = "noise") -> Tensor:
        w = self._of_velocity(path.alpha(t), path.sigma(t))
        return w if kind == "velocity" else w * squared_gain(path, t, "velocity") / squared_gain(path, t, kind)

    def _of_velocity(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        if self.form == "inverse_sigma":
            return 1 / sigma**2
        ratio = alpha / sigma
        if self.form == "snr":
            return ratio
        return ratio.clamp(min=self.limit) if self.form == "snr_floor" else ratio.clamp(max=self.limit)


class DensityWeight(Settings):
    """pi(t) of a density: uniform times with this weight train the same expected loss as times from the density."""

    kind: Literal["density"] = "density"
    density: AnyDensity

    def __call__(self, path: Path, t: Tensor, kind: Kind = "noise") -> Tensor:
        return torch.exp(self.density.log_prob(t))


AnyWeight = Annotated[Plain | SiTWeight | SD3Weight | SNRWeight | DensityWeight, Field(discriminator="kind")]


def squared_gain(path: Path, t: Tensor, kind: Kind) -> Tensor:
    """g^2: how much larger the squared error of prediction `kind` is than that of the noise that it implies."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    gains = {
        "velocity": lambda: determinant(path, t) / alpha,
        "data": lambda: sigma / alpha,
        "edm": lambda: spread(path, t) / (path.sigma_data * alpha),
    }
    return gains[kind]() ** 2 if kind in gains else torch.ones_like(t)
