"""Real images as an extractor sees them: what generated images are held against."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ditkit.evaluation.features import FewSamples, Images, Moments, Progress, frechet, views
from ditkit.evaluation.metrics.frechet import frechet_distance
from ditkit.evaluation.metrics.kernel import kernel_distance
from ditkit.evaluation.metrics.mind import mind
from ditkit.evaluation.metrics.precision_recall import precision_recall
from ditkit.evaluation.protocols import Rules
from ditkit.protocols import Extractor


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and covariance (D, D), float64, as a file states them; count 0: it does not tell of how many images."""

    mean: Tensor
    covariance: Tensor
    count: int = 0

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify them (to 9 digits)."""
        values = (*self.mean.tolist(), *self.covariance.flatten().tolist())
        return hashlib.sha256(" ".join([f"{self.count}", *(f"{v:.9g}" for v in values)]).encode()).hexdigest()[:16]


@dataclass
class Reference:
    """Real images in an extractor's space.

    extractor: its id. features (N, D): no rows where only statistics are known. moments: of all real images, which may
    be more than those of the features; spatial: likewise, of what sFID looks at. images: a fingerprint of the images,
    or of the file that brought them. resize: how they came to their size, where that is known. notes: what to doubt, a
    line each.
    """

    extractor: str
    features: Tensor
    moments: Moments | Statistics
    images: str = ""
    spatial: Moments | Statistics | None = None
    notes: tuple[str, ...] = ()
    resize: str = ""

    @property
    def fingerprint(self) -> str:
        """Identifies the real images, whatever device and thread count looked at them; else (images "") the moments."""
        return self.images or self.moments.fingerprint

    @property
    def real_moments(self) -> Moments:
        """The moments of the real images; where a file tells no count, as if of two, which the covariance is not."""
        return _as_moments(self.moments)

    @property
    def real_spatial(self) -> Moments:
        """The same of the spatial moments. ValueError where the reference has none."""
        return _as_moments(self._spatial())

    def _spatial(self) -> Moments | Statistics:
        if self.spatial is None:
            raise ValueError(f"reference {self.fingerprint} has no spatial moments (mu_s, sigma_s): no sFID against it")
        return self.spatial

    def frechet(self, fake: Moments) -> float:
        """Frechet distance of generated moments to the real ones; warns (FewSamples) where N does not exceed D."""
        return _distance(fake, self.moments)

    def spatial_frechet(self, fake: Moments) -> float:
        """The same of spatial moments (sFID, Nash et al. 2021). ValueError where the reference has none."""
        return _distance(fake, self._spatial())

    def halves(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        """A fixed random cut of the real features into two halves."""
        order = torch.from_numpy(np.random.Generator(np.random.Philox(seed)).permutation(len(self.features)))
        return self.features[order[: len(order) // 2]], self.features[order[len(order) // 2 :]]

    def floor(self, seed: int = 0, rules: Rules | None = None) -> dict[str, float]:
        """What one half of the real images scores against the other: about the best that a sampler can reach.

        By the same rules as the samples. No Frechet distance where the moments are of more images than the features: a
        distance between halves of the latter has another N and another reference. Empty without features.
        """
        if not len(self.features):
            return {}
        rules = rules or Rules()
        a, b = self.halves(seed)
        covered = precision_recall(a, b, rules.neighbours, rule=rules.distances)
        whole = self.moments.count == len(self.features)
        return {
            **({"frechet": frechet(Moments.of(a), Moments.of(b))} if whole else {}),
            "kernel": kernel_distance(a, b, rules.subsets, rules.subset_size),
            "mind": mind(a, b),
            "precision": covered.precision,
            "recall": covered.recall,
        }


def statistics_arrays(reference: Reference) -> dict[str, np.ndarray]:
    """A reference as named arrays: mu, sigma, (mu_s, sigma_s,) features, count, extractor, images."""
    m, s = reference.moments, reference.spatial
    spatial = {} if s is None else {"mu_s": s.mean.numpy(), "sigma_s": s.covariance.numpy()}
    return {
        "mu": m.mean.numpy(),
        "sigma": m.covariance.numpy(),
        **spatial,
        "features": reference.features.numpy(),
        "count": np.array(m.count),
        "extractor": np.array(reference.extractor),
        "images": np.array(reference.images),
    }


def make_reference(extractor: Extractor, images: Images, progress: Progress | None = None) -> Reference:
    """The reference of real uint8 images (N, C, H, W), by the code path that generated images take too."""
    seen = views(extractor, images, progress=progress)
    spatial = None if seen.spatial is None else Moments.of(seen.spatial)
    return Reference(extractor.id, seen.pooled, Moments.of(seen.pooled), images_fingerprint(images), spatial)


def _as_moments(real: Moments | Statistics) -> Moments:
    return real if isinstance(real, Moments) else Moments(2, real.mean, real.covariance)


def _distance(fake: Moments, real: Moments | Statistics) -> float:
    if isinstance(real, Moments):
        return frechet(fake, real)
    d = len(real.mean)
    for count in (fake.count, real.count or d + 1):
        if count <= d:
            warnings.warn(f"Frechet distance from {count} samples of {d} features is biased", FewSamples, stacklevel=3)
    return frechet_distance(fake.mean, fake.covariance, real.mean, real.covariance)


def images_fingerprint(images: Images) -> str:
    """16 hex digits of the SHA-256 of uint8 images (N, C, H, W), shape included."""
    digest = hashlib.sha256(f"{len(images)} {tuple(images[0:1].shape[1:])}".encode())
    for start in range(0, len(images), 256):
        digest.update(images[start : start + 256].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
