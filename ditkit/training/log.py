"""metrics.jsonl, log.txt, and the sums and clocks behind a row."""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ditkit.files import write_text
from ditkit.training.files import SaveError
from ditkit.training.readings import Row

STEP = ("data", "model", "optimizer")  # the parts of a step


@dataclass
class Meter:
    """Means since the last row. Its sums are part of a checkpoint, so that a resumed curve equals an unbroken one."""

    steps: int = 0
    sums: dict[str, list] = field(default_factory=dict)  # name -> [sum, count]

    def add(self, values: dict[str, float]) -> None:
        """One step's values."""
        self.steps += 1
        for name, value in values.items():
            total = self.sums.setdefault(name, [0.0, 0])
            total[0] += value
            total[1] += 1

    def numbers(self) -> dict:
        """What a checkpoint keeps of it; a copy, since the sums go on while it is written."""
        return {"steps": self.steps, "sums": {name: list(pair) for name, pair in self.sums.items()}}

    def take(self) -> Row:
        """The mean of each name over the steps that had it, and empty the meter."""
        means: Row = {name: total / count for name, (total, count) in self.sums.items()}
        self.steps, self.sums = 0, {}
        return means


class Clock:
    """Splits time: lap("data") books what has passed since the last lap under that name.

    On an accelerator laps are marked on its own time line and read when a row is due, so that nobody waits in between:
    a lap then holds the work that it started.
    """

    def __init__(self, device: torch.device):
        self.device, self.steps = device, 0
        self.laps: dict[str, float] = {}
        self._last, self._booked = time.perf_counter(), 0.0
        self._marks = [] if device.type == "cpu" else [("", self._mark())]

    def _mark(self) -> torch.Event:
        mark = torch.Event(self.device, enable_timing=True)
        mark.record()
        return mark

    def lap(self, name: str) -> None:
        """The end of a lap."""
        if self.device.type != "cpu":
            self._marks.append((name, self._mark()))
            return
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now

    def step(self, name: str) -> None:
        """The last lap of a step."""
        self.lap(name)
        self.steps += 1

    def read(self) -> dict[str, float]:
        """Seconds of all laps so far; the device is waited for."""
        if self._marks:
            self._marks[-1][1].synchronize()
            for (_, before), (name, after) in itertools.pairwise(self._marks):
                self.laps[name] = self.laps.get(name, 0.0) + before.elapsed_time(after) / 1000
            del self._marks[:-1]
        return self.laps

    def spent(self) -> float:
        """Seconds of steps since this was last asked; the device is waited for."""
        laps = self.read()
        total = sum(laps.get(name, 0.0) for name in STEP)
        seconds, self._booked = total - self._booked, total
        return seconds

    def take(self, batch: int) -> Row:
        """Seconds per step for data, model (forward and backward) and optimizer, and images per second over these."""
        laps, steps = self.read(), max(self.steps, 1)
        row: Row = {f"seconds_{name}": laps.get(name, 0.0) / steps for name in STEP}
        row["images_per_s"] = batch / max(sum(row.values()), 1e-9)
        self.laps, self.steps, self._booked = {}, 0, 0.0
        return row


class Log:
    """Writes a run's two files and tells a listener. Only the process with `writes` touches the disk.

    What cannot be written, as on a full disk, is SaveError; with `patient` it is told to the listener and kept, and
    written before the next line.
    """

    def __init__(
        self,
        folder: Path,
        on_log: Callable[[Row], None] | None = None,
        on_message: Callable[[str], None] | None = None,
        *,
        writes: bool = True,
        patient: bool = False,
    ):
        self.metrics, self.text = folder / "metrics.jsonl", folder / "log.txt"
        self.on_log, self.on_message, self.writes, self.patient = on_log, on_message, writes, patient
        self.on_rewind: Callable[[int], None] | None = None  # who was told the rows
        self._kept: dict[Path, list[str]] = {}

    def row(self, row: Row) -> None:
        """Append one line of numbers; a value that is not finite is left out (JSON has none)."""
        clean = {k: v for k, v in row.items() if v == v and abs(v) != float("inf")}
        if self.writes:
            self._append(self.metrics, json.dumps(clean, allow_nan=False))
        if self.on_log:
            self.on_log(clean)

    def say(self, text: str) -> None:
        """Append one dated line of text."""
        if self.writes:
            self._append(self.text, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")
        if self.on_message:
            self.on_message(text)

    def rewind(self, step: int) -> int:
        """Drop the rows after `step` and lines that a kill or a dying disk left unreadable; returns how many went."""
        unwritten = self._kept.get(self.metrics, [])
        unwritten[:] = [line for line in unwritten if json.loads(line)["step"] <= step]
        if self.on_rewind:
            self.on_rewind(step)
        if not self.writes or not self.metrics.exists():
            return 0
        lines = self.metrics.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if (row := read_row(line)) and row["step"] <= step]
        if len(kept) < len(lines):
            write_text(self.metrics, "".join(kept))
        return len(lines) - len(kept)

    def flush(self) -> None:
        """Write what was kept; SaveError if that still cannot be."""
        self.patient = False
        for path in list(self._kept):
            self._append(path)

    def _append(self, path: Path, *lines: str) -> None:
        kept = [*self._kept.pop(path, []), *lines]
        try:
            append(path, kept)
        except OSError as error:
            told = f"{path} could not be written: {error.strerror}"
            if not self.patient:
                raise SaveError(told) from None
            self._kept[path] = kept
            if len(kept) == 1 and self.on_message:
                self.on_message(f"{told}; training goes on, its lines are kept and written when that is possible")


def append(path: Path, lines: Sequence[str]) -> None:
    """Append whole lines to a file, forced to the disk. OSError, and the file is as before, if they do not fit."""
    if not lines:
        return
    with path.open("ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        content = memoryview("".join(f"{line}\n" for line in lines).encode())
        try:
            while content:  # a disk that fills up takes a part first
                content = content[file.write(content) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


def read_metrics(folder: str | os.PathLike) -> list[Row]:
    """The rows of a run's metrics.jsonl, oldest first; lines cut off by a kill, or else damaged, are left out."""
    path = Path(folder) / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []
    return [row for line in lines if (row := read_row(line))]


def read_row(line: str) -> Row | None:
    """One line of metrics.jsonl; None if it is not whole."""
    try:
        row = json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) and "step" in row else None


def peak_memory(device: torch.device) -> float:
    """GiB: the most that tensors held on the GPU, or the process in memory (0 where the system cannot say)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource  # absent on Windows
    except ImportError:
        return 0.0
    unit = 2**30 if sys.platform == "darwin" else 2**20  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
