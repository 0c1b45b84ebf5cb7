"""Checkpoints: folders of safetensors with one small JSON file, complete or absent, loadable without pickle.

    RUN/checkpoints/0050000/model.safetensors       raw weights
                            ema.safetensors         averaged weights
                            align.safetensors       projectors, if the run aligns
                            align_ema.safetensors   their average
                            optimizer.safetensors   AdamW's moments and counts
                            state.json              step, counters, settings, size and CRC-32 of every file

Several processes may write parts of the same tensors instead (training.checkpoint=sharded, shards.py).
"Latest" means the highest step number; dates and modification times play no part.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ditkit.checkpoints import CheckpointError
from ditkit.files import write_text
from ditkit.training.files import SaveError, sync
from ditkit.training.shards import is_sharded, read_parts
from ditkit.training.snapshots import drop_after

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
    try:
        found = list(home.iterdir()) if home.exists() else []
    except OSError as error:
        raise CheckpointError(f"{home}: {_reason(error)}") from None
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
    with unwritten(folder, step):
        draft = begin(folder, step)
        listed = {f"{name}.safetensors": _write_tensors(draft / f"{name}.safetensors", files[name]) for name in files}
        return commit(folder, step, listed, numbers)


def begin(folder: str | os.PathLike, step: int) -> Path:
    """A new draft folder for one step's checkpoint; older drafts are removed."""
    draft = _draft_of(folder, step)
    remove_drafts(folder)
    draft.mkdir(parents=True)
    return draft


def commit(folder: str | os.PathLike, step: int, listed: Mapping[str, Mapping], numbers: Mapping) -> Path:
    """Give a draft its final name. listed: the draft's files, on the disk, with their size and CRC-32 (`facts`)."""
    final, draft = path_of(folder, step), _draft_of(folder, step)
    state = {"format": FORMAT, "step": step, "files": listed, **numbers}
    write_text(draft / STATE, json.dumps(state, indent=1, allow_nan=False))
    if final.exists():  # the same step again: only a damaged one is ever replaced
        final.rename(final.parent / f"{_DRAFT}old-{final.name}")
    draft.rename(final)
    sync(final.parent)
    remove_drafts(folder)
    return final


@contextmanager
def unwritten(folder: str | os.PathLike, step: int) -> Iterator[None]:
    """What keeps a checkpoint from being written becomes SaveError, and its draft is removed."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(_draft_of(folder, step), ignore_errors=True)
        kept = list_steps(folder)
        raise SaveError(
            f"checkpoint of step {step} could not be written to {checkpoints(Path(folder))}: {_reason(error)}; "
            + (f"the checkpoint of step {kept[-1]} is intact" if kept else "there is no earlier one")
        ) from None


def _draft_of(folder: str | os.PathLike, step: int) -> Path:
    final = path_of(folder, step)
    return final.parent / f"{_DRAFT}{final.name}"


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


def thin(folder: str | os.PathLike, keep_last: int, keep_every: int | None = None) -> str | None:
    """`prune` after a checkpoint that is whole: what cannot be removed is a line, not an error."""
    try:
        prune(folder, keep_last, keep_every)
    except OSError as error:
        return f"warning: old checkpoints in {checkpoints(Path(folder))} could not be removed: {_reason(error)}"
    except CheckpointError as error:
        return f"warning: {error}"
    return None


def set_aside(folder: str | os.PathLike, step: int) -> None:
    """Rename checkpoints after `step` to dropped-STEP: they belong to a continuation that is being replaced.

    Averages stored after it are deleted.
    """
    drop_after(folder, step)
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
    if not isinstance(state, dict) or not isinstance(state.get("files"), dict):
        raise CheckpointError(f"{home / STATE}: not what a run writes")
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{home / STATE}: format {state.get('format')}, this version reads {FORMAT}")
    for name, wanted in state["files"].items():
        if not (home / name).is_file():
            raise CheckpointError(f"{home / name}: missing")
        if (size := (home / name).stat().st_size) != wanted["bytes"]:
            raise CheckpointError(f"{home / name}: {size} bytes, written were {wanted['bytes']}")
        if crc(home / name) != wanted["crc32"]:
            raise CheckpointError(f"{home / name}: the content changed since it was written (CRC-32)")
    return state


def read_tensors(
    folder: str | os.PathLike, step: int, name: str, like: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint, on the CPU.

    Of a checkpoint in parts, those that are cut in `like` are read and given back as this process's parts (DTensors).
    """
    home = path_of(folder, step)
    path = home / f"{name}.safetensors"
    try:
        return load_file(path) if path.exists() or not is_sharded(home) else read_parts(home, name, like)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {_reason(error)}") from None


def latest(
    folder: str | os.PathLike,
    say: Callable[[str], None] = lambda text: None,
    accept: Callable[[int, dict], bool] = lambda step, state: True,
) -> tuple[int, dict] | None:
    """(step, state) of the newest whole checkpoint by step number; None if the run has none at all.

    Each damaged one that had to be skipped is named through `say`. CheckpointError if all are damaged. accept: which
    ones count; None if none of the whole ones does.
    """
    steps, problem, whole = list_steps(folder), None, 0
    for step in reversed(steps):
        try:
            state = read_state(folder, step)
        except CheckpointError as error:
            problem = error
            say(f"checkpoint of step {step} is damaged and skipped: {error}")
            continue
        if accept(step, state):
            return step, state
        whole += 1
    if problem is not None and not whole:
        raise CheckpointError(f"{checkpoints(Path(folder))}: none of the {len(steps)} checkpoints is whole; {problem}")
    return None


def _write_tensors(path: Path, tensors: Tensors) -> dict[str, int]:
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, path)
    sync(path)
    return facts(path)


def facts(path: Path) -> dict[str, int]:
    """Size and CRC-32 of a file, as state.json lists them."""
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
