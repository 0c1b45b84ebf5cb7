"""What every benchmark is told, where it runs, and the turns that its sides take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import torch
from pydantic import Field
from torch import nn

from ditkit.config import Settings
from ditkit.models import AnyModel, Condition, build_model, example_condition
from ditkit.recipes.memory import available, count
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.stopwatch import synchronise

T = TypeVar("T")
ENOUGH, MOST = 10.0, 100  # seconds of runs, and runs, where no number is asked for

Progress = Callable[[str, int, int], None]
Turn = Callable[[Callable[[int, int], None]], T]  # a run of one side; it tells (step, steps)


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


class BenchSettings(Settings):
    """What a benchmark is told beside its recipe; `None` where a benchmark has its own default."""

    batch: int | None = Field(None, ge=1, description="images at once; none: 8, or the recipe's where it trains")
    steps: int = Field(5, ge=1, description="solver steps of a run; train: optimizer steps of a turn")
    repeats: int | None = Field(None, ge=1, description="runs of each kind, taking turns; none: 10 seconds of them")
    warmup: int = Field(1, ge=0, description="calls or steps before the clock starts")
    precision: Literal["fp32", "bf16"] | None = Field(
        None, description="bf16: autocast with float32 islands; none: fp32, or the recipe's where it trains"
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of PyTorch; none: as it starts")
    seed: int = Field(0, ge=0, description="of weights and noise")
    peak: float | None = Field(None, gt=0, description="TFLOP/s that the device's maker states (2 a MAC)")
    every: int = Field(5, ge=1, description="sharing: the encoder runs at 1 evaluation in so many")
    against: str = Field("", description="sharing: a recipe to compare with; '': SiT of the same size; none: nothing")
    compare: bool = Field(False, description="train: a plain eager fp32 step of the same model takes turns")
    data: str = Field("", description="train, loader: images or a cache; '': random ones in memory, the recipe's own")
    ceiling: bool = Field(True, description="train: time matrix products alone beside it")
    seconds: float = Field(5.0, gt=0, description="loader: of each measurement")
    extractor: str = Field("inception", description="evaluation: inception, inception:FILE, toy, or a teacher's name")
    samples: int = Field(10_000, ge=10, description="evaluation: rows of the random features that metrics compare")
    width: int = Field(2048, ge=2, description="evaluation: numbers of such a row")


class Bench(NamedTuple):
    """What is measured, and where."""

    recipe: Recipe
    settings: BenchSettings
    device: torch.device

    @property
    def batch(self) -> int:
        """Images at once."""
        return self.settings.batch or 8


def public_name(recipe: Recipe) -> str:
    """A recipe's name without folders: "./mine.py:big" -> "mine.py:big"."""
    return Path(recipe.name).name or "unnamed"


def condition(model: AnyModel, rows: int, device: torch.device) -> Condition:
    """Labels that take turns; the example of a model that reads text; nothing for an unconditional one."""
    if not model.num_classes:
        return example_condition(model, rows, device)
    return Condition(label=torch.arange(rows, device=device) % model.num_classes)


def precision(settings: BenchSettings, device: torch.device) -> torch.autocast:
    """The context of all network calls."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16")


def take_turns(
    settings: BenchSettings, arms: Mapping[str, Turn[T]], progress: Progress | None = None, stage: str = "sampling"
) -> dict[str, list[T]]:  # fmt: skip
    """As many runs of every arm, one of each in turn: what slows the machine for a while slows all."""
    runs: dict[str, list[T]] = {name: [] for name in arms}
    steps, repeats, began = settings.steps, settings.repeats or 1, time.perf_counter()
    told, done = progress or silent, 0
    while done < repeats * len(arms) * steps:
        for name, arm in arms.items():
            total = repeats * len(arms) * steps
            runs[name].append(arm(partial(_told, told, stage, done, total)))
            done += steps
        if settings.repeats is None and done == len(arms) * steps:
            repeats = max(1, min(MOST, int(ENOUGH / max(time.perf_counter() - began, 1e-9))))
    told(stage, done, done)
    return runs


def _told(told: Progress, stage: str, before: int, total: int, step: int, _: int) -> None:
    """A run's progress as that of all runs."""
    told(stage, before + step, total)


def network(bench: Bench, model: AnyModel, copies: int = 1, progress: Progress | None = None) -> nn.Module:
    """The network with random weights, none of them zero, on the device, warmed up on `copies` batches at once.

    ValueError if the weights alone do not fit in memory.
    """
    settings, device = bench.settings, bench.device
    with torch.device("meta"):
        needed = 4 * count(build_model(model))
    there = available(device)
    if there is not None and needed > there:
        raise ValueError(f"bench: the weights take {needed / 2**30:.1f} GiB, {device} has {there / 2**30:.1f} GiB")
    told = partial(progress or silent, f"preparing {model.kind}")
    told(0, 1 + settings.warmup)
    generator = torch.Generator().manual_seed(settings.seed)
    built = build_model(model, generator=generator).eval()
    with torch.no_grad():
        awaken(built, generator)
        built = built.to(device)
        rows = copies * bench.batch
        x, cond = torch.zeros(rows, model.channels, *model.size, device=device), condition(model, rows, device)
        with precision(settings, device):
            for i in range(1, settings.warmup + 1):
                told(i, 1 + settings.warmup)
                built(x, torch.full((rows,), 0.5, device=device), cond)
    synchronise(device)
    told(1 + settings.warmup, 1 + settings.warmup)
    return built


@torch.no_grad()
def awaken(model: nn.Module, generator: torch.Generator) -> None:
    """Small random numbers for parameters that are all zero: published initialisations end in such, and answer 0."""
    for parameter in model.parameters():
        if not parameter.any():
            parameter.normal_(std=0.02, generator=generator)
