"""A folder of generated images: NNNNNN.png, request.json and samples.npz; every file complete or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ditkit.config import flatten
from ditkit.evaluation.files import write_bytes, write_npz
from ditkit.evaluation.images import read_png, save_png
from ditkit.evaluation.request import Request

REQUEST, ARCHIVE = "request.json", "samples.npz"
THREADS = "threads"  # key of REQUEST: networks round by the number of threads at some batch sizes
MANY = 256  # files are looked for in the folder's list instead of one by one
NPZ_BLOCK = 256  # images held in memory while the npz is written


class FolderError(ValueError):
    """The folder holds something else than this request's images."""


class SampleFolder:
    """n PNG files, cut like a uint8 tensor (N, C, H, W): `folder[10:20]` reads ten images from disk."""

    def __init__(self, path: Path, n: int):
        self.path, self.n = Path(path), n

    @property
    def archive(self) -> Path:
        """The .npz of all images."""
        return self.path / ARCHIVE

    def file(self, index: int) -> Path:
        """Where image `index` is; zero-padded, so that sorting by name is sorting by index."""
        return self.path / f"{index:06d}.png"

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, rows: slice) -> Tensor:
        return torch.stack([read_png(self.file(i))[0] for i in range(*rows.indices(self.n))])

    def missing(self, indices: Sequence[int]) -> list[int]:
        """Those of the indices that have no file yet."""
        if len(indices) < MANY:
            return [i for i in indices if not self.file(i).exists()]
        there = {entry.name for entry in os.scandir(self.path)} if self.path.is_dir() else set()
        return [i for i in indices if self.file(i).name not in there]

    def count(self) -> int:
        """How many images are there."""
        return sum(entry.name[0] != "." and entry.name.endswith(".png") for entry in os.scandir(self.path))

    @property
    def threads(self) -> int | None:
        """CPU threads of each process that the images are made with; None where no CPU made them or none is told."""
        found = self.path / REQUEST
        return json.loads(found.read_text(encoding="utf-8")).get(THREADS) if found.exists() else None

    def claim(self, what: dict, threads: int | None = None) -> None:
        """Begin the folder, or continue one that was begun for the same thing; FolderError names what differs.

        threads: told in a folder that begins, and not compared.
        """
        found = self.path / REQUEST
        if found.exists():
            before = flatten({k: v for k, v in json.loads(found.read_text(encoding="utf-8")).items() if k != THREADS})
            now = flatten(json.loads(json.dumps(what)))
            keys = [k for k in {**before, **now} if before.get(k) != now.get(k)]
            if keys:
                listed = "; ".join(f"{k}: {_short(before.get(k))} there, {_short(now.get(k))} now" for k in keys)
                raise FolderError(f"{self.path}: made for another request ({listed}); name another folder")
        elif self.path.is_dir() and (others := sorted(p.name for p in self.path.iterdir() if p.name[0] != ".")):
            raise FolderError(f"{self.path}: holds other things ({others[0]}, ...); name another folder")
        else:
            told = what if threads is None else {**what, THREADS: threads}
            write_bytes(found, json.dumps(told, indent=1).encode())
        stray = [p.name for p in self.path.glob("*.png") if not p.stem.isdigit() or int(p.stem) >= self.n]
        if stray:
            raise FolderError(f"{self.path}: {stray[0]} is not one of the {self.n} images; remove it")

    def write(self, request: Request, chunk: int, images: Tensor, evaluations: float) -> int:
        """Write the missing ones of a chunk's images (b, C, H, W); returns how many. Each tells its making in tEXt."""
        indices = request.indices(chunk)
        missing = self.missing(indices)
        for i in missing:
            text = {"index": str(i), "seed": str(request.seed), "evaluations": f"{evaluations:g}"}
            if request.labels:
                text["label"] = str(request.labels[i])
            if request.prompts:
                text["prompt"] = request.prompts[i]
            save_png(images[i - indices.start], self.file(i), text)
        return len(missing)

    def evaluations(self, request: Request) -> float:
        """Network evaluations per image, as the files state them (the mean over chunks: adaptive solvers differ)."""
        spent = 0.0
        for chunk in range(request.chunks):
            indices = request.indices(chunk)
            spent += float(read_png(self.file(indices.start))[1].get("evaluations", "0")) * len(indices)
        return spent / self.n

    def collect(self, labels: Tensor | None) -> Path:
        """Write samples.npz of the complete folder: arr_0 uint8 (N, H, W, C), and label (N,) where there are any."""
        if missing := self.missing(range(self.n)):
            raise FolderError(f"{self.path}: {len(missing)} of {self.n} images are missing, the first is {missing[0]}")
        channels, height, width = self[0:1].shape[1:]
        arrays = {} if labels is None else {"label": labels.numpy()}
        return write_npz(self.archive, self._blocks(), (self.n, height, width, channels), **arrays)

    def _blocks(self) -> Iterator[np.ndarray]:
        for start in range(0, self.n, NPZ_BLOCK):
            yield self[start : start + NPZ_BLOCK].permute(0, 2, 3, 1).numpy()


@contextmanager
def threads_of(folder: SampleFolder, device: str | torch.device) -> Iterator[None]:
    """On a CPU: as many threads as the folder was begun with, for the duration; networks round by their number."""
    here = torch.get_num_threads()
    asked = (folder.threads if torch.device(device).type == "cpu" else None) or here
    if asked == here:
        yield
        return
    torch.set_num_threads(asked)
    try:
        yield
    finally:
        torch.set_num_threads(here)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
