"""Rows of metrics for those who watch many runs: TensorBoard, Weights & Biases, trackio; beside metrics.jsonl.

    RUN/tensorboard/    what `tensorboard --logdir` reads
        wandb/          what `wandb sync` sends, where WANDB_MODE=offline
        trackers.json   by which name the run goes there, so that a resumed run appends to itself

trackio keeps its data where it always does (TRACKIO_DIR). Only the first process tells anything.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from ditkit.files import write_text
from ditkit.training.log import Log, Row
from ditkit.training.state import State

PROJECT = "ditkit"
NAMES = "trackers.json"
Say = Callable[[str], None]


class Watched(NamedTuple):
    """The run as trackers see it. step: rows of later steps are about to come; settings: what it was asked for."""

    folder: Path
    key: str
    step: int
    settings: dict

    @property
    def name(self) -> str:
        """What people read."""
        return self.folder.resolve().name


class Tracker(Protocol):
    """Someone who is told."""

    def row(self, step: int, values: Row) -> None: ...
    def picture(self, name: str, step: int, path: Path) -> None: ...
    def rewind(self, step: int) -> None: ...
    def close(self) -> None: ...


class Forward:
    """For those that can take nothing back: after a rollback, steps that were told are not told again.

    So steps never fall; of these few the rows in metrics.jsonl are those that count.
    """

    def __init__(self) -> None:
        self.last = self.told = 0

    def new(self, step: int) -> bool:
        """Whether a row of this step is to be told; it then is."""
        self.last = max(self.last, step)
        return step > self.told

    def rewind(self) -> None:
        """The run has gone back."""
        self.told = self.last


class TensorBoard:
    """Event files; what was told of later steps before a resume is hidden."""

    def __init__(self, run: Watched):
        self.folder = str(run.folder / "tensorboard")
        self.writer = self._open(run.step)

    def _open(self, step: int) -> Any:
        tensorboard = importlib.import_module("torch.utils.tensorboard")
        return tensorboard.SummaryWriter(self.folder, purge_step=step + 1 if step else None)

    def row(self, step: int, values: Row) -> None:
        """A scalar each."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def picture(self, name: str, step: int, path: Path) -> None:
        """An image of any size."""
        with Image.open(path) as image:
            self.writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def rewind(self, step: int) -> None:
        """What was told of later steps is hidden."""
        self.writer.close()
        self.writer = self._open(step)

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


class Wandb:
    """A run of the project "ditkit"; its own `step` is the axis, since a resumed run goes back."""

    def __init__(self, run: Watched):
        self.wandb = importlib.import_module("wandb")
        while any((run.folder / "wandb").glob(time.strftime(f"*-%Y%m%d_%H%M%S-{run.key}"))):
            time.sleep(0.1)  # it names its folders by the second, and would write into the last one again
        self.run = self.wandb.init(
            project=PROJECT, id=run.key, name=run.name, dir=str(run.folder), config=run.settings, resume="allow",
            settings=self.wandb.Settings(console="off", silent=True),
        )  # fmt: skip
        self.run.define_metric("*", step_metric="step")
        self.rows = Forward()

    def row(self, step: int, values: Row) -> None:
        """All together."""
        if self.rows.new(step):
            self.run.log({"step": step, **values})

    def picture(self, name: str, step: int, path: Path) -> None:
        """As a file of the run."""
        self.run.log({"step": step, name: self.wandb.Image(str(path))})

    def rewind(self, step: int) -> None:
        """What was told stays."""
        self.rows.rewind()

    def close(self) -> None:
        """Wait until what was told is on its way."""
        self.run.finish()


class Trackio:
    """A run of the project "ditkit" on this machine."""

    def __init__(self, run: Watched):
        self.trackio = importlib.import_module("trackio")
        with contextlib.redirect_stdout(io.StringIO()):  # what it greets with
            self.run = self.trackio.init(
                project=PROJECT, name=f"{run.name}-{run.key}", config=run.settings, resume="allow", embed=False
            )
        self.rows = Forward()

    def row(self, step: int, values: Row) -> None:
        """All together."""
        if self.rows.new(step):
            self.run.log(dict(values), step=step)

    def picture(self, name: str, step: int, path: Path) -> None:
        """A copy of the file."""
        self.run.log({name: self.trackio.Image(str(path))}, step=step)

    def rewind(self, step: int) -> None:
        """What was told stays."""
        self.rows.rewind()

    def close(self) -> None:
        """Wait until what was told is stored."""
        with contextlib.redirect_stdout(io.StringIO()):
            self.trackio.finish()


