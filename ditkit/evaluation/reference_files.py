"""Files of real images and their statistics: ADM's, those of FID tools, and ours.

ADM's evaluator reads ours too where they were made with Inception (it asks for spatial moments) from colour images.
arr_0 uint8 (N, H, W, C): images; mu, sigma: moments of pooled features; mu_s, sigma_s: of what sFID looks at. Ours also
tell extractor, count, a fingerprint of all images, and the features of arr_0.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ditkit.evaluation.features import Moments, Progress, extract, views
from ditkit.evaluation.files import write_npz
from ditkit.evaluation.folder import FolderError
from ditkit.evaluation.named import INCEPTION, NamedProtocol, of_family
from ditkit.evaluation.reference import Reference, Statistics, images_fingerprint, make_reference, statistics_arrays
from ditkit.evaluation.samples import NpzImages, no_arrays
from ditkit.protocols import BadImage, Extractor, Source

MOST = 10_000  # images kept in a file: as many as ADM's hold, for precision and recall
WIDTH = 2048  # of Inception's features: statistics of this width are its own where a file does not tell
BLOCK = 256  # images in memory at a time while a reference is made
NO_ADM = (
    "the reference does not tell which network made it: statistics of pytorch-fid or clean-fid, which resize otherwise "
    "than Inception's own graph, give no ADM number"
)


class BadReference(ValueError):
    """A file that cannot be a reference, or cannot serve this extractor or protocol."""


@dataclass(frozen=True)
class ReferenceFile:
    """An opened file; images stay on disk."""

    path: Path
    arrays: dict[str, np.ndarray]
    images: NpzImages | None

    @property
    def extractor(self) -> str:
        """Id of the network of its statistics; "" where it does not tell (all files but ours)."""
        return str(self.arrays.get("extractor", ""))

    @property
    def width(self) -> int:
        """Features that its statistics are of; 0 where it holds images alone."""
        return len(self.arrays.get("mu", ()))

    @property
    def parts(self) -> tuple[str, ...]:
        """Which of the arrays that protocols speak of are there."""
        there = {"arr_0": self.images is not None}
        return tuple(k for k in ("arr_0", "mu", "sigma", "mu_s", "sigma_s") if there.get(k, k in self.arrays))

    @cached_property
    def fingerprint(self) -> str:
        """Of all images behind ours; of other files 16 hex digits of the SHA-256 of their content."""
        if told := str(self.arrays.get("images", "")):
            return told
        with open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]

    def check(self, named: NamedProtocol) -> None:
        """BadReference, one line, where this cannot be the file that a named protocol stands for."""
        wanted = [part for names in named.serves for part in names.split(", ")]
        if missing := [part for part in wanted if part not in self.parts]:
            raise BadReference(f"{self.path}: protocol {named.name} needs {', '.join(missing)} too: {ways(named)}")
        if self.extractor:
            raise BadReference(f"{self.path}: made by ditkit, protocol {named.name} is another: {ways(named)}")
        shape = (self.images[0:1] if self.images else torch.zeros(0)).shape[2:]
        if named.size not in (None, tuple(shape)):
            raise BadReference(f"{self.path}: its images are {'x'.join(map(str, shape))}: {ways(named)}")
        if self.path.name != named.reference:
            raise BadReference(
                f"{self.path}: not the file of protocol {named.name} by its name; if it is, give it its name "
                f"back, else leave the protocol's name out: {ways(named)}"
            )
        for part, length in named.lengths.items():
            found = len(self.images or ()) if part == "arr_0" else len(self.arrays[part])
            if found != length:
                raise BadReference(f"{self.path}: {part} has {found:,} rows, not {length:,}: {ways(named)}")

    def unverified(self, named: NamedProtocol) -> str:
        """What `check` does not see: no checksum of the published file is known to compare with."""
        return (
            f"{self.path.name} is taken for the reference of {named.name} by its name, layout and size; its SHA-256 "
            f"begins with {self.fingerprint}, which is not verified: compare it with that of the file at {named.origin}"
        )

    def seen_by(self, extractor: Extractor, progress: Progress | None = None) -> Reference:
        """The reference in this extractor's space: moments from the file where they are its own, features of arr_0.

        Without images it has no features. BadReference, one line, where the file holds nothing of this space.
        """
        if not self._made_by(extractor):
            return self._by_images_alone(extractor, progress)
        count = int(self.arrays.get("count", 0))
        spatial = _statistics(self.arrays, "mu_s", "sigma_s", count) if "mu_s" in self.arrays else None
        features = torch.zeros(0, extractor.width)
        if "features" in self.arrays:
            features = torch.from_numpy(self.arrays["features"])
        elif self.images is not None:
            features = extract(extractor, self.images, progress=progress)
        notes = () if self.extractor or spatial is not None else (NO_ADM,)
        if not self.extractor and not of_family(extractor.id, INCEPTION):
            notes = (f"{self.path.name} does not tell which network made it: taken for {extractor.id}, of equal width",)
        moments = _statistics(self.arrays, "mu", "sigma", count)
        return Reference(extractor.id, features, moments, self.fingerprint, spatial, notes)

    def _made_by(self, extractor: Extractor) -> bool:
        """Whether mu and sigma are of this extractor.

        Files that do not tell are of Inception, those of other widths of what the user says where they hold no images.
        """
        if self.extractor or "mu" not in self.arrays:
            return self.extractor == extractor.id
        if self.arrays["mu"].shape != (extractor.width,):
            return False
        return of_family(extractor.id, INCEPTION) or (extractor.width != WIDTH and self.images is None)

    def _by_images_alone(self, extractor: Extractor, progress: Progress | None) -> Reference:
        told = self.extractor or f"a network that it does not name (width {self.width})"
        if not self.extractor and self.width == WIDTH:
            told = f"Inception (by their width of {WIDTH}; it does not tell)"
        if self.images is None:
            raise BadReference(
                f"{self.path}: its statistics are of {told} and it holds no images, so {extractor.id} cannot use it: "
                "name the network that made them by --extractor, or make a file from the images by `ditkit evaluate "
                "--make-reference FOLDER`"
            )
        made = make_reference(extractor, self.images, progress)
        note = f"{extractor.id}: moments of the {len(self.images):,} images in {self.path.name}; its own are of {told}"
        made.notes = (note,) if "mu" in self.arrays else ()
        return made


def ways(named: NamedProtocol) -> str:
    """Where the reference of a named protocol is to be had."""
    return f"its reference is {named.reference}, from {named.origin}"


def _statistics(arrays: dict[str, np.ndarray], mean: str, covariance: str, count: int) -> Statistics:
    mu, sigma = (torch.from_numpy(arrays[key].astype(np.float64)) for key in (mean, covariance))
    return Statistics(mu, sigma, count)


def open_reference(path: str | Path) -> ReferenceFile:
    """Open an .npz of reference images or statistics. BadReference, one line, for anything else."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise BadReference(f"{path}: no such file; a reference is an .npz with arr_0 (images) or mu and sigma")
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {key: data[key] for key in data.files if key != "arr_0"}
            images = NpzImages(path) if "arr_0" in data.files else None
    except FolderError as error:
        raise BadReference(str(error)) from None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        told = no_arrays(path, error)
        raise BadReference(f"{path}: not an .npz of reference images or statistics ({told})") from None
    if images is None and not {"mu", "sigma"} <= arrays.keys():
        raise BadReference(f"{path}: holds neither images (arr_0) nor statistics (mu and sigma)")
    for mean, covariance in (("mu", "sigma"), ("mu_s", "sigma_s")):
        m, c = (arrays.get(key, np.zeros(0)) for key in (mean, covariance))
        if m.ndim != 1 or ((m.size or c.size) and c.shape != (m.size, m.size)):
            raise BadReference(f"{path}: {mean} has shape {m.shape} and {covariance} {c.shape}, which do not fit")
        if not all(np.isfinite(part.astype(np.float64)).all() for part in (m, c)):
            raise BadReference(f"{path}: {mean} or {covariance} holds NaN or infinite values: make the file anew")
    return ReferenceFile(path, arrays, images)


