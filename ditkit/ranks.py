"""The processes that share one job, as torchrun starts them: who does which part, and how they wait for each other.

Making and scoring images they talk over gloo, also on accelerators: nothing but "I am here" is exchanged. Training
names the backend of what it exchanges on the device. The first one speaks for all; another one is heard only of what it
alone has seen.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")

RENDEZVOUS = "DITKIT_RENDEZVOUS"  # where processes meet that torchrun did not start: file:///...
MEETING = timedelta(minutes=10)  # until all processes have begun
PATIENCE = timedelta(days=30)  # one process may have hours more to do than another; a dead one is noticed at once
LOOK = 0.2  # seconds between looks while waiting


class RanksError(RuntimeError):
    """The processes of one job cannot meet, or one of them has died."""


class Stopped(KeyboardInterrupt):
    """This process was asked to end (SIGTERM: torchrun, when another one has died)."""

    exit_code = 143


@dataclass(frozen=True)
class Ranks:
    """Process `rank` of `world`, the `local`-th of its machine; alone unless torchrun says otherwise."""

    rank: int = 0
    world: int = 1
    local: int = 0
    group: distributed.ProcessGroup | None = None  # inside `together`

    @property
    def first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    @property
    def connected(self) -> Ranks:
        """Those that can agree on something: these, inside of `together`; else this process alone."""
        return ALONE if self.group is None else self

    def share(self, parts: Sequence[T]) -> Sequence[T]:
        """What this process does of all parts: rank, rank + world, ..."""
        return parts[self.rank :: self.world]

    def device(self, wanted: torch.device) -> torch.device:
        """One device per process of a machine, in turn, where an accelerator is wanted without a number."""
        if self.world == 1 or wanted.index is not None or wanted.type in ("cpu", "mps"):
            return wanted
        found = torch.device(wanted.type, self.local % max(1, torch.accelerator.device_count()))
        torch.accelerator.set_device_index(found.index)
        return found

    def wait(self, meanwhile: Callable[[], object] | None = None) -> None:
        """Return when every process has come here; `meanwhile` is called now and then. RanksError if one has died."""
        if self.world == 1:
            return
        try:
            work = distributed.barrier(self.group, async_op=True)
            assert work is not None
            while not work.is_completed():
                if meanwhile is not None:
                    meanwhile()
                time.sleep(LOOK)
            work.wait()
        except RuntimeError as error:
            raise self.lost(error) from None

    def tell(self, value: T) -> T:
        """The first process's `value`, in all of them. RanksError if one has died."""
        if self.world == 1:
            return value
        box = [value]
        try:
            distributed.broadcast_object_list(box, src=0, group=self.group)
        except RuntimeError as error:
            raise self.lost(error) from None
        return box[0]

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """All go on behind the block, or none: what it raises in several processes is raised in the lowest one only."""
        problem: Exception | None = None
        try:
            yield
        except Exception as error:
            problem = error
        if self.world == 1:
            if problem is not None:
                raise problem
            return
        failed: list[bool] = [False] * self.world
        try:
            distributed.all_gather_object(failed, problem is not None, group=self.group)
        except RuntimeError as error:
            raise self.lost(error) from None
        if any(failed):
            if problem is not None and failed.index(True) == self.rank:
                raise problem
            raise SystemExit(2)

    def lost(self, error: Exception) -> RanksError:
        """What to say when the connection to another process broke."""
        return RanksError(f"lost another of the {self.world} processes ({str(error).splitlines()[0][:80]})")


ALONE = Ranks()


def device_backend() -> str:
    """The backend of processes that exchange tensors: gloo on the CPU, and the accelerator's own where there is one."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    own = None if found is None else distributed.get_default_backend_for_device(found)
    return "gloo" if found is None or own in ("gloo", None) else f"cpu:gloo,{found.type}:{own}"


def find_ranks(environment: Mapping[str, str] = os.environ) -> Ranks:
    """This process's place among those of torchrun, from RANK, WORLD_SIZE and LOCAL_RANK; ValueError for nonsense."""
    given = {name: environment.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if given["WORLD_SIZE"] is None or given["RANK"] is None:
        return ALONE
    try:
        rank, world, local = (int(given[name] or given["RANK"] or 0) for name in given)
    except ValueError:
        rank, world, local = -1, 0, 0
    if not 0 <= rank < world:
        told = ", ".join(f"{name}={value}" for name, value in given.items())
        raise ValueError(f"{told}: no place among processes; start with torchrun, or unset these variables")
    return Ranks(rank, world, local)


@contextmanager
def together(ranks: Ranks, backend: str = "gloo") -> Iterator[Ranks]:
    """The processes are connected in the block; SIGTERM raises Stopped there. RanksError where they cannot meet.

    backend: of torch's default group ("cpu:gloo,cuda:nccl"); `Ranks` itself always talks over gloo.
    Of the others than the first, what the first says too is silent, and errors of their own begin with their number.
    """
    if ranks.world == 1:
        yield ranks
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield replace(ranks, group=_meet(ranks, backend))
    except (RanksError, KeyboardInterrupt) as error:
        if ranks.first:
            raise
        raise SystemExit(getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 2)) from None
    except Exception as error:
        if ranks.first:
            raise
        raise RanksError(f"process {ranks.rank} of 0 to {ranks.world - 1}: {error}") from error
    finally:
        signal.signal(signal.SIGTERM, before)
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _meet(ranks: Ranks, backend: str) -> distributed.ProcessGroup | None:
    where = os.environ.get(RENDEZVOUS, "env://")
    try:
        distributed.init_process_group(backend, where, MEETING, world_size=ranks.world, rank=ranks.rank)
        return distributed.new_group(timeout=PATIENCE, backend="gloo")
    except (RuntimeError, ValueError) as error:
        raise RanksError(f"the {ranks.world} processes cannot meet: {str(error).splitlines()[0]}") from None


def _stop(number: int, frame: object) -> None:
    raise Stopped("asked to end")
