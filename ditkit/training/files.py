"""The run folder: can it be written, and has what was written reached the disk."""

from __future__ import annotations

import os
from pathlib import Path


class Unwritable(OSError):
    """The run folder cannot be written; raised before training starts."""


class SaveError(OSError):
    """Something of the run could not be written, as on a full disk; earlier checkpoints are untouched."""


def prepare(folder: Path) -> None:
    """Make the folder and prove that files can be written there; Unwritable says why not, in one line."""
    probe = folder / f".write-test-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"ok")
        probe.unlink()
    except OSError as error:
        raise Unwritable(f"cannot write to {folder}: {error.strerror}; name another folder with --out") from None


def sync(path: Path) -> None:
    """Force a file, or a folder's entries, to the disk."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):  # this system cannot open folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
