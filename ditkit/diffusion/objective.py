"""Training objectives: from a batch of clean latents to a loss. Labels are dropped here, once, per sample.

Both are called `objective(model, x (B, C, H, W), cond, noise, auxiliary) -> Loss`. They draw eps, then t, then the
label drop from named streams of `noise`, so the order does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from ditkit.config import Settings
from ditkit.diffusion.broadcast import expand, mean_per_sample
from ditkit.diffusion.ddpm import DDPM, Variance
from ditkit.diffusion.path import AnyPath, Linear, interpolate
from ditkit.diffusion.prediction import Estimate, Kind, network_input, target
from ditkit.diffusion.times import AnyDensity, Discrete, Uniform
from ditkit.diffusion.variational import variational_term
from ditkit.diffusion.weight import AnyWeight, Plain
from ditkit.protocols import Condition, Denoiser, Noise


class Loss(NamedTuple):
    """total: the scalar to differentiate. terms: detached per-sample values (B,), "denoise" first. t: times (B,)."""

    total: Tensor
    terms: dict[str, Tensor]
    t: Tensor


class Auxiliary(Protocol):
    """A further term on hidden tokens, such as REPA's alignment: total += weight * mean(auxiliary(hidden))."""

    @property
    def name(self) -> str: ...
    @property
    def capture(self) -> tuple[int, ...]: ...
    @property
    def weight(self) -> float: ...
    def __call__(self, hidden: dict[int, Tensor]) -> Tensor: ...


def drop_labels(model: Denoiser, cond: Condition, noise: Noise, rate: float) -> Condition:
    """`cond` with each sample's label or text replaced by the model's null condition with probability `rate`."""
    if rate == 0 or len(cond) == 0:
        return cond
    dropped = noise.uniform("drop", (len(cond),)) < rate
    null = model.null(cond)
    return null.where(dropped.to(_device(cond)), cond)


def drop_parts(cond: Condition, noise: Noise, rate: float) -> Condition:
    """`cond` with each encoder's part of the text zeroed with probability `rate`, per sample and independently (SD3).

    At SD3's rate (46.3 % in one place, 46.4 % in another) a tenth of all samples lose the text of all three encoders.
    Raises ValueError for a condition that names no parts.
    """
    if rate == 0 or len(cond) == 0:
        return cond
    if not cond.parts:
        raise ValueError("Flow: drop_each drops text encoders, and this condition names none: set drop_each to 0")
    dropped = noise.uniform("drop_each", (len(cond), len(cond.parts))) < rate
    return cond.without(dropped.to(_device(cond)))


def _device(cond: Condition) -> torch.device:
    return next(iter(cond.tensors.values())).device


def add_terms(
    main: Tensor, named: dict[str, Tensor], t: Tensor, hidden: dict[int, Tensor], auxiliary: Sequence[Auxiliary]
) -> Loss:
    """mean(main) + sum of weight * mean(term), with every per-sample value kept beside it."""
    total, terms = main.mean(), {"denoise": main, **named}
    for extra in auxiliary:
        value = extra(hidden)
        total = total + extra.weight * value.mean()
        terms[extra.name] = value
    return Loss(total, {name: value.detach() for name, value in terms.items()}, t)


def captured(auxiliary: Sequence[Auxiliary]) -> tuple[int, ...]:
    """The blocks (1-based, rising) that the auxiliary terms want to see."""
    return tuple(sorted({block for extra in auxiliary for block in extra.capture}))


