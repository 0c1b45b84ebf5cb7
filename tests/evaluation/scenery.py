"""What tests of scoring share: a small network that calls itself ADM's Inception, and files as ADM writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ditkit.protocols import Features, Views


class Eye:
    """Extractor and ViewingExtractor of random projections: 5 features, 6 spatial ones, 4 classes."""

    id, width = "adm-inception-eye", 5

    def __init__(self) -> None:
        draws = torch.Generator().manual_seed(0)
        self.weights = {name: torch.randn(n, 16, generator=draws) for name, n in (("p", 5), ("s", 6), ("c", 4))}

    def _look(self, images: torch.Tensor, name: str) -> torch.Tensor:
        x = torch.nn.functional.adaptive_avg_pool2d(images.float().mean(1, keepdim=True), (4, 4)).flatten(1) / 64 - 1
        return (x[:, None] * self.weights[name]).sum(2).relu()

    def __call__(self, images: torch.Tensor) -> Features:
        pooled = self._look(images, "p")
        return Features(pooled[:, None], pooled, (1, 1))

    def probabilities(self, images: torch.Tensor, batch: int = 128) -> torch.Tensor:
        return self._look(images, "c").softmax(1)

    def views(self, images: torch.Tensor) -> Views:
        return Views(self._look(images, "p"), self._look(images, "s"), self.probabilities(images))


def write_adm(path: Path, n: int = 40, size: tuple[int, int] = (8, 8), seed: int = 0) -> Path:
    """A file with the arrays of VIRTUAL_imagenet256_labeled.npz: n images, moments of others (a training set)."""
    rng = np.random.default_rng(seed)
    images, others = (rng.integers(0, high, (count, *size, 3), dtype=np.uint8) for count, high in ((n, 256), (90, 200)))
    seen = Eye().views(torch.from_numpy(others).permute(0, 3, 1, 2))
    arrays = {}
    for values, mean, covariance in ((seen.pooled, "mu", "sigma"), (seen.spatial, "mu_s", "sigma_s")):
        arrays[mean], arrays[covariance] = (
            values.double().mean(0).numpy(),
            np.cov(values.double().numpy(), rowvar=False),
        )
    np.savez(path, arr_0=images, **arrays)
    return path
