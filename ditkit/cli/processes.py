"""`--processes N`: a verb that starts itself N times on this machine, as torchrun would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer

OPTION = "--processes"
PARENT = "DITKIT_PARENT"  # number of the process that started this one
BATCH = {"false": ("chunk", 64), "true": ("rows", 16)}  # by `exact`: images that are made together, its default
GRACE = 20.0  # seconds that the others have to end after one has died
LOOK = 0.1


def note(ctx, words: Sequence[str]) -> list[str]:
    """A verb's words without `--processes N`, which `launch` looks at. ValueError, one line, for no number."""
    count, rest = take_processes(words)
    ctx.meta[OPTION] = count, list(rest)
    return rest


def launch(ctx, images: int | None = None, patience: float = GRACE) -> None:
    """Where `--processes N` was noted with N above 1, the verb is run N times instead and ends (Exit).

    No more are started than there are batches to share. images: how many the verb makes where it is not told; None: it
    makes no images, and as many are started as were asked for. One that was started so ends when the process that
    started it is gone. patience: seconds that they have to end when they are asked to. ValueError, one line, under
    torchrun.
    """
    follow(int(os.environ.pop(PARENT, "0")), patience)
    count, words = ctx.meta[OPTION]
    if count > 1 and "WORLD_SIZE" in os.environ:
        raise ValueError(f"{OPTION} {count} under torchrun: its --nproc_per_node says how many; leave one of them out")
    if count > 1 and images is not None and (known := batches(ctx.params, images)) and known[0] < count:
        parts, told = known
        idle = f"{told}, so {count - parts} would be idle and {parts} of them start{'s' if parts == 1 else ''}"
        typer.echo(f"ditkit: {OPTION} {count}: {idle}; smaller batches are shared by more", err=True)
        count = parts
    if count > 1:
        raise typer.Exit(start([ctx.info_name, *words], count, patience))


def take_processes(words: Sequence[str]) -> tuple[int, list[str]]:
    """(the number behind `--processes`, 1 where it is not given; the other words). ValueError, one line."""
    rest, count = [], "1"
    left = iter(words)
    for word in left:
        name, equals, value = word.partition("=")
        if name == OPTION:
            count = value if equals else next(left, "")
        else:
            rest.append(word)
    if not count.isdecimal() or int(count) < 1:
        raise ValueError(f"{OPTION} {count!r}: give the number of processes, such as {OPTION} 2")
    return int(count), rest


def batches(params: Mapping, images: int) -> tuple[int, str] | None:
    """(number of batches, in words) of a verb's parameters; None where that is not known before the model is."""
    keys = dict(word.partition("=")[::2] for word in params.get("keys") or ())
    classes = str(params.get("classes") or keys.get("classes", "random"))
    named = images if classes in ("random", "balanced") else classes.count(",") + 1
    name, usual = BATCH.get(keys.get("exact", "false"), ("chunk", 64))
    n, size = str(params.get("n") or keys.get("n", named)), str(keys.get(name, usual))
    if keys.keys() & {"prompt", "prompts", "geneval"} or not (n.isdecimal() and size.isdecimal() and int(size)):
        return None
    parts = max(1, -(-int(n) // int(size)))
    return parts, f"{int(n):,} images are {parts:,} batch{'es' if parts > 1 else ''} of {name}={size}"


def follow(parent: int, patience: float = GRACE) -> None:
    """End this process soon after `parent` (0: nobody) is gone: a launcher that was killed cannot say so itself."""
    if parent:
        threading.Thread(target=_outlive, args=(parent, patience), daemon=True).start()


def _outlive(parent: int, patience: float) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(patience)
    os._exit(143)


def start(words: Sequence[str], count: int, patience: float = GRACE) -> int:
    """Run `ditkit WORDS` in `count` processes that share the work; returns their exit code.

    One that dies ends the others. A process that was killed says nothing itself, so it is told here. Ctrl-C and SIGTERM
    are passed on once, and there are `patience` seconds to end; the next Ctrl-C ends them at once.
    """
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    with tempfile.TemporaryDirectory() as folder:
        meeting = {"DITKIT_RENDEZVOUS": Path(folder, "meeting").as_uri(), "OMP_NUM_THREADS": threads}
        shared = os.environ | meeting | {"WORLD_SIZE": str(count), PARENT: str(os.getpid())}
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "ditkit", *words],
                env=shared | {"RANK": str(i), "LOCAL_RANK": str(i)},
                start_new_session=True,  # Ctrl-C in a terminal reaches them through this process only
            )
            for i in range(count)
        ]
        before = signal.signal(signal.SIGTERM, _stop)
        try:
            return _watch(running)
        except KeyboardInterrupt as interrupt:
            if interrupt.args:
                return _end(running, 143, signal.SIGTERM, patience)
            return _end(running, 130, signal.SIGINT, patience)
        finally:
            signal.signal(signal.SIGTERM, before)
            for process in running:
                process.kill()


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt("asked to end")


def _watch(running: Sequence[subprocess.Popen]) -> int:
    """Wait for all; the first that fails ends the others."""
    while any(process.poll() is None for process in running):
        failed = [(i, code) for i, p in enumerate(running) if (code := p.poll())]
        if failed:
            number, code = failed[0]
            if code < 0:
                name = signal.Signals(-code).name
                typer.echo(f"ditkit: process {number} of 0 to {len(running) - 1} was killed ({name})", err=True)
            return _end(running, code if code > 0 else 128 - code)
        time.sleep(LOOK)
    return max(128 - p.returncode if p.returncode < 0 else p.returncode for p in running)


def _end(running: Sequence[subprocess.Popen], code: int, number: int = signal.SIGTERM, patience: float = GRACE) -> int:
    """Ask those that still run to end, and wait for them a while."""
    deadline = time.monotonic() + patience
    for process in running:
        if process.poll() is None:
            process.send_signal(number)
    while any(process.poll() is None for process in running) and time.monotonic() < deadline:
        time.sleep(LOOK)
    return code