class Flow(Settings):
    """Flow matching and its relatives (SiT, REPA, DDT, SD3, EDM): weighted mean squared error of one prediction.

    loss_i = w(t_i) mean |network(x_t, t) - target|^2 + cosine (1 - mean cos(network, target)). A score prediction is
    compared as sigma * score with -eps (SiT).
    """

    kind: Literal["flow"] = "flow"
    path: AnyPath = Linear()
    prediction: Kind = Field("velocity", description="what the network returns")
    density: AnyDensity = Uniform()
    weight: AnyWeight = Plain()
    cosine: float = Field(0.0, ge=0, description="factor of 1 - cosine of output and target over channels (DDT's COS)")
    drop: float = Field(0.1, ge=0, le=1, description="probability of training a sample without its label or text")
    drop_each: float = Field(0.0, ge=0, le=1, description="probability of zeroing each text encoder's part (SD3: .463)")

    @model_validator(mode="after")
    def _finite(self) -> Flow:
        """Refuse a loss that is infinite where the density draws: an interval such as SiT's keeps off the ends."""
        if isinstance(self.density, (Uniform, Discrete)):  # the others draw an end once in millions: the guard's part
            limits = (self.density.low, self.density.high) if isinstance(self.density, Uniform) else (0.0, 1.0)
            ends = torch.tensor(limits, dtype=torch.float64)
            kind = "noise" if self.prediction == "score" else self.prediction
            ones = torch.ones_like(ends)
            factor = self.weight(self.path, ends, self.prediction) * target(kind, self.path, ones, ones, ends)
            if not bool(factor.isfinite().all()):
                end = float(ends[~factor.isfinite()][0])
                raise ValueError(f"the loss is infinite at t = {end:g}: keep the density off it, as Uniform(low, high)")
        return self

    def __call__(
        self, model: Denoiser, x: Tensor, cond: Condition, noise: Noise, auxiliary: Sequence[Auxiliary] = ()
    ) -> Loss:
        """One training loss; x (B, C, H, W) normalised latents."""
        eps = noise.normal("eps", tuple(x.shape)).to(x)
        t = self.density.sample(len(x), noise).to(x.device)
        cond = drop_labels(model, drop_parts(cond, noise, self.drop_each), noise, self.drop)
        return self.at(model, x, cond, eps, t, auxiliary)

    def at(
        self, model: Denoiser, x: Tensor, cond: Condition, eps: Tensor, t: Tensor, auxiliary: Sequence[Auxiliary] = ()
    ) -> Loss:
        """The loss at given noise (B, C, H, W) and times (B,), nothing dropped: what validation uses."""
        x_t = interpolate(self.path, x, eps, t)
        output = model(network_input(self.path, x_t, t), t, cond, capture=captured(auxiliary))
        if output.sample.shape != x.shape:
            raise ValueError(f"Flow: the network returns {tuple(output.sample.shape)} for latents {tuple(x.shape)}")
        main, named = self.per_sample(output.sample, x, eps, t), {}
        if self.cosine:
            named["cosine"] = self.direction(output.sample, x, eps, t)
            main = main + self.cosine * named["cosine"]
        return add_terms(main, named, t, output.hidden, auxiliary)

    def per_sample(self, value: Tensor, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The weighted squared error (B,) of the network output `value`."""
        value, wanted = self._compared(value, x, eps, t)
        return self.weight(self.path, t, self.prediction) * mean_per_sample((value - wanted) ** 2)

    def direction(self, value: Tensor, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """1 - cosine of output and target over channels, averaged over places: (B,), in [0, 2]."""
        value, wanted = self._compared(value, x, eps, t)
        return mean_per_sample(1 - F.cosine_similarity(value.float(), wanted.float(), dim=1))

    def _compared(self, value: Tensor, x: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if self.prediction == "score":
            return expand(self.path.sigma(t), x) * value, -eps
        return value, target(self.prediction, self.path, x, eps, t)


class ImprovedDDPM(Settings):
    """DiT's objective (Nichol & Dhariwal 2021): noise MSE, and for a learned variance the bound's term in bits.

    loss mse: mean |eps - network|^2 + vb, where vb sees the mean detached, so that it trains the variance alone;
    rescaled_mse: vb times N / 1000; kl: vb alone, through mean and variance; rescaled_kl: N times that, an estimate of
    the whole bound. Fixed variances have no vb beside the MSE. N is the length of the (respaced) chain.
    """

    kind: Literal["improved_ddpm"] = "improved_ddpm"
    path: DDPM = DDPM()
    prediction: Literal["noise", "data"] = Field("noise", description="mean parametrisation; data: predict-xstart")
    variance: Variance = Field("learned_range", description="the reverse step's variance")
    loss: Literal["mse", "rescaled_mse", "kl", "rescaled_kl"] = Field("mse", description="DiT trains with mse")
    drop: float = Field(0.1, ge=0, le=1, description="probability of training a sample without its label")

    def __call__(
        self, model: Denoiser, x: Tensor, cond: Condition, noise: Noise, auxiliary: Sequence[Auxiliary] = ()
    ) -> Loss:
        """One training loss; x (B, C, H, W) normalised latents."""
        eps = noise.normal("eps", tuple(x.shape)).to(x)
        t = self.times(len(x), noise).to(x.device)
        return self.at(model, x, drop_labels(model, cond, noise, self.drop), eps, t, auxiliary)

    def at(
        self, model: Denoiser, x: Tensor, cond: Condition, eps: Tensor, t: Tensor, auxiliary: Sequence[Auxiliary] = ()
    ) -> Loss:
        """The loss at given noise (B, C, H, W) and times (B,) of the chain, nothing dropped: what validation uses."""
        output = model(interpolate(self.path, x, eps, t), t, cond, capture=captured(auxiliary))
        main, named = self.per_sample(output.sample, x, eps, t)
        return add_terms(main, named, t, output.hidden, auxiliary)

    def times(self, n: int, noise: Noise) -> Tensor:
        """(n,) times drawn uniformly from the steps of the (respaced) chain."""
        chain = self.path.times().flip(0)
        draw = noise.uniform("t", (n,))
        return chain.to(draw.device)[(draw * len(chain)).long().clamp(max=len(chain) - 1)]

    def per_sample(self, value: Tensor, x: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss (B,), its parts "mse" and "vb") of the network output `value` (B, 2C or C, H, W)."""
        value, channels = value.to(x.dtype), x.shape[1]
        expected = 2 * channels if self.variance == "learned_range" else channels
        if value.shape[1] != expected:
            raise ValueError(
                f"ImprovedDDPM: variance {self.variance!r} needs {expected} channels, the network returns "
                f"{value.shape[1]}: set the model's variance to {'learned' if expected > channels else 'none'!r}"
            )
        mean, logits = value[:, :channels], value[:, channels:] if expected > channels else None
        x_t = interpolate(self.path, x, eps, t)
        if self.loss in ("kl", "rescaled_kl"):
            vb = variational_term(Estimate(x_t, t, self.path, self.prediction, mean, logits), x, self.variance)
            return vb * (self.path.length if self.loss == "rescaled_kl" else 1), {"vb": vb}
        mse = mean_per_sample((target(self.prediction, self.path, x, eps, t) - mean) ** 2)
        if logits is None:
            return mse, {"mse": mse}
        frozen = Estimate(x_t, t, self.path, self.prediction, mean.detach(), logits)
        scale = self.path.length / 1000 if self.loss == "rescaled_mse" else 1.0
        vb = variational_term(frozen, x, self.variance) * scale
        return mse + vb, {"mse": mse, "vb": vb}
