"""Images that are there already: a folder that `generate` wrote, any folder of PNG files, or an .npz."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
from torch import Tensor

from ditkit.diffusion import SamplerSettings
from ditkit.evaluation.features import Images
from ditkit.evaluation.folder import REQUEST, FolderError, SampleFolder
from ditkit.evaluation.generate import Generated
from ditkit.evaluation.images import read_png
from ditkit.evaluation.protocols import Protocol
from ditkit.evaluation.reference import Reference
from ditkit.evaluation.request import Request

LABELS = ("label", "labels", "arr_1")  # names of the classes beside arr_0: ours, and those of other code bases


class ImageFiles:
    """Image files cut like a uint8 tensor (N, C, H, W); all must have one size."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = list(paths)
        self._shape: torch.Size | None = None  # of the first one that was read; slices come one by one

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: slice) -> Tensor:
        images = []
        for path in self.paths[rows]:
            try:
                images.append(read_png(path)[0])
            except OSError as error:
                raise FolderError(f"{path}: not a readable image ({error})") from None
            self._shape = self._shape or images[-1].shape
            if images[-1].shape != self._shape:
                raise FolderError(f"{path}: {tuple(images[-1].shape)}, the others are {tuple(self._shape)}")
        return torch.stack(images)


class NpzImages:
    """arr_0, uint8 (N, H, W, 1 or 3), of an .npz, cut like a uint8 tensor (N, C, H, W).

    What np.savez wrote stays on disk (50,000 images of 256 x 256 are 10 GB); what np.savez_compressed wrote is read
    into memory. KeyError without arr_0, BadZipFile, OSError or ValueError for a broken file, FolderError for other
    arrays than images.
    """

    array: np.ndarray

    def __init__(self, path: str | Path):
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo("arr_0.npy")
            with archive.open(info) as member:
                if info.compress_type == zipfile.ZIP_STORED:
                    shape, fortran, dtype = _npy_header(member)
                    order: Literal["C", "F"] = "F" if fortran else "C"
                    self.array = np.memmap(path, dtype, "r", _start(path, info) + member.tell(), shape, order)
                else:
                    self.array = np.lib.format.read_array(member, allow_pickle=False)
        dtype, shape = self.array.dtype, self.array.shape
        if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or not shape[0]:
            raise FolderError(f"{path}: arr_0 is {dtype} {shape}, expected uint8 (N, H, W, 1 or 3)")

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, rows: slice) -> Tensor:
        return torch.from_numpy(np.array(self.array[rows])).permute(0, 3, 1, 2)


def no_arrays(path: Path, error: Exception) -> str:
    """Why a file cannot be opened as an .npz, in our words; numpy's advice is to load pickles."""
    if not zipfile.is_zipfile(path):
        return "it is no archive of arrays at all"
    if "allow_pickle" in str(error):
        return "it holds Python objects, which are never loaded: save plain arrays"
    return str(error)


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _start(path: str | Path, info: zipfile.ZipInfo) -> int:
    """Where a stored member begins: behind its local header, which may be longer than the central one says."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        name, extra = struct.unpack("<26x2H", file.read(30))
    return info.header_offset + 30 + name + extra


def open_generated(folder: str | Path) -> Generated:
    """The complete folder that `generate` wrote, with the request and sampler that made it. FolderError otherwise."""
    folder = Path(folder)
    if not (folder / REQUEST).exists():
        raise FolderError(f"{folder}: no {REQUEST}, so it does not tell how its images were made")
    told = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    request = Request.model_validate(told["request"])
    place = SampleFolder(folder, request.n)
    if missing := place.missing(range(request.n)):
        raise FolderError(f"{folder}: {len(missing)} of {request.n} images are missing; run the same `sample` again")
    labels = torch.tensor(request.labels) if request.labels else None
    sampler = SamplerSettings.model_validate(told["sampler"])
    spent, by = place.evaluations(request), {key: told.get(key) or "" for key in ("text", "autoguide")}
    return Generated(place, labels, request, sampler, spent, 0.0, 0, told["codec"], folder, **by)


def open_images(path: str | Path) -> tuple[Images, Tensor | None]:
    """(images, labels or None) of an .npz (arr_0 uint8 NHWC, and one of LABELS) or of a folder's PNG files, by name."""
    path = Path(path)
    if path.is_dir():
        files = sorted(path.glob("*.png"))
        if not files:
            below = next((p for p in sorted(path.iterdir()) if p.is_dir() and any(p.glob("*.png"))), None)
            hint = f"; evaluate its class folders one by one ({below}), or put all files in one" if below else ""
            raise FolderError(
                f"{path}: holds no PNG files{hint}; samples are PNG files of one size directly in a folder, or an .npz "
                "with arr_0 (and label)"
            )
        return ImageFiles(files), None
    if not path.exists():
        raise FolderError(f"{path}: no such file or folder; give a folder of PNG files or an .npz with arr_0")
    try:
        images = NpzImages(path)
        with np.load(path, allow_pickle=False) as data:
            name = next((k for k in LABELS if k in data.files), None)
            labels = None if name is None else torch.from_numpy(data[name]).long()
    except FolderError:
        raise
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise FolderError(f"{path}: not an .npz with arr_0 ({no_arrays(path, error)})") from None
    if labels is not None and labels.shape != (len(images),):
        raise FolderError(f"{path}: {name} has shape {tuple(labels.shape)}, there are {len(images)} images in arr_0")
    return images, labels


def given_protocol(
    n: int, reference: Reference, name: str = "custom", resize: str = "none", size: tuple[int, int] | None = None
) -> Protocol:
    """The protocol of images whose making is not known: N, their size (H, W), features and reference are stated."""
    return Protocol(
        name=name,
        n=n,
        size=size,
        labels="given",
        evaluations=0,
        quantiser="given",
        resize=resize,
        extractor=reference.extractor,
        reference=reference.fingerprint,
        reference_n=reference.moments.count,
        reference_resize=reference.resize,
    )
