"""Writing results: bytes, and the .npz that evaluators read; complete under the final name, or absent."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

from ditkit.files import write_atomic


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write `data` to `path` atomically."""
    return write_atomic(path, lambda file: file.write(data))


def write_npz(path: str | Path, images: Iterable[np.ndarray], shape: tuple[int, ...], /, **arrays: np.ndarray) -> Path:
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
