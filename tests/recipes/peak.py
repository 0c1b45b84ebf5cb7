"""Run as a script: what one training really takes. Prints the peak of the process's memory over that of a tiny run."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path

import torch

from ditkit.recipes import recipe
from ditkit.recipes.benches.random_job import random_job
from ditkit.training.loop import forward_backward, update
from ditkit.training.readings import Reading
from ditkit.training.state import State


def peak() -> int:
    """Bytes of memory that this process has held at most.

    Of Linux's own account: getrusage begins with what the process held that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def steps(which, count: int = 2) -> None:
    """A few steps of a training on random data."""
    with tempfile.TemporaryDirectory() as folder:
        job = random_job(which, Path(folder), torch.device("cpu"))
        state, batches = State.fresh(job), job.batches(0)
        for _ in range(count):
            totals = forward_backward(state, next(batches))
            update(state, state.team.agree(Reading.of(totals)))


if __name__ == "__main__":
    name, changes = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(1)
    tiny = {"model.depth": 2, "model.width": 32, "model.heads": 2, "training.batch": 2, "align.depth": 1}
    chosen = recipe(name).with_(changes)
    steps(chosen.with_({key: value for key, value in tiny.items() if chosen.align or not key.startswith("align")}))
    before = peak()
    steps(chosen)
    print(peak() - before)
