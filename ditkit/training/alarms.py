"""Alarms of a run that goes on but should not: a loss that jumps, numbers that no longer move."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ditkit.training.readings import Row

WARM = 100  # steps before the first alarm of a jump
RATE = 1 / 200  # of the running mean and variance
FADE = 1 - 1e-4  # of the largest excursion, per step
MORE = 1.5  # times the largest excursion of ordinary noise
BURST = 100  # steps without a jump before the next one is told
DEAD = 100  # steps in a row


@dataclass
class Spikes:
    """Finds steps whose loss lies far above its running mean. O(1) memory; part of a checkpoint.

    limit: deviations above the mean; None: no alarms. Batch losses of diffusion have long tails, so that a step must
    also lie half more above the mean than any of the last 10,000 or so. What a jump adds to the running numbers is
    bounded by the alarm's own threshold, so that one jump does not hide the next, and a loss that stays high is the new
    mean after a while. When terms come or go (alignment that stops) the loss is another one, and all starts anew.
    """

    limit: float | None
    steps: int = 0
    mean: float = 0.0
    variance: float = 0.0
    highest: float = 0.0
    count: int = 0
    last: int | None = None  # the step of the newest one
    terms: str = ""

    def watch(self, step: int, values: Row) -> str | None:
        """Take one step's numbers in; what to say of it, if it is a jump after at least BURST steps without one."""
        if self.limit is None:
            return None
        if (terms := " ".join(sorted(name for name in values if name.startswith("loss")))) != self.terms:
            self.steps, self.mean, self.variance, self.highest, self.terms = 0, 0.0, 0.0, 0.0, terms
        loss, mean, deviation = values["loss"], self.mean, math.sqrt(self.variance)
        bound = max(self.limit * deviation, MORE * self.highest)
        jump = self.steps >= WARM and 0 < bound < loss - mean
        self._learn(mean + bound if jump else loss)
        if not jump:
            return None
        told, self.last, self.count = self.last, step, self.count + 1
        if told is not None and step - told < BURST:
            return None
        return (
            f"alarm: step {step}: loss {loss:.4g} is {(loss - mean) / deviation:.1f} deviations above its running mean "
            f"{mean:.4g} ({self.count} such steps so far)"
        )

    def _learn(self, loss: float) -> None:
        self.steps += 1
        rate = max(RATE, 1 / self.steps)
        away = loss - self.mean
        if self.steps > 1:
            self.highest = max(self.highest * FADE, away)
        self.mean += rate * away
        self.variance = (1 - rate) * (self.variance + rate * away * away)

    def numbers(self) -> dict:
        """What a checkpoint keeps: JSON values."""
        return {name: value for name, value in vars(self).items() if name != "limit"}

    def restore(self, numbers: Mapping) -> None:
        """The numbers of a checkpoint; of one without, a new start."""
        fresh = Spikes(self.limit)
        for name in fresh.numbers():
            setattr(self, name, numbers.get(name, getattr(fresh, name)))


@dataclass
class Still:
    """Finds runs that are dead: a number that has been the same for DEAD steps. Part of a checkpoint."""

    last: Row = field(default_factory=dict)
    streak: dict[str, int] = field(default_factory=dict)

    def watch(self, step: int, values: Row) -> list[str]:
        """Take one step's numbers in; what to say at the DEAD-th step of each streak."""
        still = {"loss": values["loss"] == self.last.get("loss")}
        still |= {name: value == 0 for name, value in values.items() if name == "grad_norm" or name.startswith("loss_")}
        self.last = {"loss": values["loss"]}
        self.streak = {name: self.streak.get(name, 0) + 1 for name, same in still.items() if same}
        return [f"warning: step {step}: {self._means(name)}" for name, n in self.streak.items() if n == DEAD]

    @staticmethod
    def _means(name: str) -> str:
        if name == "grad_norm":
            return f"the gradient has been exactly 0 for {DEAD} steps; the model no longer learns"
        if name == "loss":
            return f"the loss has been exactly the same for {DEAD} steps; the model no longer learns"
        return f"{name} has been exactly 0 for {DEAD} steps; this term no longer teaches anything"

    def numbers(self) -> dict:
        """What a checkpoint keeps: JSON values."""
        return {"last": self.last, "streak": self.streak}

    def restore(self, numbers: Mapping) -> None:
        """The numbers of a checkpoint; of one without, a new start."""
        self.last, self.streak = dict(numbers.get("last", {})), dict(numbers.get("streak", {}))


@dataclass
class Alarms:
    """Both of them."""

    spikes: Spikes
    still: Still = field(default_factory=Still)

    def watch(self, step: int, values: Row) -> list[str]:
        """Take one step's finite numbers in; what to say."""
        jump = self.spikes.watch(step, values)
        return [*([jump] if jump else []), *self.still.watch(step, values)]

    def numbers(self) -> dict:
        """What a checkpoint keeps: JSON values."""
        return {"spikes": self.spikes.numbers(), "still": self.still.numbers()}

    def restore(self, numbers: Mapping) -> None:
        """The alarms of a checkpoint; of one without, a new start."""
        self.spikes.restore(numbers.get("spikes", {}))
        self.still.restore(numbers.get("still", {}))
