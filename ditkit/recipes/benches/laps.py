"""Where the time of a training step goes: laps around the parts of a real Job."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from ditkit.protocols import Noise
from ditkit.recipes.stopwatch import seconds_of
from ditkit.training.state import Job, State

T = TypeVar("T")
PARTS = ("data", "noise", "encode", "teacher", "forward", "backward", "optimizer", "ema", "logging")


class Laps:
    """Seconds by name; a lap inside another one counts there alone. Off, work is passed on as it is.

    While it is on, an accelerator is waited for before and after each lap, so that work counts where it was asked for.
    """

    def __init__(self, device: torch.device):
        self.device, self.on = device, False
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = [0.0]

    def lap(self, name: str, work: Callable[[], T]) -> T:
        """What `work` returns, its seconds booked under `name`."""
        if not self.on:
            return work()
        self._inside.append(0.0)
        spent, result = seconds_of(work, self.device)
        self.seconds[name] += spent - self._inside.pop()
        self._inside[-1] += spent
        return result

    def around(self, name: str, function: Callable) -> Callable:
        """`function`, every call of it a lap."""

        def timed(*given: Any, **named: Any) -> Any:
            return self.lap(name, lambda: function(*given, **named))

        return timed


class TimedNoise:
    """protocols.Noise whose draws are laps."""

    def __init__(self, noise: Noise, laps: Laps):
        self._noise, self._laps = noise, laps

    def normal(self, stream: str, shape: tuple[int, ...]) -> Tensor:
        """As the noise inside."""
        return self._laps.lap("noise", lambda: self._noise.normal(stream, shape))

    def uniform(self, stream: str, shape: tuple[int, ...]) -> Tensor:
        """As the noise inside."""
        return self._laps.lap("noise", lambda: self._noise.uniform(stream, shape))


def watch_job(job: Job, laps: Laps) -> None:
    """Laps around what the loop calls of a Job: codec, teachers, and network with loss."""
    job.encode = laps.around("encode", job.encode)
    job.objective = laps.around("forward", job.objective)
    if job.targets is not None:
        job.targets = laps.around("teacher", job.targets)


def watch_state(state: State, laps: Laps) -> None:
    """Laps around what the loop calls of a State: draws and averages."""
    source = state.source

    def draws(*given: Any, **named: Any) -> TimedNoise:
        return TimedNoise(source(*given, **named), laps)

    state.source = draws  # type: ignore[assignment]
    averages: list[Any] = [*state.emas, state.averages]
    for average in averages:
        average.update = laps.around("ema", average.update)
