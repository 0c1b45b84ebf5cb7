"""Who writes a checkpoint: the loop itself, or a thread that has a copy of the tensors while training goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ditkit.ranks import RanksError
from ditkit.training import checkpoint
from ditkit.training.files import SaveError
from ditkit.training.settings import TrainSettings
from ditkit.training.state import State

Files = Mapping[str, Mapping[str, Tensor]]  # file -> name -> tensor


class Saved(NamedTuple):
    """A checkpoint that is on the disk under its final name. seconds: of writing it; background: beside training.

    doubt: a line, where old ones could not be removed.
    """

    step: int
    seconds: float
    background: bool
    doubt: str | None = None


class Writer(Protocol):
    """What the loop asks of whatever writes checkpoints. Every process calls all of it, in the same order.

    pending: the step that is being written in the background, or None. One write at a time.
    """

    @property
    def pending(self) -> int | None: ...

    def save(self, state: State) -> None:
        """Write the state's checkpoint and prune old ones, or begin to. `wait` must have been called before."""
        ...

    def poll(self) -> Saved | None:
        """What has been finished since the last call, if anything, without waiting. SaveError if it failed."""
        ...

    def wait(self) -> Saved | None:
        """The same, after what is under way has ended."""
        ...

    def close(self) -> None:
        """An error ends this process, perhaps alone: finish what it can without the others, raise nothing."""
        ...


class Task:
    """A write, done at once or by a thread, and what came of it; nothing that goes wrong in it is lost."""

    def __init__(self) -> None:
        self.pending: int | None = None
        self._thread: threading.Thread | None = None
        self._outcome: Saved | SaveError | None = None

    def now(self, step: int, write: Callable[[], Saved]) -> None:
        """Do it."""
        try:
            self._outcome = write()
        except SaveError as error:
            self._outcome = error
        except Exception as error:
            self._outcome = SaveError(f"checkpoint of step {step} could not be written: {error}")

    def begin(self, step: int, write: Callable[[], Saved]) -> None:
        """Let a thread do it. The process does not wait for it at its end: a second Ctrl-C acts at once."""
        self.pending = step
        self._thread = threading.Thread(target=self.now, args=(step, write), name="checkpoint", daemon=True)
        self._thread.start()

    def poll(self) -> Saved | None:
        """What has been finished since the last call. SaveError if it failed."""
        if self._thread is not None and self._thread.is_alive():
            return None
        self._thread, self.pending = None, None
        outcome, self._outcome = self._outcome, None
        if isinstance(outcome, SaveError):
            raise outcome
        return outcome

    def wait(self) -> Saved | None:
        """The same, after the write that is under way."""
        self._join()
        return self.poll()

    def close(self) -> None:
        """Let the write that is under way end."""
        self._join()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()


class Whole(Task):
    """Whole checkpoints, written by the first process. background: by a thread, from a copy in main memory.

    The copy is made when `save` is called: on an accelerator into pinned memory that is kept for the next time, behind
    the work that is queued there, and the host does not wait for it.
    """

    def __init__(self, settings: TrainSettings, *, background: bool | None = None):
        self.settings, self.background = settings, settings.save_async if background is None else background
        super().__init__()
        self._stage = Stage()

    def save(self, state: State) -> None:
        """Write, or copy and begin to write. Every process must call it: sharded weights are gathered for it."""
        folder, step, numbers = state.job.folder, state.step, state.numbers()
        with staged(step):
            files = state.files()
            if state.job.rank == 0 and self.background:
                copies, ready = self._stage.copy(files)
        if state.job.rank != 0:
            return
        if not self.background:
            return self.now(step, lambda: self._write(folder, step, files, numbers))

        def write() -> Saved:
            if ready is not None:
                ready.synchronize()
            return self._write(folder, step, copies, numbers)

        self.begin(step, write)

    def _write(self, folder: Path, step: int, files: Files, numbers: Mapping) -> Saved:
        began = time.perf_counter()
        checkpoint.write(folder, step, files, numbers)
        doubt = checkpoint.thin(folder, self.settings.keep_last, self.settings.keep_every)
        return Saved(step, time.perf_counter() - began, self.background, doubt)


@contextmanager
def staged(step: int) -> Iterator[None]:
    """What keeps tensors from being copied to main memory (no room for pinned memory) becomes SaveError."""
    try:
        yield
    except RanksError:
        raise
    except (RuntimeError, MemoryError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SaveError(f"checkpoint of step {step} could not be copied to main memory: {reason}") from None


class Stage:
    """A copy of tensors in main memory; what it takes there is kept for the next copy."""

    def __init__(self) -> None:
        self._own: dict[tuple[str, str], Tensor] = {}

    @torch.no_grad()
    def copy(
        self, files: Mapping[str, Mapping[str, Tensor]]
    ) -> tuple[dict[str, dict[str, Tensor]], torch.Event | None]:
        """The tensors' values of now, and the event after which they are there (None: they are)."""
        own, devices = {}, set()
        for file, tensors in files.items():
            for name, tensor in tensors.items():
                key = (file, name)
                own[key] = self._room(self._own.get(key), tensor)
                own[key].copy_(tensor.detach(), non_blocking=True)
                if tensor.device.type != "cpu":
                    devices.add(tensor.device)
        self._own = own
        ready = None
        for device in devices:  # one: a training's tensors are on one device
            ready = torch.Event(device)
            ready.record()
        return {file: {name: own[file, name] for name in tensors} for file, tensors in files.items()}, ready

    @staticmethod
    def _room(held: Tensor | None, tensor: Tensor) -> Tensor:
        if held is not None and (held.shape, held.dtype) == (tensor.shape, tensor.dtype):
            return held
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type != "cpu")
