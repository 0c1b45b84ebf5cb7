"""Guidance: which network passes run at (x, t), and how their outputs become one.

A guidance is called `guidance(denoise, x, t, cond)` with a `ditkit.diffusion.sample.Denoise`; it asks for passes by
`denoise.passes(x, t, cond, other, ...)` (one batched network call, counted) and returns the raw model output
(B, C or 2C, H, W). Outputs are combined in the parametrisation that the network predicts; the conversions between
predictions are linear, so any other choice gives the same result when all channels are guided.
Times are ours: 0 = data, 1 = noise. DDT's interval (a, b) is low = 1 - b, high = 1 - a, closed=False.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from ditkit.config import Settings
from ditkit.protocols import Condition, Denoiser, Output

if TYPE_CHECKING:
    from ditkit.diffusion.sample import Denoise


class Guidance(Protocol):
    """Any callable of this form guides; `CFG`, `Autoguidance` and `SkipLayer` are the ones that settings can hold."""

    def __call__(self, denoise: Denoise, x: Tensor, t: Tensor, cond: Condition) -> Tensor: ...


def extrapolate(weak: Tensor, strong: Tensor, scale: float, channels: int, rest: float = 1.0) -> Tensor:
    """weak + scale (strong - weak) on the first `channels` channels of (B, C', H, W); the others are `strong`'s.

    The untouched rest is where learned-variance logits live: they are never extrapolated. One's own guidance of
    networks without them may give the other channels a scale too, `rest` (mixes of DDT's release: 1.05, 1.1, 1.2).
    """
    guided = weak[:, :channels] + scale * (strong[:, :channels] - weak[:, :channels])
    if channels == strong.shape[1]:
        return guided
    other = strong[:, channels:]
    return torch.cat([guided, other if rest == 1 else weak[:, channels:] + rest * (other - weak[:, channels:])], dim=1)


def inside(t: float, low: float, high: float, closed: bool) -> bool:
    """Is t in the guidance interval: [low, high] when closed (REPA), (low, high) when not (DDT)."""
    return low <= t <= high if closed else low < t < high


class CFG(Settings):
    """Classifier-free guidance (Ho & Salimans 2022): u + scale (c - u), optionally in an interval (Kynkaanniemi 2024).

    Inside the interval both passes run as one batch, [conditional, unconditional]. `against(negative)` replaces the
    model's null condition by an explicit one (an encoded empty or negative prompt).
    """

    kind: Literal["cfg"] = "cfg"
    scale: float = Field(1.5, ge=0, description="1 is no guidance (one pass); larger follows the condition more")
    low: float = Field(0.0, ge=0, le=1, description="end of the interval nearer to the data")
    high: float = Field(1.0, ge=0, le=1, description="end of the interval nearer to the noise")
    closed: bool = Field(True, description="the interval contains its ends (REPA); DDT's does not")
    channels: int | None = Field(None, ge=1, description="guide only the first channels (DiT and SiT: 3); None = all")
    skip_outside: bool = Field(True, description="one pass outside the interval (REPA); False keeps both (DDT)")
    decide: Literal["step", "evaluation"] = Field(
        "step", description="test the time at the step's start (REPA's Heun) or of each evaluation"
    )
    _negative: Condition | None = PrivateAttr(None)

    def against(self, negative: Condition) -> CFG:
        """The same guidance with this negative condition, of the batch's length or of length 1 (shared by all)."""
        other = self.model_copy()
        other._negative = negative
        return other

    def __call__(self, denoise: Denoise, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """x (B, C, H, W), t scalar -> raw output; 1 or 2 network evaluations per sample."""
        when = denoise.start if self.decide == "step" else float(t)
        active = inside(when, self.low, self.high, self.closed)
        if self.scale == 1 or not (active or not self.skip_outside):
            return denoise.passes(x, t, cond)[0]
        strong, weak = denoise.passes(x, t, cond, opposite(denoise, cond, len(x), self._negative))
        scale = self.scale if active else 1.0
        return extrapolate(weak, strong, scale, min(self.channels or x.shape[1], x.shape[1]))


def opposite(denoise: Denoise, cond: Condition, batch: int, negative: Condition | None) -> Condition:
    """The condition to move away from: the explicit negative one (batch rows or a single one), else the model's null.

    Raises ValueError for a negative condition of another length, and where there is no condition at all.
    """
    if negative is None:
        if len(cond) == 0:
            raise ValueError("CFG: the condition is empty, so there is nothing to guide: use guidance=None")
        return denoise.null(cond)
    if len(negative) == 1 and batch > 1:
        return negative.index([0] * batch)
    if len(negative) != batch:
        raise ValueError(f"CFG: the negative condition has {len(negative)} rows, the batch has {batch}")
    return negative


class Autoguidance(Settings):
    """Autoguidance (Karras et al. 2024): weak + scale (strong - weak), both conditional, by a weaker model.

    The weaker model (shorter trained, smaller) is not data: give it with `against(model)` before sampling.
    """

    kind: Literal["autoguidance"] = "autoguidance"
    scale: float = Field(2.0, ge=0, description="1 is no guidance (one pass)")
    low: float = Field(0.0, ge=0, le=1, description="end of the interval nearer to the data")
    high: float = Field(1.0, ge=0, le=1, description="end of the interval nearer to the noise")
    closed: bool = Field(True, description="the interval contains its ends")
    channels: int | None = Field(None, ge=1, description="guide only the first channels; None = all")
    _weak: Denoiser | None = PrivateAttr(None)

    def against(self, weak: Denoiser) -> Autoguidance:
        """The same guidance with this weaker model."""
        other = self.model_copy()
        other._weak = weak
        return other

    def __call__(self, denoise: Denoise, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """x (B, C, H, W), t scalar -> raw output; 1 or 2 network evaluations per sample (one on each model)."""
        strong = denoise.passes(x, t, cond)[0]
        if self.scale == 1 or not inside(denoise.start, self.low, self.high, self.closed):
            return strong
        if self._weak is None:
            raise ValueError("Autoguidance: no weaker model: give it with Autoguidance(...).against(model)")
        weak = denoise.passes(x, t, cond, model=self._weak)[0]
        return extrapolate(weak, strong, self.scale, min(self.channels or x.shape[1], x.shape[1]))


class WithoutBlocks:
    """A denoiser with some of its blocks (1-based) bypassed: what skip-layer guidance moves away from.

    The model must take `skip`, the blocks to bypass, as MMDiT does; raises ValueError for one that does not.
    """

    def __init__(self, model: Denoiser, blocks: tuple[int, ...]):
        taken = inspect.signature(getattr(model, "forward", model)).parameters
        if "skip" not in taken and not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            raise ValueError(f"skip-layer guidance: {type(model).__name__} cannot bypass blocks: use guidance cfg")
        self.model, self.blocks = model, blocks

    def __call__(self, x: Tensor, t: Tensor, cond: Condition, *, capture: tuple[int, ...] = ()) -> Output:
        return self.model(x, t, cond, capture=capture, skip=self.blocks)  # type: ignore[call-arg]

    def null(self, cond: Condition) -> Condition:
        """The model's unconditional counterpart of `cond`."""
        return self.model.null(cond)

    def parameters(self):
        """The model's parameters, which say the dtype that it is called in."""
        return getattr(self.model, "parameters", tuple)()


class SkipLayer(Settings):
    """Skip-layer guidance (Stable Diffusion 3.5 medium): u + scale (c - u) + skip_scale (c - s) in a window of steps.

    c and u as in CFG, s the conditional pass with `blocks` bypassed. Step i of N, counted from 0, is in the window if
    start N < i < end N, both strict; outside it is plain CFG. The defaults are Stability's, whose layers 7, 8, 9 count
    from 0; diffusers' skip_scale is 2.8. With `scale` 1 there is no unconditional pass.
    """

    kind: Literal["skip_layer"] = "skip_layer"
    scale: float = Field(5.0, ge=0, description="of the classifier-free part; 1 leaves it out")
    skip_scale: float = Field(2.5, ge=0, description="of the part away from the bypassed blocks; 0 leaves it out")
    blocks: tuple[int, ...] = Field((8, 9, 10), min_length=1, description="blocks to bypass, counted from 1")
    start: float = Field(0.01, ge=0, le=1, description="share of the steps after which the window begins")
    end: float = Field(0.20, ge=0, le=1, description="share of the steps before which it ends")
    _negative: Condition | None = PrivateAttr(None)

    def check(self, model: Denoiser) -> None:
        """ValueError for a model that cannot bypass blocks, or has not got these."""
        WithoutBlocks(model, self.blocks)
        depth = getattr(getattr(model, "settings", None), "depth", max(self.blocks))
        if wrong := [i for i in self.blocks if not 1 <= i <= depth]:
            raise ValueError(f"guidance.blocks: {wrong} names no block; blocks count from 1 to {depth}")

    def against(self, negative: Condition) -> SkipLayer:
        """The same guidance with this negative condition, of the batch's length or of length 1 (shared by all)."""
        other = self.model_copy()
        other._negative = negative
        return other

    def __call__(self, denoise: Denoise, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """x (B, C, H, W), t scalar -> raw output; 2 network evaluations per sample, 3 in the window."""
        if denoise.step < 0 or denoise.steps == 0:
            raise ValueError(
                "skip-layer guidance counts steps: sample with a solver that has them, not an adaptive one"
            )
        if self.scale == 1:
            guided = strong = denoise.passes(x, t, cond)[0]
        else:
            strong, weak = denoise.passes(x, t, cond, opposite(denoise, cond, len(x), self._negative))
            guided = extrapolate(weak, strong, self.scale, x.shape[1])
        inside = self.start * denoise.steps < denoise.step < self.end * denoise.steps
        if self.skip_scale == 0 or not inside:
            return guided
        skipped = denoise.passes(x, t, cond, model=WithoutBlocks(denoise.model, self.blocks))[0]
        away = extrapolate(skipped, strong, 1 + self.skip_scale, x.shape[1]) - strong  # c - s; variance logits stay
        return guided + away


AnyGuidance = Annotated[CFG | Autoguidance | SkipLayer, Field(discriminator="kind")]


def first3(scale: float) -> CFG:
    """The published DiT and SiT preset: only the first 3 of 4 latent channels are guided (DiT issue 41, appendix A).

    A 4-channel scale of about 1 + 3/4 (scale - 1) gives the same strength.
    """
    return CFG(scale=scale, channels=3)
