"""A validation loss that only the weights can change: fixed images, fixed noise, fixed times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ditkit.diffusion import Uniform, interval, philox_normal, philox_uniform
from ditkit.diffusion.noise import stream_id
from ditkit.protocols import Condition, Noise
from ditkit.training.preference import Preference

MARGIN = 1 / 32  # a quarter of a bin
HUGE = 1e4  # times its middle value: a few times there would outweigh all others


class PairNoise:
    """Draws of (image, bin) pairs, named by (seed, image, bin): no cut into batches can change them.

    The stream "t" is stratified: each image has one number in [k/bins, (k+1)/bins) for bin k.
    """

    def __init__(self, seed: int, pairs: Sequence[tuple[int, int]], bins: int, device: torch.device):
        self.seed, self.pairs, self.bins, self.device = seed, pairs, bins, device

    def normal(self, stream: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal (pairs, ...)."""
        return self._draw(philox_normal, stream, shape)

    def uniform(self, stream: str, shape: tuple[int, ...]) -> Tensor:
        """Uniform on [0, 1) (pairs, ...); for "t" within each pair's bin."""
        drawn = self._draw(philox_uniform, stream, shape)
        if stream != "t":
            return drawn
        return (drawn + torch.tensor([k for _, k in self.pairs], device=self.device)) / self.bins

    def _draw(self, philox, stream: str, shape: tuple[int, ...]) -> Tensor:
        name = stream_id(f"validation {stream}")  # never the numbers of a training step
        rows = [philox(self.seed, (name, image, k), shape[1:]) for image, k in self.pairs]
        return torch.stack(rows).to(self.device)


class Indexed(Protocol):
    """A Condition, or anything else that gives the conditions of some samples."""

    def index(self, rows: Tensor) -> Condition: ...


class ValidationLoss:
    """The mean training loss over every (image, time bin) pair, without label drop and auxiliary terms.

    objective: an AnyObjective; its times are uniform here, whatever it trains with. encode(images, noise) -> latents,
    called once per image, on first use. images (n, C, H, W) uint8 and cond are the n validation images; `batch` pairs
    are computed at a time, in float32. Any `batch` gives the same number, up to the rounding of matrix products.
    """

    def __init__(
        self,
        objective: Any,
        encode: Callable[[Tensor, Noise], Tensor],
        images: Tensor,
        cond: Indexed,
        *,
        bins: int = 8,
        batch: int = 64,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        if len(images) == 0:
            raise ValueError("validation needs at least one image")
        self.judge_by(objective)
        self.encode, self.images, self.cond = encode, images, cond
        self.bins, self.batch, self.seed, self.device = bins, batch, seed, torch.device(device)
        self._latents: Tensor | None = None

    def judge_by(self, objective: Any) -> None:
        """Take another objective, such as one that has found its reference by now."""
        self.objective = _without_chance(objective)

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        """{"loss": mean over everything, "loss_t0.0625": mean of the bin around t = 1/16, ...}."""
        latents, losses = self.latents(), []
        pairs = [(image, k) for image in range(len(latents)) for k in range(self.bins)]
        for start in range(0, len(pairs), self.batch):
            part = pairs[start : start + self.batch]
            rows = torch.tensor([image for image, _ in part])
            x, cond = latents[rows].to(self.device), self.cond.index(rows).to(self.device)
            noise = PairNoise(self.seed, part, self.bins, self.device)
            losses.append(self.objective(model, x, cond, noise).terms["denoise"].double().cpu())
        table = torch.cat(losses).view(-1, self.bins)  # (n, bins)
        means = table.mean(0).tolist()
        by_time = {f"loss_t{(k + 0.5) / self.bins:g}": mean for k, mean in enumerate(means)}
        return {"loss": table.mean().item(), **by_time}

    @torch.no_grad()
    def latents(self) -> Tensor:
        """(n, C, H, W) on the CPU, the posterior drawn once per image from the seed."""
        if self._latents is None:
            parts = []
            for start in range(0, len(self.images), self.batch):
                images = self.images[start : start + self.batch]
                pairs = [(start + i, 0) for i in range(len(images))]
                noise = PairNoise(self.seed, pairs, self.bins, self.device)
                parts.append(self.encode(images.to(self.device), noise).cpu())
            self._latents = torch.cat(parts)
        return self._latents


def _without_chance(objective: Any) -> Any:
    """The objective without label drop, its times uniform over the interval in which it is defined.

    Where its weight has a pole at an end (data prediction by the velocity's error at t = 0), MARGIN off that end.
    """
    if isinstance(objective, Preference):
        return replace(objective, objective=_without_chance(objective.objective))
    fields = type(objective).model_fields
    changes: dict[str, Any] = {name: 0.0 for name in ("drop", "drop_each") if name in fields}
    density = fields.get("density") and objective.density
    if density and not isinstance(density, Uniform):
        low, high = interval(objective.path, objective.prediction)
        if "weight" in fields:
            ends = torch.tensor([low, (low + high) / 2, high], dtype=torch.float64)
            start, middle, end = objective.weight(objective.path, ends, objective.prediction).tolist()
            low, high = low + MARGIN * (start > HUGE * middle), high - MARGIN * (end > HUGE * middle)
        changes["density"] = Uniform(low=low, high=high)
    return objective.model_copy(update=changes)
