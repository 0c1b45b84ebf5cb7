"""Real images as an extractor sees them: what generated images are held against."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from ditkit.evaluation.features import Images, Moments, Progress, extract, frechet
from ditkit.evaluation.metrics.kernel import kernel_distance
from ditkit.evaluation.metrics.precision_recall import precision_recall
from ditkit.files import write_atomic
from ditkit.protocols import Extractor


@dataclass
class Reference:
    """Real images in an extractor's space: its id, the features (N, D), their moments, a fingerprint of the images."""

    extractor: str
    features: Tensor
    moments: Moments
    images: str = ""

    @property
    def fingerprint(self) -> str:
        """Identifies the real images, whatever device and thread count looked at them; else (images "") the moments."""
        return self.images or self.moments.fingerprint

    def halves(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        """A fixed random cut of the real features into two halves."""
        order = torch.from_numpy(np.random.Generator(np.random.Philox(seed)).permutation(len(self.features)))
        return self.features[order[: len(order) // 2]], self.features[order[len(order) // 2 :]]

    def floor(self, seed: int = 0) -> dict[str, float]:
        """What one half of the real images scores against the other: about the best that a sampler can reach."""
        a, b = self.halves(seed)
        covered = precision_recall(a, b)
        return {
            "frechet": frechet(Moments.of(a), Moments.of(b)),
            "kernel": kernel_distance(a, b),
            "precision": covered.precision,
            "recall": covered.recall,
        }

    def save(self, path: str | Path) -> Path:
        """Write an .npz with mu and sigma (the names that FID tools read), the features and the extractor's id."""
        m = self.moments
        mu, sigma, features = m.mean.numpy(), m.covariance.numpy(), self.features.numpy()

        def write(file: IO[bytes]) -> None:
            np.savez(
                file, mu=mu, sigma=sigma, features=features, count=m.count, extractor=self.extractor, images=self.images
            )

        return write_atomic(path, write)

    @classmethod
    def load(cls, path: str | Path) -> Reference:
        """Read what `save` wrote. ValueError for a file without these arrays."""
        with np.load(path, allow_pickle=False) as data:
            missing = {"mu", "sigma", "count", "features", "extractor"} - set(data.files)
            if missing:
                raise ValueError(f"{path}: not a reference file of ditkit, it lacks {', '.join(sorted(missing))}")
            count = int(data["count"])
            moments = Moments(count, torch.from_numpy(data["mu"]), torch.from_numpy(data["sigma"]) * (count - 1))
            images = str(data["images"]) if "images" in data.files else ""
            return cls(str(data["extractor"]), torch.from_numpy(data["features"]), moments, images)


def make_reference(extractor: Extractor, images: Images, progress: Progress | None = None) -> Reference:
    """The reference of real uint8 images (N, C, H, W), by the code path that generated images take too."""
    features = extract(extractor, images, progress=progress)
    return Reference(extractor.id, features, Moments.of(features), images_fingerprint(images))


def images_fingerprint(images: Images) -> str:
    """16 hex digits of the SHA-256 of uint8 images (N, C, H, W), shape included."""
    digest = hashlib.sha256(f"{len(images)} {tuple(images[0:1].shape[1:])}".encode())
    for start in range(0, len(images), 256):
        digest.update(images[start : start + 256].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
