"""Rows of a cache's shards: read straight from their place into a batch, and checked as they are read."""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ditkit.data.cache_format import (
    DTYPES,
    MIRRORED,
    Plan,
    Slot,
    image_groups,
    read_slots,
    shard_name,
    text_tensors,
)
from ditkit.data.cache_numbers import restored
from ditkit.protocols import Captions, Condition, Features, Part

OPEN = 64  # files that a process keeps open


class Damaged(Exception):
    """A row of a shard cannot be trusted; says why."""


class Words(NamedTuple):
    """What is said of an image. prompts: text -> its row among the shard's embeddings."""

    key: str
    path: str
    captions: Captions
    prompts: dict[str, int]


def say_words(words: Words) -> bytes:
    """A line of JSON; texts and paths of any characters, also those that are no Unicode."""
    said = {"key": words.key, "path": words.path}
    captions = {"original": list(words.captions.original), "synthetic": list(words.captions.synthetic)}
    prompts = {"prompts": words.prompts} if words.prompts else {}
    return (json.dumps({**said, **captions, **prompts}) + "\n").encode("ascii")


def read_words(line: bytes) -> Words:
    """What `say_words` said; ValueError for anything else."""
    row = json.loads(line)
    captions = Captions(tuple(row["original"]), tuple(row["synthetic"]))
    return Words(row["key"], row["path"], captions, row.get("prompts", {}))


