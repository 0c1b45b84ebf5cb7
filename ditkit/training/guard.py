"""What stops a run: numbers that are no longer finite, and signals."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any


class NonFinite(RuntimeError):
    """Loss or gradient was NaN or infinite too many steps in a row."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and has saved its state; `exit_code` is 130 (Ctrl-C) or 143 (SIGTERM).

    at_once: it was asked twice, and nothing was saved or waited for.
    """

    def __init__(self, message: str, exit_code: int = 130, *, at_once: bool = False):
        super().__init__(message)
        self.exit_code, self.at_once = exit_code, at_once


@dataclass
class Guard:
    """Decides whether an update may be applied. A skipped step leaves weights, optimizer and average untouched.

    limit: skipped steps in a row that roll the run back or end it. skipped: all so far. in_row: those since the last
    good step. rollbacks: returns to a checkpoint without getting past `trouble`, the step where the last one began.
    """

    limit: int
    skipped: int = 0
    in_row: int = 0
    rollbacks: int = 0
    trouble: int = 0

    def accept(self, values: dict[str, float]) -> bool:
        """True if every number in `values` (loss, gradient norm, terms) is finite."""
        good = all(math.isfinite(v) for v in values.values())
        self.skipped += not good
        self.in_row = 0 if good else self.in_row + 1
        return good

    def failure(self, step: int, values: dict[str, float]) -> NonFinite | None:
        """What to raise after a step that was the limit's last; None as long as the run may go on."""
        if self.in_row < self.limit:
            return None
        bad = ", ".join(name for name, value in values.items() if not math.isfinite(value))
        return NonFinite(
            f"step {step}: {bad} not finite {self.in_row} steps in a row; every one was skipped, the weights are those "
            f"of step {step - self.in_row}. Lower training.lr, set training.clip=1.0 or training.precision=fp32"
        )

    def numbers(self) -> dict[str, int]:
        """What a checkpoint keeps of it."""
        return {name: getattr(self, name) for name in ("skipped", "in_row", "rollbacks", "trouble")}

    def restore(self, numbers: Mapping[str, int]) -> None:
        """The guard of a checkpoint."""
        for name in ("skipped", "in_row", "rollbacks", "trouble"):
            setattr(self, name, numbers.get(name, 0))


def guard_numbers(numbers: Mapping) -> Mapping[str, int]:
    """A checkpoint's numbers of the guard; checkpoints from before rollbacks keep two of them by themselves."""
    return numbers.get("guard") or {"skipped": numbers["skipped"], "in_row": numbers["skipped_in_row"]}


class Stop:
    """`with Stop() as stop`: the first Ctrl-C or SIGTERM is only noted in `stop.signal`; a second one acts at once.

    Where `patient` is false, as in a long evaluation that may be broken off anywhere, the first one does. Outside the
    main thread signals cannot be caught; there the block changes nothing.
    """

    caught = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal, self.patient = 0, True
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._note) for s in self.caught}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: a handler that Python did not set

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal or not self.patient:
            self.signal = number
            raise Interrupted("stopped at once; the last checkpoint is the state", 128 + number, at_once=self.patient)
        self.signal = number
