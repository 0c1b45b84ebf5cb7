"""A tiny codec training as a script, for tests that kill it: own_codec.py FOLDER SETTINGS [SIGNAL AT_STEP]."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch

from ditkit.data import Digits, Subset
from ditkit.training.codec import train_codec
from ditkit.training.codec_settings import CodecTraining
from ditkit.training.guard import Interrupted

TINY = {"channels": 2, "factor": 2, "width": 4, "attention": False, "batch": 8, "warmup": 2, "log_every": 2}


def settings(**more) -> CodecTraining:
    """The smallest useful settings."""
    return CodecTraining(**(TINY | more))


def images(n: int = 64) -> Subset:
    """The first n digits in colour."""
    return Subset(Digits("all", (8, 8), 3), np.arange(n))


def main(folder: Path, more: dict, number: int = 0, at: int = 0) -> None:
    """Train; at step `at` send this process the signal `number`."""
    torch.set_num_threads(1)

    def progress(step: int, values: dict[str, float]) -> None:
        if step == at:
            os.kill(os.getpid(), number)

    try:
        train_codec(images(), settings(**more), folder, progress=progress)
    except Interrupted as stop:
        sys.exit(stop.exit_code)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), *map(int, sys.argv[3:]))
