"""Timing a sampling run from inside: the calls of its network, and what the loop around them adds.

Seconds are of a monotonic clock. An accelerator is waited for before and after each timed call, so that work counts
where it was asked for.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
HALVES = ("forward", "encode", "decode")  # what is timed of a network that has it


class Call(NamedTuple):
    """A timed call: "forward", "encode" or "decode" of the network, or "noise"; rows of its batch; seconds."""

    part: str
    rows: int
    seconds: float


class Run(NamedTuple):
    """A sampling run: wall-clock seconds, network evaluations an image, the latents.

    watched: seconds of the same run while its calls were timed, and those calls in order. On a CPU the two runs are
    one; an accelerator works ahead when nobody waits for it, so that there the loop's share is an upper bound.
    """

    seconds: float
    watched: float
    calls: list[Call]
    evaluations: int
    latents: Tensor

    @property
    def network(self) -> list[Call]:
        """The calls of the network."""
        return [call for call in self.calls if call.part in HALVES]

    @property
    def loop_percent(self) -> float:
        """Time outside the network: solver, guidance, wrappers, noise; in percent of the time inside."""
        inside = sum(call.seconds for call in self.network)
        return 100 * (self.watched - inside) / inside

    @property
    def noise_percent(self) -> float:
        """Drawing noise, in percent of the network's time; a part of the loop's."""
        noise = sum(call.seconds for call in self.calls if call.part == "noise")
        return 100 * noise / sum(call.seconds for call in self.network)

    @property
    def with_encoder(self) -> list[float]:
        """Seconds of each evaluation in which the whole network ran."""
        return [seconds for whole, seconds in evaluations(self.network) if whole]

    @property
    def without_encoder(self) -> list[float]:
        """Seconds of each evaluation in which the decoder ran alone."""
        return [seconds for whole, seconds in evaluations(self.network) if not whole]


@contextmanager
def timed(model: nn.Module, device: torch.device, calls: list[Call]) -> Iterator[None]:
    """Inside the block each call of the model's forward, encode and decode from outside is appended to `calls`.

    The methods of this one object are replaced, so that it stays what it is to everything that looks at it.
    """
    parts = [part for part in HALVES if hasattr(model, part)]
    for part in parts:
        setattr(model, part, stopwatch(part, getattr(model, part), device, calls))
    try:
        yield
    finally:
        for part in parts:
            delattr(model, part)


def stopwatch(part: str, function: Callable, device: torch.device, calls: list[Call]) -> Callable:
    """`function`, appending a Call to `calls` each time."""

    def watched(*args, **options):
        seconds, result = seconds_of(lambda: function(*args, **options), device)
        calls.append(Call(part, len(args[0]) if isinstance(args[0], Tensor) else 0, seconds))
        return result

    return watched


def evaluations(calls: Sequence[Call]) -> list[tuple[bool, float]]:
    """(did the whole network run, seconds) of each evaluation: a forward, or a decode and the encode before it."""
    found: list[tuple[bool, float]] = []
    encoding: float | None = None
    for part, _, seconds in calls:
        if part == "encode":
            encoding = seconds
            continue
        found.append((part == "forward" or encoding is not None, seconds + (encoding or 0.0)))
        encoding = None
    return found


def spread(values: Iterable[float]) -> dict[str, float] | None:
    """{"median", "least", "most", "n"} of some numbers; None of none."""
    found = sorted(values)
    if not found:
        return None
    return {"median": statistics.median(found), "least": found[0], "most": found[-1], "n": len(found)}


def seconds_of(work: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """(seconds that `work` took on the device, what it returned)."""
    synchronise(device)
    began = time.perf_counter()
    result = work()
    synchronise(device)
    return time.perf_counter() - began, result


def runs_ahead(device: torch.device) -> bool:
    """Whether calls return before their work is done."""
    return device.type != "cpu"


def synchronise(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def cpu_threads(threads: int | None) -> Iterator[None]:
    """PyTorch's CPU threads inside the block; put back after."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cpu_name() -> str:
    """The processor's model and widest vector instructions: "AMD EPYC ..., AVX512"."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"
