"""Lives of a toy run, one process each, most of which end badly. The tests of kills run this as a script.

lives.py JSON: a list of lives, lived one after the other by forks of this process (torch is imported once). A life has
`folder` and `settings` (of toy.make_job), and how it ends, if not by reaching its last step:
    after: seconds          SIGKILL from outside
    point, call             SIGKILL from inside, at the call-th time that the run comes to a point (POINTS)
    at, signals             signals to itself after a step
    slow: seconds           each file of a checkpoint takes so long
    limit: bytes, from, to  no file may grow beyond that after a step (a full disk), until another one
    after_step              ... once the checkpoint of this step is there
One line of JSON comes out for each: exit code (minus the signal's number), seconds, what was said on stderr.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
import torch._dynamo

from ditkit.training import checkpoint, fit, log

_spec = importlib.util.spec_from_file_location("training_toy", Path(__file__).parent / "toy.py")
toy = importlib.util.module_from_spec(_spec)
sys.modules["training_toy"] = toy
_spec.loader.exec_module(toy)

REMOVE = shutil.rmtree


def die() -> None:
    """As a power cut would have it."""
    os.kill(os.getpid(), signal.SIGKILL)


class At:
    """Dies at the `number`-th visit."""

    def __init__(self, number: int):
        self.left = number

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


def half_a_file(now: At) -> None:
    """Half of a tensor file is on the disk."""
    real = checkpoint._write_tensors

    def write(path, tensors):
        facts = real(path, tensors)
        if now():
            os.truncate(path, facts["bytes"] // 2)
            die()
        return facts

    checkpoint._write_tensors = write


def unsynced(now: At) -> None:
    """A file is written, its checksum is not taken yet."""
    _before(checkpoint, "sync", now)


def no_state(now: At) -> None:
    """All tensors are there, state.json is not."""
    _before(checkpoint, "write_text", now)


def before_rename(now: At) -> None:
    """A whole draft, or a checkpoint that is about to be removed, under its old name."""
    _before(Path, "rename", now)


def after_rename(now: At) -> None:
    """The new name is there, what comes after it has not happened."""
    real = Path.rename

    def rename(self, target):
        made = real(self, target)
        if now():
            die()
        return made

    Path.rename = rename


def half_removed(now: At) -> None:
    """Some files of a folder that is removed are gone."""

    def rmtree(path, ignore_errors=False):
        if now():
            next(iter(Path(path).iterdir())).unlink()
            die()
        REMOVE(path, ignore_errors=ignore_errors)

    shutil.rmtree = rmtree


def half_a_row(now: At) -> None:
    """A line of metrics.jsonl or log.txt is cut off."""
    real = log.append

    def append(path, lines):
        if now():
            with path.open("a") as file:
                file.write(lines[0][: len(lines[0]) // 2])
            die()
        real(path, lines)

    log.append = append


def _before(owner, name: str, now: At) -> None:
    real = getattr(owner, name)

    def visited(*args, **kwargs):
        if now():
            die()
        return real(*args, **kwargs)

    setattr(owner, name, visited)


POINTS = {
    f.__name__: f for f in (half_a_file, unsynced, no_state, before_rename, after_rename, half_removed, half_a_row)
}


def live(life: dict) -> None:
    """One life, in its own process."""
    if "point" in life:
        POINTS[life["point"]](At(life["call"]))
    if "slow" in life:
        real = checkpoint._write_tensors

        def slowly(path, tensors):
            time.sleep(life["slow"])
            return real(path, tensors)

        checkpoint._write_tensors = slowly

    def on_step(step: int, values: dict) -> None:
        if step == life.get("at"):
            for number in life["signals"]:
                os.kill(os.getpid(), number)
                time.sleep(0.01)
        if step == life.get("from"):
            while life.get("after_step", 0) not in [0, *checkpoint.list_steps(life["folder"])]:
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (life["limit"], resource.RLIM_INFINITY))
        if step == life.get("to"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    fit(toy.make_job(life["folder"], **life["settings"]), on_step=on_step)


def child(life: dict, stderr: Path) -> None:
    """Never returns."""
    code = 0
    try:
        os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        live(life)
    except KeyboardInterrupt as interrupt:
        code = interrupt.exit_code
        print(interrupt, file=sys.stderr)
    except BaseException as error:
        code = 1
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(code)  # daemon threads are not waited for, as at the end of any process


def main() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file that may not grow is an error, as a full disk is
    for life in json.loads(sys.argv[1]):
        stderr, began = Path(life["folder"]).with_suffix(".stderr"), time.monotonic()
        if not (pid := os.fork()):
            child(life, stderr)
        if "after" in life:
            time.sleep(life["after"])
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        said = stderr.read_text() if stderr.exists() else ""
        folder = Path(life["folder"]) / "checkpoints"
        drafts = sorted(p.name for p in folder.glob(".writing-*"))
        steps = checkpoint.list_steps(life["folder"])
        for step in steps:
            checkpoint.read_state(life["folder"], step)  # raises if one under its final name is not whole
        row = {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - began, "said": said}
        print(json.dumps(row | {"drafts": drafts, "steps": steps}), flush=True)


if __name__ == "__main__":
    main()
