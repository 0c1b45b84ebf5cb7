"""What is made ready while the device works on the step before: batches in pinned memory, and the next draws."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from ditkit.diffusion import BatchNoise
from ditkit.protocols import Condition, Features

DEPTH = 2  # batches


def pinned(batches: Iterator[Any], device: torch.device | str) -> Iterator[Any]:
    """The same batches, `DEPTH` of them fetched by a thread into pinned memory; on a CPU just the same."""
    return batches if torch.device(device).type == "cpu" else _fetched(batches, pin=True)


def _fetched(batches: Iterator[Any], *, pin: bool) -> Iterator[Any]:
    """The batches as a thread gets them ahead of time; what goes wrong there is raised here, in its turn."""
    ready: queue.Queue = queue.Queue(DEPTH)
    over = threading.Event()

    def fetch() -> None:
        try:
            for batch in batches:
                _put(ready, (page_locked(batch) if pin else batch, None), over)
                if over.is_set():
                    return
            _put(ready, (None, StopIteration()), over)
        except BaseException as error:
            _put(ready, (None, error), over)

    thread = threading.Thread(target=fetch, name="batches", daemon=True)
    thread.start()
    try:
        while True:
            batch, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield batch
    finally:
        over.set()


def page_locked(batch: Any) -> Any:
    """The batch (a NamedTuple) with all its tensors, conditions and features in page-locked memory."""
    return batch._replace(**{name: _locked(value) for name, value in batch._asdict().items()})


def _locked(value: Any) -> Any:
    if isinstance(value, (Tensor, Condition)):
        return value.pin_memory()
    if isinstance(value, Features):
        return value._replace(tokens=value.tokens.pin_memory(), pooled=value.pooled.pin_memory())
    return tuple(map(_locked, value)) if type(value) is tuple else value


def _put(ready: queue.Queue, what: tuple, over: threading.Event) -> None:
    while not over.is_set():
        try:
            return ready.put(what, timeout=0.1)
        except queue.Full:
            continue


class Draws:
    """The noise of a run's steps. On an accelerator what a step asked for is drawn for the next one meanwhile.

    Draws come from a counter generator on the host, so that they are the same everywhere; at hundreds of images a step
    they take longer than the launches that they would hold up. `seed`, `total`: of BatchNoise.
    """

    def __init__(self, seed: int, total: int, device: torch.device, *, ahead: bool | None = None):
        self.seed, self.total, self.device = seed, total, device
        self.pool = ThreadPoolExecutor(2, "draws") if (device.type != "cpu" if ahead is None else ahead) else None
        self._drawn: dict[tuple, Future[Tensor]] = {}

    def __call__(self, step: int, start: int, stop: int, *, seed: int | None = None) -> BatchNoise | AheadNoise:
        """The noise of rows [start, stop) of a step; seed: another one than the run's."""
        noise = BatchNoise(self.seed if seed is None else seed, step, self.total, start, stop)
        if self.pool is None:
            noise.device = self.device
            return noise
        return AheadNoise(noise, self)

    def take(self, noise: BatchNoise, kind: str, stream: str, shape: tuple[int, ...]) -> Tensor:
        """A draw, from before or made now; the same of the next step is begun."""
        assert self.pool is not None
        key = (noise.seed, noise.step, noise.start, noise.stop, kind, stream, shape)
        found = self._drawn.pop(key, None)
        after = BatchNoise(noise.seed, noise.step + 1, noise.total, noise.start, noise.stop)
        for old in [k for k in self._drawn if k[1] < noise.step]:  # of a step that asked for less
            self._drawn.pop(old).cancel()
        self._drawn[(key[0], key[1] + 1, *key[2:])] = self.pool.submit(self._draw, after, kind, stream, shape)
        drawn = found.result() if found is not None else self._draw(noise, kind, stream, shape)
        return drawn.to(self.device, non_blocking=True)

    def _draw(self, noise: BatchNoise, kind: str, stream: str, shape: tuple[int, ...]) -> Tensor:
        drawn = getattr(noise, kind)(stream, shape)
        return drawn.pin_memory() if self.device.type != "cpu" else drawn


class AheadNoise:
    """protocols.Noise of one step, whose draws `Draws` has begun before."""

    def __init__(self, noise: BatchNoise, draws: Draws):
        self._noise, self._draws = noise, draws

    def normal(self, stream: str, shape: tuple[int, ...]) -> Tensor:
        """(rows, ...) standard normal, float32, on the device."""
        return self._draws.take(self._noise, "normal", stream, shape)

    def uniform(self, stream: str, shape: tuple[int, ...]) -> Tensor:
        """(rows, ...) uniform on [0, 1), float32, on the device."""
        return self._draws.take(self._noise, "uniform", stream, shape)
