"""REPA: hidden tokens of one block, projected, are pulled towards a frozen teacher's tokens (arXiv 2410.06940)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ditkit.align.similarity import AnySimilarity, Cosine
from ditkit.config import Settings
from ditkit.protocols import Features

Grid = tuple[int, int]
Init = Literal["xavier", "torch"]


class AlignSettings(Settings):
    """What REPA adds to a training run; the defaults are the published ones for L and XL (B aligns block 4)."""

    depth: int | tuple[int, ...] = Field(
        8, description="Block whose output is aligned, counted from 1; or one a teacher."
    )
    weight: float = Field(0.5, ge=0, description="lambda: factor of the mean loss over teachers.")
    projector_width: int = Field(2048, ge=1, description="Hidden width of each projector.")
    projector_init: Init = Field("xavier", description="xavier: REPA's; torch: PyTorch's default, as DDT's.")
    similarity: AnySimilarity = Cosine()
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Weight until stop_step: constant (published), or falling to 0 there."
    )
    stop_step: int | None = Field(None, ge=0, description="First step without alignment: no targets from there on.")
    grid: Literal["resize_image", "resize_features"] = Field(
        "resize_image", description="Teacher grid differs: scale the teacher's image (published), or its features."
    )

    @model_validator(mode="after")
    def _check(self) -> AlignSettings:
        depths = (self.depth,) if isinstance(self.depth, int) else self.depth
        if not depths or min(depths) < 1:
            raise ValueError(f"align.depth counts blocks from 1, got {self.depth}")
        if self.schedule != "constant" and not self.stop_step:
            raise ValueError(f"align.schedule {self.schedule!r} needs align.stop_step, the step where it reaches 0")
        return self

    def depths(self, teachers: int) -> tuple[int, ...]:
        """One 1-based block for each of `teachers` teachers."""
        depths = (self.depth,) * teachers if isinstance(self.depth, int) else self.depth
        if len(depths) != teachers:
            raise ValueError(
                f"align.depth names {len(depths)} blocks for {teachers} teachers: give one, or one a teacher"
            )
        return depths

    def weight_at(self, step: int) -> float:
        """lambda at a step counted from 0; exactly 0 from stop_step on, where targets are not computed any more."""
        if self.stop_step is None:
            return self.weight
        if step >= self.stop_step:
            return 0.0
        done = step / self.stop_step
        factor = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[self.schedule]
        return self.weight * factor


class Projector(nn.Sequential):
    """Linear, SiLU, Linear, SiLU, Linear, applied to each token: (B, N, width) -> (B, N, target_width).

    Key names 0, 2, 4 as in published files. init "xavier": Xavier-uniform weights and zero biases (REPA); "torch":
    weights and biases uniform within 1 / sqrt(inputs), PyTorch's default (DDT).
    """

    def __init__(
        self, width: int, target_width: int, hidden: int = 2048, init: Init = "xavier", *,
        generator: torch.Generator | None = None,
    ):  # fmt: skip
        super().__init__(
            nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, target_width)
        )
        for layer in self:
            if not isinstance(layer, nn.Linear):
                continue
            if init == "xavier":
                nn.init.xavier_uniform_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)
            else:
                bound = 1 / math.sqrt(layer.in_features)
                nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)


@dataclass(frozen=True)
class Alignment:
    """The auxiliary term that an objective adds: call with the captured tokens, get the loss of each sample.

    `module` is an Aligner, or whatever wraps it (DDP hooks fire in forward only, so it is called, never reached into).
    """

    module: nn.Module
    targets: tuple[Features, ...]
    capture: tuple[int, ...]
    weight: float
    name: str = "align"

    def __call__(self, hidden: dict[int, Tensor]) -> Tensor:
        """{block: (B, N, width)} -> (B,), not weighted."""
        return self.module(hidden, self.targets)


class Aligner(nn.Module):
    """One projector a teacher, and the loss between projected hidden tokens and teacher tokens.

    model_width: width of the aligned blocks. teacher_widths: one a teacher, in the order of the targets.
    grid: (rows, columns) of the model's tokens; None: the targets', where these fit, or a square. Kept apart from the
    model, so that a run that stops aligning leaves no unused parameter in the wrapped network.
    """

    def __init__(
        self,
        settings: AlignSettings,
        model_width: int,
        teacher_widths: Sequence[int],
        grid: Grid | None = None,
        *,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if not teacher_widths:
            raise ValueError("an Aligner needs at least one teacher; leave `align` out to train without")
        self.settings, self.grid = settings, grid
        self.depths = settings.depths(len(teacher_widths))
        hidden, init = settings.projector_width, settings.projector_init
        self.projectors = nn.ModuleList(
            Projector(model_width, width, hidden, init, generator=generator) for width in teacher_widths
        )

    @property
    def capture(self) -> tuple[int, ...]:
        """The blocks that the model must return, sorted, each once."""
        return tuple(sorted(set(self.depths)))

    def weight(self, step: int) -> float:
        """lambda at this step (0-based)."""
        return self.settings.weight_at(step)

    def active(self, step: int) -> bool:
        """Whether targets are needed at this step: ask before running a teacher."""
        return self.weight(step) > 0

    def terms(
        self, targets: Sequence[Features] | None, step: int, module: nn.Module | None = None
    ) -> tuple[Alignment, ...]:
        """The auxiliary terms of this step: one, or none when the weight is 0. `module`: this aligner as wrapped."""
        if not self.active(step):
            return ()
        if targets is None or len(targets) != len(self.projectors):
            raise ValueError(f"align: {len(targets or ())} teacher targets for {len(self.projectors)} projectors")
        return (Alignment(module or self, tuple(targets), self.capture, self.weight(step)),)

    def forward(self, hidden: dict[int, Tensor], targets: Sequence[Features]) -> Tensor:
        """Mean over teachers of the similarity loss of each sample, (B,), float32."""
        losses = []
        for depth, projector, features in zip(self.depths, self.projectors, targets, strict=True):
            tokens = hidden[depth]
            projected = projector(tokens)
            wanted = self._tokens_like(features, tokens.shape[1]).to(projected.device)
            if wanted.shape != projected.shape:
                raise ValueError(f"align: projected tokens {tuple(projected.shape)}, teacher {tuple(wanted.shape)}")
            with torch.autocast(projected.device.type, enabled=False):  # a float32 island: see similarity.py
                losses.append(self.settings.similarity(projected.float(), wanted.float()))
        return torch.stack(losses).mean(0)

    def _tokens_like(self, features: Features, count: int) -> Tensor:
        if self.grid is None and features.tokens.shape[1] == count and self.settings.grid == "resize_image":
            return features.tokens  # asked for at the grid of this batch
        side = math.isqrt(count)
        grid = self.grid or ((side, side) if side * side == count else features.grid)
        if tuple(features.grid) == tuple(grid):  # a grid that was stored as JSON comes back as a list
            return features.tokens
        if self.settings.grid == "resize_image":
            raise ValueError(
                f"align: the teacher's grid is {features.grid}, the model's {grid}; call the teacher with grid={grid}, "
                "or set align.grid=resize_features"
            )
        return resize_features(features, grid).tokens


def resize_features(features: Features, grid: Grid) -> Features:
    """Tokens resampled to another grid: bilinear, align_corners False (as DDT does when token counts differ)."""
    batch, _, width = features.tokens.shape
    image = features.tokens.float().transpose(1, 2).reshape(batch, width, *features.grid)
    resized = F.interpolate(image, size=grid, mode="bilinear", align_corners=False)
    return Features(resized.flatten(2).transpose(1, 2), features.pooled, grid)
