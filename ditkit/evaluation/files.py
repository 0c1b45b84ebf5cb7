"""Writing results: a file appears under its final name complete, or not at all."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

import numpy as np


def write_atomic(path: str | Path, write: Callable[[IO[bytes]], object]) -> Path:
    """Call `write` with an open binary file, then rename it to `path`.

    The temporary name is fixed (".NAME.part"), so that a killed run leaves at most one stray file, which the next
    run overwrites. OSError where the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return path


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write `data` to `path` atomically."""
    return write_atomic(path, lambda file: file.write(data))


def write_npz(path: str | Path, images: Iterable[np.ndarray], shape: tuple[int, ...], **arrays: np.ndarray) -> Path:
    """Write the file that ADM's evaluator reads: `arr_0`, uint8 of `shape` (N, H, W, C), plus other named arrays.

    `images` yields consecutive blocks (n, H, W, C), which go straight to disk: 50,000 images of 256 x 256 need no
    more memory than one block. ValueError where the blocks do not add up to N.
    """

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)  # type: ignore[arg-type]
                written = 0
                for block in images:
                    if block.shape[1:] != shape[1:] or block.dtype != np.uint8:
                        raise ValueError(f"{path}: a block is {block.dtype} {block.shape}, expected uint8 {shape[1:]}")
                    member.write(np.ascontiguousarray(block).tobytes())
                    written += len(block)
            if written != shape[0]:
                raise ValueError(f"{path}: {written} images came, {shape[0]} were announced")
            for name, array in arrays.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)

    return write_atomic(path, write)
