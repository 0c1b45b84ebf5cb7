"""What can be asked of a finished run: a measure is a name, its cost in network evaluations, and a function."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ditkit.diffusion import SamplerSettings
from ditkit.recipes.reproduce.testbed import Testbed, validation_loss


class Measure(Protocol):
    """One score of a run, as JSON; a frozen dataclass, so that equal ones are the same score of a shared run."""

    @property
    def name(self) -> str:
        """The name of the score; holds everything that its value depends on beside the run and the budget."""
        ...

    def cost(self, bed: Testbed) -> float:
        """Network evaluations of single images that it takes."""
        ...

    def __call__(self, bed: Testbed, folder: Path, seed: int) -> Any:
        """The score of the run in `folder`, which was trained with `seed`."""
        ...


@dataclass(frozen=True)
class Quality:
    """Samples of the averaged weights at a step, judged: {"classifier", "random", "agreement", "validation_loss"}.

    sampler_steps: other than the budget's.
    """

    step: int
    sampler_steps: int | None = None

    @property
    def name(self) -> str:
        """quality@STEP, and the sampler's steps where they are other than usual."""
        return f"quality@{self.step}" + (f", {self.sampler_steps} steps" if self.sampler_steps else "")

    def cost(self, bed: Testbed) -> float:
        """All samples, all steps."""
        return bed.budget.images * (self.sampler_steps or bed.budget.sampler_steps)

    def __call__(self, bed: Testbed, folder: Path, seed: int) -> dict[str, float | None]:
        """Sampled from noise of the run's own seed."""
        loaded = bed.load(folder, self.step)
        sampler: SamplerSettings = loaded.recipe.sampling
        if self.sampler_steps:
            sampler = sampler.model_copy(update={"steps": self.sampler_steps})
        images, labels = bed.sample(loaded, sampler=sampler, seed=seed)
        found: dict[str, float | None] = dict(bed.judge(images, labels))
        return {**found, "validation_loss": validation_loss(folder, self.step)}


def distance(found: dict[str, float] | None) -> float:
    """The geometric mean of the Frechet distances in both spaces; infinite where a run diverged."""
    if not found or found.get("classifier") is None:
        return math.inf
    return math.sqrt(max(found["classifier"], 1e-12) * max(found["random"], 1e-12))
