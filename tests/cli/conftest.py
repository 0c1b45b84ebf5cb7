"""Folders of made-up pictures, and the command line in this process or its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ditkit.cli import app


@pytest.fixture(scope="session")
def pictures():
    """pictures(folder, classes=("cat", "dog"), n=10, size=(24, 40)) -> folder; classes ("",) makes a flat one."""

    def make(folder: Path, classes=("cat", "dog"), n: int = 10, size=(24, 40)) -> Path:
        rng = np.random.default_rng(0)
        for index, name in enumerate(classes):
            (folder / name).mkdir(parents=True, exist_ok=True)
            for i in range(n):
                pixels = rng.integers(0, 100, (*size, 3), dtype=np.uint8)
                pixels[..., index % 3] += 120
                Image.fromarray(pixels).save(folder / name / f"{i:03d}.png")
        return folder

    return make


@pytest.fixture(scope="session")
def ditkit():
    """ditkit("train", ...) runs in this process; the result has exit_code, stdout, stderr."""

    def run(*words: object):
        return CliRunner().invoke(app, [str(word) for word in words])

    return run


@pytest.fixture(scope="session")
def refused(ditkit):
    """refused("train", ...) asserts exit code 2, one line on stderr that begins with "ditkit:", and returns it."""

    def run(*words: object) -> str:
        result = ditkit(*words)
        assert result.exit_code == 2, result.output
        lines = [line for line in result.stderr.splitlines() if line]
        assert len(lines) == 1 and lines[0].startswith("ditkit: "), result.stderr
        assert "Traceback" not in result.output
        return lines[0]

    return run


def listen_to_ctrl_c() -> None:
    """A suite that was started in the background ignores SIGINT, and its children would too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="session")
def own_process():
    """own_process("train", ..., cwd=folder) -> Popen of `python -m ditkit`, one thread, no network, text pipes."""
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def start(*words: object, cwd: Path | None = None) -> subprocess.Popen:
        command = [sys.executable, "-m", "ditkit", *(str(word) for word in words)]
        return subprocess.Popen(
            command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=listen_to_ctrl_c,
        )  # fmt: skip

    return start


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
