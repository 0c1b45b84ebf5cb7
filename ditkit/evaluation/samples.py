"""Images that are there already: a folder that `generate` wrote, any folder of PNG files, or an .npz."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

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


class ImageFiles:
    """Image files cut like a uint8 tensor (N, C, H, W); all must have one size."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: slice) -> Tensor:
        images = []
        for path in self.paths[rows]:
            try:
                images.append(read_png(path)[0])
            except OSError as error:
                raise FolderError(f"{path}: not a readable image ({error})") from None
            if images[-1].shape != images[0].shape:
                raise FolderError(f"{path}: {tuple(images[-1].shape)}, the others are {tuple(images[0].shape)}")
        return torch.stack(images)


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
    return Generated(place, labels, request, sampler, place.evaluations(request), 0.0, 0, told["codec"], folder)


def open_images(path: str | Path) -> tuple[Images, Tensor | None]:
    """(images, labels or None) of an .npz (arr_0 NHWC uint8; label or arr_1) or of a folder's PNG files, by name."""
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
        with np.load(path, allow_pickle=False) as data:
            array = data["arr_0"]
            name = next((k for k in ("label", "arr_1") if k in data.files), None)
            labels = None if name is None else torch.from_numpy(data[name]).long()
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise FolderError(f"{path}: not an .npz with arr_0 ({error})") from None
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (1, 3):
        raise FolderError(f"{path}: arr_0 is {array.dtype} {array.shape}, expected uint8 (N, H, W, 1 or 3)")
    return torch.from_numpy(array).permute(0, 3, 1, 2), labels


def given_protocol(n: int, reference: Reference, name: str = "custom", resize: str = "none") -> Protocol:
    """The protocol of images whose making is not known: only N, the features and the reference are stated."""
    return Protocol(
        name=name,
        n=n,
        labels="given",
        evaluations=0,
        quantiser="given",
        resize=resize,
        extractor=reference.extractor,
        reference=reference.fingerprint,
        reference_n=reference.moments.count,
    )
