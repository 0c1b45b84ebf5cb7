"""Checkpoints: folders of safetensors with one small JSON file, complete or absent, loadable without pickle.

    RUN/checkpoints/0050000/model.safetensors       raw weights
                            ema.safetensors         averaged weights
                            align.safetensors       projectors, if the run aligns
                            align_ema.safetensors   their average
                            optimizer.safetensors   AdamW's moments and counts
                            state.json              step, counters, settings, size and CRC-32 of every file

"Latest" means the highest step number; dates and modification times play no part.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ditkit.checkpoints import CheckpointError
from ditkit.files import write_text
from ditkit.training.files import SaveError, sync

Tensors = Mapping[str, Tensor]
FORMAT = 1
STATE = "state.json"
_DRAFT = ".writing-"


def checkpoints(folder: Path) -> Path:
    """Where a run folder keeps its checkpoints."""
    return Path(folder) / "checkpoints"


def list_steps(folder: str | os.PathLike) -> list[int]:
    """The steps that have a checkpoint under its final name, ascending by number; they may still be damaged."""
    home = checkpoints(Path(folder))
    found = home.iterdir() if home.is_dir() else ()
    return sorted(int(p.name) for p in found if p.name.isdecimal() and path_of(folder, int(p.name)) == p and p.is_dir())


def path_of(folder: str | os.PathLike, step: int) -> Path:
    """The folder of one step's checkpoint."""
    return checkpoints(Path(folder)) / f"{step:07d}"


def write(folder: str | os.PathLike, step: int, files: Mapping[str, Tensors], numbers: Mapping) -> Path:
    """Write one checkpoint and return its folder.

    files: name without suffix -> tensors. numbers: JSON values, kept in state.json. Everything goes to a draft folder,
    is forced to the disk, and takes its final name by one rename. A kill at any moment leaves the earlier checkpoints
    and at most a draft, which the next run removes. SaveError if the disk is full or the folder not writable.
    """
    final = path_of(folder, step)
    draft = final.parent / f"{_DRAFT}{final.name}"
    try:
        remove_drafts(folder)
        draft.mkdir(parents=True)
        listed = {f"{name}.safetensors": _write_tensors(draft / f"{name}.safetensors", files[name]) for name in files}
        state = {"format": FORMAT, "step": step, "files": listed, **numbers}
        write_text(draft / STATE, json.dumps(state, indent=1, allow_nan=False))
        if final.exists():  # the same step again: only a damaged one is ever replaced
            final.rename(final.parent / f"{_DRAFT}old-{final.name}")
        draft.rename(final)
        sync(final.parent)
        remove_drafts(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        kept = list_steps(folder)
        raise SaveError(
            f"checkpoint of step {step} could not be written to {final.parent}: {_reason(error)}; "
            + (f"the checkpoint of step {kept[-1]} is intact" if kept else "there is no earlier one")
        ) from None
    return final


def remove_drafts(folder: str | os.PathLike) -> None:
    """Delete what a killed run left half written."""
    for draft in checkpoints(Path(folder)).glob(f"{_DRAFT}*"):
        shutil.rmtree(draft)


def prune(folder: str | os.PathLike, keep_last: int, keep_every: int | None = None) -> None:
    """Delete all but the newest `keep_last` checkpoints and those at multiples of `keep_every`."""
    for step in list_steps(folder)[:-keep_last]:
        if keep_every is None or step % keep_every:
            doomed = path_of(folder, step).rename(checkpoints(Path(folder)) / f"{_DRAFT}old-{step:07d}")
            shutil.rmtree(doomed)  # renamed first: a kill in between leaves no half-deleted checkpoint


def set_aside(folder: str | os.PathLike, step: int) -> None:
    """Rename checkpoints after `step` to dropped-STEP: they belong to a continuation that is being replaced."""
    for later in list_steps(folder):
        if later > step:
            target = checkpoints(Path(folder)) / f"dropped-{later:07d}"
            shutil.rmtree(target, ignore_errors=True)
            path_of(folder, later).rename(target)


def read_state(folder: str | os.PathLike, step: int) -> dict:
    """state.json of one checkpoint, after every file that it lists has been found with its size and checksum."""
    home = path_of(folder, step)
    try:
        state = json.loads((home / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{home / STATE}: {_reason(error)}") from None
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{home / STATE}: format {state.get('format')}, this version reads {FORMAT}")
    for name, facts in state["files"].items():
        if not (home / name).is_file():
            raise CheckpointError(f"{home / name}: missing")
        if (size := (home / name).stat().st_size) != facts["bytes"]:
            raise CheckpointError(f"{home / name}: {size} bytes, written were {facts['bytes']}")
        if crc(home / name) != facts["crc32"]:
            raise CheckpointError(f"{home / name}: the content changed since it was written (CRC-32)")
    return state


def read_tensors(folder: str | os.PathLike, step: int, name: str) -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint, on the CPU."""
    path = path_of(folder, step) / f"{name}.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {_reason(error)}") from None


def latest(folder: str | os.PathLike, say: Callable[[str], None] = lambda text: None) -> tuple[int, dict] | None:
    """(step, state) of the newest whole checkpoint by step number; None if the run has none at all.

    Each damaged one that had to be skipped is named through `say`. CheckpointError if all are damaged.
    """
    steps, problem = list_steps(folder), None
    for step in reversed(steps):
        try:
            return step, read_state(folder, step)
        except CheckpointError as error:
            problem = error
            say(f"checkpoint of step {step} is damaged and skipped: {error}")
    if problem is not None:
        raise CheckpointError(f"{checkpoints(Path(folder))}: none of the {len(steps)} checkpoints is whole; {problem}")
    return None


def read(
    folder: str | os.PathLike,
    step: int | None = None,
    weights: Literal["ema", "raw"] = "ema",
    part: Literal["model", "align"] = "model",
) -> dict[str, Tensor]:
    """The weights of a run: of its newest whole checkpoint, or of `step`; averaged or raw; network or projectors.

    CheckpointError (a ValueError) if the run has no checkpoint, not that one, or it is damaged.
    """
    name = {"ema": {"model": "ema", "align": "align_ema"}, "raw": {"model": "model", "align": "align"}}.get(weights)
    if name is None:
        raise CheckpointError(f"weights={weights!r}: a run has 'ema' (averaged) and 'raw' weights")
    found = latest(folder) if step is None else None
    if step is None and found is None:
        raise CheckpointError(f"{folder}: no checkpoint in this run yet; `ditkit train` makes them")
    chosen = found[0] if found else step
    assert chosen is not None
    if chosen not in (steps := list_steps(folder)):
        raise CheckpointError(f"{folder}: no checkpoint of step {chosen}; there are {steps}")
    if not found:
        read_state(folder, chosen)
    return read_tensors(folder, chosen, name[part])


def _write_tensors(path: Path, tensors: Tensors) -> dict[str, int]:
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path)
    sync(path)
    return {"bytes": path.stat().st_size, "crc32": crc(path)}


def crc(path: Path) -> int:
    """CRC-32 of a file, read in blocks."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
