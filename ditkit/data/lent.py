"""Memory that worker processes share with their parent, so that large arrays need not travel through a pipe."""

from __future__ import annotations

import mmap
import multiprocessing
import pickle
from typing import Any

from torch.utils.data import Dataset, get_worker_info

SLOTS = 4  # a worker has two batches under way and one that is being taken out, see `Lent`


class Lent(Dataset):
    """A reader whose results come back through shared memory: reader[step] == lent.take(lent[step]), arrays writable.

    room: bytes for the arrays of one result; one with more of them travels through the pipe as it would without this.
    A result is pickled with its arrays' buffers left out (protocol 5, PEP 574), which are copied into one of the
    worker's SLOTS; the parent copies them out when it takes the result. DataLoader gives a worker its next step when
    it hands out one of its results, of which two are under way: before a slot is written again, what stood in it has
    been taken. The memory is anonymous, so that /dev/shm, which is small in containers, is not needed; it is shared by
    fork alone: with another way of starting processes all travels through the pipe.
    """

    def __init__(self, reader: Dataset, workers: int, room: int):
        self.reader, self.room, self.turn = reader, room, 0
        usable = room > 0 and multiprocessing.get_start_method() == "fork"
        self.slots = [[mmap.mmap(-1, room) for _ in range(SLOTS)] for _ in range(workers)] if usable else []

    def __getitem__(self, step: int) -> Any:
        result = self.reader[step]
        worker = get_worker_info()
        if not self.slots or worker is None:
            return result
        buffers: list[pickle.PickleBuffer] = []
        rest = pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
        views = [buffer.raw() for buffer in buffers]
        sizes = [view.nbytes for view in views]
        if not sizes or sum(sizes) > self.room:
            return result
        slot, self.turn = self.turn, (self.turn + 1) % SLOTS
        memory, place = memoryview(self.slots[worker.id][slot]), 0
        for view, size in zip(views, sizes, strict=True):
            memory[place : place + size] = view
            place += size
        return _Note(worker.id, slot, rest, sizes)

    def take(self, result: Any) -> Any:
        """The result that a worker handed over; call it at once, in the order of the steps."""
        if not isinstance(result, _Note):
            return result
        memory, place, parts = memoryview(self.slots[result.worker][result.slot]), 0, []
        for size in result.sizes:
            parts.append(bytearray(memory[place : place + size]))
            place += size
        return pickle.loads(result.rest, buffers=parts)


class _Note:
    """Where a result lies: which worker's slot, what is no array, and the arrays' bytes."""

    def __init__(self, worker: int, slot: int, rest: bytes, sizes: list[int]):
        self.worker, self.slot, self.rest, self.sizes = worker, slot, rest, sizes
