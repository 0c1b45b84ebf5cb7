"""Numbers of training steps on their way from the device to the host, so that the loop need not wait for them."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Row = dict[str, float]
STOP = "stop"  # of several processes: what they were asked, among the numbers of a step
TERMINATES = 2.0**12  # what SIGTERM counts there; SIGINT counts 1


class Reading(NamedTuple):
    """What a step left on the device: values (n,) float32 under their names, and whether all of them are finite."""

    names: tuple[str, ...]
    values: Tensor
    good: Tensor

    @classmethod
    def of(cls, totals: Mapping[str, Tensor]) -> Reading:
        """Scalars on one device, in their order."""
        values = torch.stack([value.float() for value in totals.values()])
        return cls(tuple(totals), values, values.isfinite().all())

    def plus(self, name: str, value: Tensor) -> Reading:
        """With one more scalar, which does not count for `good`."""
        return Reading((*self.names, name), torch.cat((self.values, value.float().view(1))), self.good)


class Readings:
    """The readings that the host has not seen yet.

    On an accelerator a step's numbers are copied while the next step runs and are read then, so that the host is always
    a step ahead; on a CPU there is nothing to wait for and they are read at once. signal: SIGINT or SIGTERM, once a
    step that was read says that one of several processes was asked to stop (parallel.Team.agree).
    """

    def __init__(self, device: torch.device):
        self.late, self.signal = device.type != "cpu", 0
        self._waiting: deque[tuple[int, tuple[str, ...], Tensor, torch.Event | None]] = deque()

    def push(self, step: int, reading: Reading) -> None:
        """Send the numbers of step `step` on their way."""
        if not self.late:
            self._waiting.append((step, reading.names, reading.values, None))
            return
        device = reading.values.device
        host = torch.empty(reading.values.shape, dtype=reading.values.dtype, pin_memory=device.type != "cpu")
        host.copy_(reading.values, non_blocking=True)
        arrived = None
        if device.type != "cpu":  # there a copy is made at once
            arrived = torch.Event(device)
            arrived.record()
        self._waiting.append((step, reading.names, host, arrived))

    def take(self, *, everything: bool = False) -> list[tuple[int, Row]]:
        """(step, values) in the order of the steps: all but the newest one on an accelerator, or everything."""
        keep = 1 if self.late and not everything else 0
        found = []
        while len(self._waiting) > keep:
            step, names, values, arrived = self._waiting.popleft()
            if arrived is not None:
                arrived.synchronize()
            row = dict(zip(names, values.tolist(), strict=True))
            if asked := row.pop(STOP, 0.0):
                self.signal = signal.SIGINT if asked < TERMINATES / 2 else signal.SIGTERM
            found.append((step, row))
        return found

    def clear(self) -> None:
        """Forget what is on its way: a run that is rolled back."""
        self._waiting.clear()
