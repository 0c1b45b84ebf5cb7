"""Runs and scores that claims share: what one has trained or scored, no other does again.

FOLDER/SHELF/runs/ARM          ordinary run folders
             scores/ARM.json   written after each score
             made/NAME         teachers, codecs, the classifier that judges
             NAME.lock         held by the process that works on it
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditkit.files import write_text
from ditkit.recipes.reproduce.claim import Arm, Question
from ditkit.training import list_steps

try:
    import fcntl
except ImportError:  # Windows: no locks, so one process at a time
    fcntl = None  # type: ignore[assignment]


def pool_of(q: Question, shelf: str) -> Pool:
    """The shelf of a question's pool."""
    return Pool(q.pool / shelf)


@dataclass(frozen=True)
class Pool:
    """One shelf of runs: those of the same images under the same budget."""

    folder: Path

    def run(self, arm: Arm) -> Path:
        """Where an arm is trained, or was."""
        return arm.run or self.folder / "runs" / arm.file

    def missing(self, arm: Arm) -> int:
        """Training steps that are not there yet."""
        return max(0, arm.recipe.training.steps - max(list_steps(self.run(arm)), default=0))

    def made(self, name: str) -> Path:
        """Where a teacher, codec or classifier of this name belongs."""
        return self.folder / "made" / name

    def read(self, arm: Arm) -> dict[str, Any]:
        """{"parts", "seconds" of each, "training" seconds, "failed"}: what is known of an arm so far."""
        file = self._scores(arm)
        empty: dict[str, Any] = {"parts": {}, "seconds": {}, "training": 0.0, "failed": ""}
        return empty | json.loads(file.read_text(encoding="utf-8")) if file.is_file() else empty

    def write(self, arm: Arm, found: dict[str, Any]) -> None:
        """Keep what is known of an arm."""
        write_text(self._scores(arm), json.dumps(found, indent=1) + "\n")

    def _scores(self, arm: Arm) -> Path:
        return self.folder / "scores" / f"{arm.file}.json"

    @contextmanager
    def hold(self, name: str, wait: bool = False) -> Iterator[bool]:
        """Whether `name` is ours inside the block; with wait, not before it is. A killed process lets go."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / f"{name}.lock", "a", encoding="utf-8") as file:
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True  # closing the file lets go
