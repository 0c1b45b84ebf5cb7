"""What stops a run: numbers that are no longer finite, and signals."""

from __future__ import annotations

import math
import signal
import threading
from dataclasses import dataclass
from types import FrameType
from typing import Any


class NonFinite(RuntimeError):
    """Loss or gradient was NaN or infinite too many steps in a row."""


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and has saved its state; `exit_code` is 130 (Ctrl-C) or 143 (SIGTERM)."""

    def __init__(self, message: str, exit_code: int = 130):
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class Guard:
    """Decides whether an update may be applied. A skipped step leaves weights, optimizer and average untouched.

    limit: skipped steps in a row that end the run. skipped: all so far. in_row: those since the last good step.
    dead: steps in a row whose gradient was exactly zero.
    """

    limit: int
    skipped: int = 0
    in_row: int = 0
    dead: int = 0

    def accept(self, values: dict[str, float]) -> bool:
        """True if every number in `values` (loss, gradient norm, terms) is finite."""
        good = all(math.isfinite(v) for v in values.values())
        self.skipped += not good
        self.in_row = 0 if good else self.in_row + 1
        self.dead = self.dead + 1 if values.get("grad_norm") == 0 else 0
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
            raise Interrupted("stopped at once; the last checkpoint is the state", 128 + number)
        self.signal = number
