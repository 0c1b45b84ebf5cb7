"""Progress bars with remaining time, on stderr, and plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_FROM = 2.0  # seconds that a stage takes before it is worth a line there
PLAIN_EVERY = 15.0  # seconds between lines where bars cannot be drawn


class Bars:
    """Call it (stage, done, total, note): a bar per stage on a terminal, else a line now and then."""

    def __init__(self, progress: Progress | None, console: Console):
        self.progress, self.console = progress, console
        self.tasks: dict[str, object] = {}
        self.started: dict[str, float] = {}
        self.said: dict[str, float] = {}

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Stage `stage` has finished `done` of `total`."""
        if self.progress is None:
            self._line(stage, done, total, note)
            return
        if stage not in self.tasks:
            self.tasks[stage] = self.progress.add_task(stage, total=total, note=note)
        elif done == 0:  # a stage that begins again
            self.progress.reset(self.tasks[stage])  # type: ignore[arg-type]
        self.progress.update(self.tasks[stage], completed=done, total=total, note=note)  # type: ignore[arg-type]

    def say(self, text: str) -> None:
        """A line above the bars."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _line(self, stage: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if done == 0:  # a stage that begins again
            self.started[stage] = now
            self.said.pop(stage, None)
        start = self.started.setdefault(stage, now)
        if now - start < PLAIN_FROM or (done < total and now - self.said.get(stage, start) < PLAIN_EVERY):
            return
        self.said[stage] = now
        left = (now - start) / done * (total - done) if done else 0.0
        tail = f", about {left:.0f} s left" if 0 < done < total else f", {now - start:.1f} s" if done else ""
        self.say(f"{stage}: {done}/{total}{tail}{'  ' + note if note else ''}")


@contextmanager
def bars() -> Iterator[Bars]:
    """Bars while the block runs."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Bars(None, console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=console, transient=False) as progress:
        yield Bars(progress, console)