EXTRAS = {"tensorboard": "track", "wandb": "track", "trackio": "trackio"}  # trackio needs an older pillow
KINDS: dict[str, Callable[[Watched], Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}


class Trackers:
    """Those that are told about one run. One that fails is named once and told nothing more; training goes on."""

    def __init__(self, made: dict[str, Tracker], say: Say):
        self.made, self.say = made, say

    def row(self, row: Row) -> None:
        """A row of metrics.jsonl."""
        values = {name: value for name, value in row.items() if name != "step"}
        self._all(lambda tracker: tracker.row(int(row["step"]), values))

    def picture(self, name: str, step: int, path: Path) -> None:
        """A PNG file."""
        self._all(lambda tracker: tracker.picture(name, step, path))

    def rewind(self, step: int) -> None:
        """The run was rolled back: rows after `step` count no more, and others follow."""
        self._all(lambda tracker: tracker.rewind(step))

    def close(self) -> None:
        """Nothing more will come."""
        self._all(lambda tracker: tracker.close())

    def _all(self, what: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.made.items()):
            try:
                what(tracker)
            except Exception as error:  # of a foreign package: no reason to lose a training
                del self.made[name]
                self.say(f"warning: {name} failed and is told nothing more; training goes on: {first_line(error)}")


def check_trackers(names: Sequence[str]) -> None:
    """ValueError, one line, if a package is missing."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"training.trackers: {', '.join(missing)} is not installed: pip install "
            f"'ditkit[{EXTRAS[missing[0]]}]' (or {missing[0]} alone), or leave it out"
        )


def open_trackers(names: Sequence[str], folder: Path, step: int, say: Say) -> Trackers:
    """Begin to tell, or go on. ValueError, one line, where one cannot begin: that is before training starts."""
    check_trackers(names)
    made: dict[str, Tracker] = {}
    run = Watched(folder, _key(folder), step, _asked(folder)) if names else None
    for name in names:
        assert run is not None
        try:
            made[name] = KINDS[name](run)
        except Exception as error:
            Trackers(made, say).close()
            offline = "; WANDB_MODE=offline needs no account" if name == "wandb" else ""
            raise ValueError(f"training.trackers: {name} cannot begin: {first_line(error)}{offline}") from None
    return Trackers(made, say)


@contextlib.contextmanager
def tracked(state: State, log: Log) -> Iterator[None]:
    """Inside the block every row of `log` is told to the trackers that the settings name."""
    names, ranks = state.job.settings.trackers, state.job.ranks.connected
    with ranks.agreed():
        check_trackers(names)
        trackers = open_trackers(names if state.job.rank == 0 else (), state.job.folder, state.step, log.say)
    before = log.on_log

    def tell(row: Row) -> None:
        trackers.row(row)
        if before:
            before(row)

    log.on_log, log.on_rewind = tell, trackers.rewind
    try:
        yield
    finally:
        log.on_log, log.on_rewind = before, None
        trackers.close()


def show_picture(names: Sequence[str], folder: Path, path: Path, step: int) -> None:
    """Tell the trackers of a run that has ended about a picture of its samples; nothing that fails is an error."""
    say = Log(folder).say
    try:
        trackers = open_trackers(names, folder, step, say)
    except ValueError as error:
        return say(f"warning: {error}")
    trackers.picture("samples", step, path)
    trackers.close()


def first_line(error: Exception) -> str:
    """What an error says, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _key(folder: Path) -> str:
    """By which trackers know this run; made when it is first asked for."""
    file = folder / NAMES
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["key"])
    except (OSError, ValueError, KeyError, TypeError):
        key = secrets.token_hex(4)
        write_text(file, json.dumps({"key": key}) + "\n")
        return key


def _asked(folder: Path) -> dict[str, Any]:
    """The recipe of the run, where it has one."""
    file = folder / "recipe.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
