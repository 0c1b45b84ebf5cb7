"""Measuring what encoder sharing can build on: how alike s is, and what an older s does to the velocity."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from ditkit.analysis.harm import branch_error
from ditkit.analysis.sharing import draw_templates, state_similarity, velocity_error
from ditkit.diffusion import CFG, SamplerSettings, uniform_schedule
from ditkit.protocols import Condition, Decoupled, Output, SelfCondition
from ditkit.recipes.load import Loaded
from ditkit.recipes.sharing import Measured, check_shareable, digest

Bar = Callable[..., None]  # bar(stage, done, total)
DERIVED = ("dp-*.json", "velocity-*.json", "*trade-off.json", "report.html")
BRANCHES_EVERY = 5  # one evaluation in so many encodes both branches, where sharing between them is tried
UNBOUND = 100  # evaluations up to which every reuse is tried, in N^2 / 2 decoder runs a template
FARTHER = 4  # beyond, reuse is tried so many times as far as a uniform schedule of the smallest budget goes


class Watched:
    """A `Decoupled` model that tells a bar how many rows it has decoded, of `total`."""

    def __init__(self, model: Decoupled, bar: Bar, stage: str, total: int):
        self.model, self.bar, self.stage, self.total, self.done = model, bar, stage, total, 0
        self.settings = getattr(model, "settings", None)

    def __call__(self, x: Tensor, t: Tensor, cond: Condition, *, capture: tuple[int, ...] = ()) -> Output:
        return self.model(x, t, cond, capture=capture)

    def null(self, cond: Condition) -> Condition:
        """The model's."""
        return self.model.null(cond)

    def parameters(self) -> Iterable[Tensor]:
        """The model's."""
        return self.model.parameters()  # type: ignore[attr-defined]

    def encode(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The model's."""
        return self.model.encode(x, t, cond)

    def decode(self, x: Tensor, s: Tensor | SelfCondition) -> Tensor:
        """The model's, counted."""
        self.done = min(self.total, self.done + len(x))
        self.bar(self.stage, self.done, self.total)
        return self.model.decode(x, s)


def choose_reach(steps: int, budgets: Sequence[int], asked: int | None = None) -> int:
    """For how many evaluations after its own the harm of an s is measured: `asked`, or what `steps` N allow.

    ValueError, one line, where that is too few for a schedule of the smallest budget.
    """
    longest = math.ceil(steps / min(budgets))  # evaluations that some s serves, its own among them
    if asked is not None and asked + 1 < longest:
        raise ValueError(
            f"reach={asked}: {min(budgets)} encoder runs for {steps} evaluations need an s that serves {longest}: "
            f"give reach={longest - 1} or more"
        )
    return min(steps - 1, asked or (steps if steps <= UNBOUND else FARTHER * longest))


def measure(
    loaded: Loaded, sampling: SamplerSettings, templates: int, seed: int, size: tuple[int, int], bar: Bar,
    reach: int | None = None,
) -> Measured:  # fmt: skip
    """Sample `templates` latents of random classes without sharing; compare all s, and the velocities they give.

    reach: evaluations after its own that the velocities of an s are tried at; None: all.
    """
    steps, began = check_shareable(loaded, sampling), time.perf_counter()
    reach = steps - 1 if reach is None else min(reach, steps - 1)
    model = cast(Decoupled, loaded.model)
    drawn = draw_templates(model, templates, seed, size)
    guided = isinstance(sampling.guidance, CFG) and sampling.guidance.scale != 1
    rows = templates * steps * (2 if guided else 1)
    how: dict[str, Any] = {"path": loaded.path, "prediction": loaded.prediction}
    found = state_similarity(Watched(model, bar, "similarity", rows), sampling, drawn, **how)
    pairs = rows // steps * (steps + steps * reach - reach * (reach + 1) // 2)
    error = velocity_error(Watched(model, bar, "velocity", pairs), sampling, drawn, reach=max(1, reach), **how)
    facts: dict[str, Any] = {"templates": templates, "seed": seed, "evaluations": steps, "reach": reach}
    branches = {}
    if found.between is not None:
        full = uniform_schedule(steps, max(1, steps // BRANCHES_EVERY))
        tried = branch_error(Watched(model, bar, "branches", 4 * rows), sampling, drawn, full, **how)
        named = {"similarity": found.between, "branch": tried.branch, "time": tried.time, "same": tried.same}
        branches = {name: values.numpy() for name, values in {**named, "output": tried.output}.items()}
        facts["branch_work"] = tried.work
    facts["seconds"] = round(time.perf_counter() - began, 2)
    return Measured(found.similarity.numpy(), error.numpy(), found.times.numpy(), branches, facts)


def obtain(
    loaded: Loaded, sampling: SamplerSettings, templates: int, seed: int, size: tuple[int, int], folder: Path, bar: Bar,
    reach: int | None = None,
) -> tuple[Measured, bool]:  # fmt: skip
    """(What is stored in `folder`, or measured and stored now; whether it was there).

    What is stored counts if it is of this model, sampler and size (their digest), of these templates, and reaches as
    far (None: all evaluations) or farther.
    """
    asked = {"templates": templates, "seed": seed, "digest": digest(loaded, sampling, size)}
    stored = Measured.load(folder)
    same = stored is not None and asked == {key: stored.facts.get(key) for key in asked}
    if stored is not None and same and stored.reach >= min(stored.evaluations - 1, reach or stored.evaluations):
        return stored, True
    measured = measure(loaded, sampling, templates, seed, size, bar, reach)
    measured.facts.update(asked)
    for old in (file for pattern in DERIVED for file in folder.glob(pattern) if stored is not None):
        old.unlink()  # made from the measurement that is replaced
    measured.save(folder)
    return measured, False
