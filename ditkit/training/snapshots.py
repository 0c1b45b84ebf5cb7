"""Power-function averages as they were at some steps of a run: what averages of other widths are made of afterwards.

    RUN/averages/0002000-power-0.05.safetensors         the network
                 0002000-align_power-0.05.safetensors   projectors, if the run aligns

Each is a file of weights as a checkpoint has it; its metadata tell after how many averagings it was taken, and which
tensors are averaged. Nothing here is ever thinned; what is later than a resumed step is deleted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ditkit.checkpoints import CheckpointError
from ditkit.training.files import SaveError, sync

FOLDER, DRAFT, KIND = "averages", ".writing-", "power-"


class Snapshot(NamedTuple):
    """One file. name: of its kind in a checkpoint, "power-0.05" or "align_power-0.05"; width: sigma_rel."""

    path: Path
    step: int
    name: str
    width: float


def list_snapshots(folder: str | os.PathLike) -> list[Snapshot]:
    """All that a run has under their final names, in the order of steps; they may still be damaged."""
    found = []
    for path in (Path(folder) / FOLDER).glob("*.safetensors"):
        step, _, name = path.stem.partition("-")
        number = name.partition(KIND)[2]
        if step.isdecimal() and number and not path.name.startswith(DRAFT):
            found.append(Snapshot(path, int(step), name, float(number)))
    return sorted(found, key=lambda s: (s.step, s.name))


def write_snapshots(
    folder: Path, step: int, files: Mapping[str, Mapping[str, Tensor]], count: int, averaged: Collection[str]
) -> None:
    """Write the averages of one step: file name without suffix -> tensors; averaged: names of those that are.

    count: averagings so far. Each is written to a draft, forced to the disk and renamed. SaveError on a full disk.
    """
    home = Path(folder) / FOLDER
    draft = home / DRAFT
    try:
        home.mkdir(exist_ok=True)
        for name, tensors in files.items():
            draft = home / f"{DRAFT}{step:07d}-{name}"
            about = {"count": str(count), "averaged": json.dumps(sorted(tensors.keys() & averaged))}
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, draft, about)
            sync(draft)
            draft.rename(home / f"{step:07d}-{name}.safetensors")
        sync(home)
    except (OSError, SafetensorError) as error:
        if home.is_dir():
            draft.unlink(missing_ok=True)
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise SaveError(f"averages of step {step} could not be written to {home}: {reason}") from None


def drop_after(folder: str | os.PathLike, step: int) -> None:
    """Delete what is later than `step`, of a continuation that is being replaced, and what a kill left half written."""
    for late in list_snapshots(folder):
        if late.step > step:
            late.path.unlink()
    for draft in (Path(folder) / FOLDER).glob(f"{DRAFT}*"):
        draft.unlink()


def facts(snapshot: Snapshot) -> tuple[int, set[str]]:
    """(averagings before it was taken, names of the tensors that are averaged). CheckpointError if it is damaged."""
    try:
        with safe_open(snapshot.path, "pt") as file:
            about = file.metadata() or {}
        return int(about["count"]), set(json.loads(about["averaged"]))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{snapshot.path}: not readable as an average (damaged?): {error}") from None


class Reader:
    """The tensors of a snapshot, one at a time; CheckpointError names a damaged file."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = safe_open(path, "pt")
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: {error}") from None

    def names(self) -> list[str]:
        """Of all tensors."""
        return list(self._file.keys())

    def __call__(self, name: str) -> Tensor:
        try:
            return self._file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.path}: {error}") from None


@torch.no_grad()
def combined(
    readers: Sequence[Callable[[str], Tensor]], weights: Sequence[float], names: Sequence[str], averaged: set[str]
) -> dict[str, Tensor]:
    """Sums of the averaged tensors, in float64; other tensors are those of the last reader."""
    found = {}
    for name in names:
        last = readers[-1](name)
        if name in averaged:
            total = torch.zeros(last.shape, dtype=torch.float64)
            for reader, weight in zip(readers, weights, strict=True):
                total += weight * reader(name).double()
            last = total.to(last.dtype)
        found[name] = last
    return found
