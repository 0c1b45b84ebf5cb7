"""The writer of checkpoints in parts: every process writes its own, the first one gives them all their final name."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import distributed

from ditkit.ranks import PATIENCE, Ranks
from ditkit.training import checkpoint
from ditkit.training.files import SaveError
from ditkit.training.saving import Saved, Task, staged
from ditkit.training.settings import TrainSettings
from ditkit.training.shards import begin_parts, parts_of, reason
from ditkit.training.state import State

T = TypeVar("T")


class Sharded(Task):
    """A saving.Writer. Tensors are copied when `save` is called, threads write and exchange what must be known.

    A checkpoint is complete or absent: parts go to a draft folder, every process reads its own again for its checksum,
    then the first one writes state.json and renames the folder. What fails in one process fails in all.
    """

    def __init__(self, settings: TrainSettings, ranks: Ranks):
        super().__init__()
        self.settings, self.ranks = settings, ranks
        self._group = distributed.new_group(backend="gloo", timeout=PATIENCE)  # the threads' own

    def save(self, state: State) -> None:
        """Copy this process's part and begin to write it."""
        folder, step, numbers, began = state.job.folder, state.step, state.numbers(), time.perf_counter()
        draft = self._first(lambda: checkpoint.begin(folder, step), folder, step)
        writing = begin_parts(draft, state.tensors(), self._group, partial(self._alike, step))

        def finish() -> Saved:
            doubt = self._finish(writing, folder, draft, step, numbers)
            return Saved(step, time.perf_counter() - began, self.settings.save_async, doubt)

        self.begin(step, finish)

    def close(self) -> None:
        """Nothing can be finished without the others: a draft stays, which the next run removes."""

    def _finish(self, writing: Future[Any], folder: Path, draft: Path, step: int, numbers: Mapping) -> str | None:
        """In the thread: checksums of this process's part, then one rename for all."""
        problem, listed = None, {}
        try:
            writing.result()
            listed = {part.name: checkpoint.facts(part) for part in parts_of(draft, self.ranks.rank)}
        except BaseException as error:  # torch's CheckpointException is no Exception
            problem = reason(error)
        told = self._all((problem, listed))
        problems = [text for text, _ in told if text]
        files = {name: facts for _, own in told for name, facts in own.items()}

        def commit() -> str | None:
            if problems:
                raise OSError(problems[0])
            checkpoint.commit(folder, step, files, numbers)
            return checkpoint.thin(folder, self.settings.keep_last, self.settings.keep_every)

        return self._first(commit, folder, step)

    @contextmanager
    def _alike(self, step: int) -> Iterator[None]:
        """What keeps one process from copying its part is SaveError in all, before any of them begins to write."""
        problem = None
        try:
            with staged(step):
                yield
        except SaveError as error:
            problem = error
        if found := [error for error in self._all(problem) if error is not None]:
            raise problem or found[0]

    def _all(self, mine: T) -> list[T]:
        """What each process gives."""
        given: list[Any] = [None] * self.ranks.world
        distributed.all_gather_object(given, mine, group=self._group)
        return given

    def _first(self, what: Callable[[], T], folder: Path, step: int) -> T:
        """What the first process makes of it, in all of them; its SaveError too."""
        made: Any = None
        if self.ranks.first:
            try:
                with checkpoint.unwritten(folder, step):
                    made = what()
            except SaveError as error:
                made = error
        made = self._all(made)[0]
        if isinstance(made, SaveError):
            raise made
        return made