def write_reference(
    source: Source, extractor: Extractor, path: str | Path, *, most: int = MOST, progress: Progress | None = None
) -> tuple[ReferenceFile, list[str]]:
    """Make a reference of all usable images of a source and write it to `path` (.npz), atomically.

    Moments are of all images; of arr_0 and features there are `most` at most, spread evenly over the source. No more
    than a block of the others is in memory. Returns the file, and the paths of images that cannot be used. ValueError
    where none can be.
    """
    n = len(source)
    kept = {i * n // most for i in range(most)} if n > most else set(range(n))
    images: list[Tensor] = []
    features: list[Tensor] = []
    bad: list[str] = []
    pooled, spatial, digest = Moments(), Moments(), hashlib.sha256()
    if progress is not None:
        progress(0, n)
    for start, rows, block in _blocks(source, bad):
        seen = views(extractor, block)
        if not images:
            digest.update(f"{n} {tuple(block.shape[1:])}".encode())
        pooled = pooled.add(seen.pooled)
        spatial = spatial if seen.spatial is None else spatial.add(seen.spatial)
        chosen = [j for j, row in enumerate(rows) if row in kept]
        images.append(block[chosen])
        features.append(seen.pooled[chosen])
        digest.update(block.contiguous().numpy().tobytes())
        if progress is not None:
            progress(min(start + BLOCK, n), n)
    if pooled.count < 2:
        raise ValueError(f"a reference needs at least 2 images: {pooled.count} of {n} can be used")
    shape = (sum(map(len, images)), *images[0].permute(0, 2, 3, 1).shape[1:])
    told = images_fingerprint(torch.cat(images)) if pooled.count == shape[0] else digest.hexdigest()[:16]
    made = Reference(extractor.id, torch.cat(features), pooled, told, spatial if spatial.count else None)
    write_npz(path, (part.permute(0, 2, 3, 1).numpy() for part in images), shape, **statistics_arrays(made))
    return open_reference(path), bad


def _blocks(source: Source, bad: list[str]) -> Iterator[tuple[int, list[int], Tensor]]:
    """(first index, indices, uint8 images (n, C, H, W)) of consecutive blocks; unusable images are told to `bad`."""
    for start in range(0, len(source), BLOCK):
        rows, images = [], []
        for i in range(start, min(start + BLOCK, len(source))):
            try:
                images.append(source[i].image)
                rows.append(i)
            except BadImage as error:
                bad.append(error.path)
        if images:
            yield start, rows, torch.stack(images)