class Shards:
    """The files of a cache's shards, opened when they are needed; threads may share it, pickles bring no open files."""

    def __init__(self, folder: Path, plan: Plan):
        self.folder, self.plan = folder, plan
        self._slots: dict[int, dict[str, Slot]] = {}
        self._files: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict:
        return {"folder": self.folder, "plan": self.plan}

    def __setstate__(self, state: dict) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def into(self, buffer: memoryview, shard: int, name: str, row: int) -> None:
        """Fill `buffer` with row `row` of a tensor. Damaged where it cannot be read."""
        slot, file = self._open(shard, name)
        if slot.row != len(buffer) or not 0 <= row < slot.shape[0]:
            raise Damaged(f"tensor {name!r} is not what the manifest says")
        self._fill(file, buffer, slot.offset + row * slot.row)

    def numbers(self, shard: int, name: str, row: int, count: int = 1) -> list[int]:
        """`count` int64 of a table, from its row on (a row of several: all of them)."""
        slot, file = self._open(shard, name)
        if slot.dtype != "I64" or row + count > slot.shape[0]:
            raise Damaged(f"table {name!r} is not what it should be")
        data = bytearray(count * slot.row)
        self._fill(file, memoryview(data), slot.offset + row * slot.row)
        return torch.frombuffer(data, dtype=torch.int64).tolist()

    def words(self, shard: int, row: int) -> Words:
        """What is said of an image, checked. Damaged where it cannot be trusted."""
        start, stop = self.numbers(shard, "words.offsets", row, 2)
        slot, file = self._open(shard, "words")
        if not 0 <= start <= stop <= slot.shape[0]:
            raise Damaged("its table of texts is damaged")
        data = bytearray(stop - start)
        self._fill(file, memoryview(data), slot.offset + start)
        if zlib.crc32(data) != self.numbers(shard, "crc", row)[-1]:
            raise Damaged("the checksum of a text is wrong")
        return read_words(bytes(data))

    def _fill(self, file: Any, buffer: memoryview, offset: int) -> None:
        try:
            while buffer:
                done = os.preadv(file.fileno(), [buffer], offset)
                if not done:
                    raise Damaged("it is cut short")
                buffer, offset = buffer[done:], offset + done
        except OSError as error:
            raise Damaged(error.strerror or str(error)) from None

    def _open(self, shard: int, name: str) -> tuple[Slot, Any]:
        """(where a tensor stands, the open file); who holds the file may read it though others close theirs."""
        with self._lock:
            file = self._files.get(shard)
            if file is None:
                file = self._files[shard] = self._opened(shard)
                if len(self._files) > OPEN:
                    self._files.popitem(last=False)  # closes when its last reader lets go
            else:
                self._files.move_to_end(shard)
            slots = self._slots[shard]
        if name not in slots:
            raise Damaged(f"it has no tensor {name!r}")
        return slots[name], file

    def _opened(self, shard: int) -> Any:
        try:
            file = open(self.folder / shard_name(shard), "rb", buffering=0)  # noqa: SIM115  (kept open)
            if shard not in self._slots:
                self._slots[shard] = read_slots(file.fileno(), os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise Damaged(error.strerror or str(error)) from None
        except ValueError as error:
            raise Damaged(str(error)) from None
        return file


class Stack:
    """Room for the rows of a batch, and what they become: moments, features, embeddings.

    teachers: the numbers of those whose features are wanted, in the order wanted. pin: page-locked memory, from which
    an accelerator copies while the host goes on.
    """

    def __init__(self, plan: Plan, rows: int, *, teachers: Sequence[int] = (), texts: bool = False, pin: bool = False):
        self.plan, self.rows, self.teachers = plan, rows, tuple(teachers)
        all_groups = image_groups(plan, rows)
        self.groups = {0: all_groups[0], **{1 + i: all_groups[1 + i] for i in self.teachers}}
        self.texts = text_tensors(plan, rows) if texts else {}
        self.told = {name: told for group in (*self.groups.values(), self.texts) for name, told in group.items()}
        self.room = {
            name: torch.empty(rows, prod(shape[1:]) * DTYPES[dtype].itemsize, dtype=torch.uint8, pin_memory=pin)
            for name, (dtype, shape) in self.told.items()
        }
        self.views = {name: room.numpy() for name, room in self.room.items()}

    def put(self, row: int, shards: Shards, shard: int, place: int, mirrored: bool) -> None:
        """Copy an image's row `place` of a shard into row `row`. Damaged where a checksum is wrong."""
        prefix, wanted = (MIRRORED if mirrored else ""), shards.numbers(shard, "crc", place)
        for number, group in self.groups.items():
            crc = 0
            for name in group:
                shards.into(self.views[name][row].data, shard, prefix + name, place)
                crc = zlib.crc32(self.views[name][row].data, crc)
            if crc != wanted[self.plan.column(prefix, number)]:
                raise Damaged(f"the checksum of row {place} is wrong")

    def put_text(self, row: int, shards: Shards, shard: int, place: int) -> None:
        """Copy the embedding `place` of a shard's prompts into row `row`; checked as `put`."""
        crc = 0
        for name in self.texts:
            shards.into(self.views[name][row].data, shard, name, place)
            crc = zlib.crc32(self.views[name][row].data, crc)
        if crc != shards.numbers(shard, "text.crc", place)[0]:
            raise Damaged(f"the checksum of prompt {place} is wrong")

    def put_empty(self, row: int, empty: dict[str, Tensor]) -> None:
        """The empty prompt's embedding into row `row`."""
        for name in self.texts:
            self.room[name][row] = empty[name][0].contiguous().view(-1).view(torch.uint8)

    def tensor(self, name: str) -> Tensor:
        """A filled tensor in its own dtype and shape."""
        dtype, shape = self.told[name]
        return self.room[name].view(DTYPES[dtype]).view(shape)

    @property
    def moments(self) -> Tensor:
        """(rows, C, h, w) in the cache's dtype."""
        return self.tensor("moments")

    @property
    def features(self) -> tuple[Features, ...]:
        """One a wanted teacher; of int8 the tokens are multiplied by their scales and rounded to half precision."""
        found = []
        for i in self.teachers:
            tokens, pooled = self.tensor(f"features.{i}"), self.tensor(f"features.{i}.pooled")
            if tokens.dtype == torch.int8:
                tokens = restored(tokens, self.tensor(f"features.{i}.scale")).half()
            found.append(Features(tokens, pooled, self.plan.teachers[i].grid))
        return tuple(found)

    @property
    def cond(self) -> Condition | None:
        """The embeddings, in the cache's dtype; None without."""
        if not self.texts or self.plan.text is None:
            return None
        pooled = self.tensor("text.pooled") if "text.pooled" in self.texts else None
        mask = self.tensor("text.mask").bool() if "text.mask" in self.texts else None
        return Condition(text=self.tensor("text"), mask=mask, pooled=pooled, parts=parts_of(self.plan))


def parts_of(plan: Plan) -> tuple[Part, ...]:
    """The parts of the encoder's conditions."""
    return tuple(Part(*part) for part in plan.text.parts) if plan.text is not None else ()
