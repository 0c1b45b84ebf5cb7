"""How long a study will take on this machine: its networks are timed for a moment before it starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ditkit.models import build_model, example_condition
from ditkit.recipes.recipe import Recipe

OVERHEAD = 1.25  # of noise, optimiser and averages over the bare passes of a training step


@dataclass(frozen=True)
class Pace:
    """Seconds that a network takes for one image: in a training step, and in an evaluation."""

    training: float
    evaluation: float


def pace(recipe: Recipe, chunk: int, device: torch.device) -> Pace:
    """Time the recipe's network (already fitted to its data) at its batch and at `chunk` images."""
    model = build_model(recipe.model, generator=torch.Generator().manual_seed(0)).to(device)

    def step() -> None:
        _forward(model, recipe, recipe.training.batch, device).square().mean().backward()

    @torch.no_grad()
    def evaluate() -> None:
        _forward(model, recipe, chunk, device)

    return Pace(OVERHEAD * _seconds(step, device) / recipe.training.batch, _seconds(evaluate, device) / chunk)


def _forward(model: nn.Module, recipe: Recipe, n: int, device: torch.device) -> torch.Tensor:
    s = recipe.model
    x = torch.zeros(n, s.channels, *s.size, device=device)
    return model(x, torch.full((n,), 0.5, device=device), example_condition(s, n, device)).sample


def _seconds(call: Callable[[], None], device: torch.device, rounds: int = 3) -> float:
    """The fastest of a few calls, after one that warms up."""
    took = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        call()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        took.append(time.perf_counter() - began)
    return min(took[1:])
