"""CMMD (Jayasumana et al. 2024, "Rethinking FID", arXiv 2401.09603): Gaussian-kernel distance of CLIP embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from ditkit.evaluation.metrics.arrays import Array, Progress, Steps, Terms, count_pairs, two_sets
from ditkit.evaluation.metrics.kernel import row_sums

SIGMA, SCALE = 10.0, 1000.0  # the paper's bandwidth, and its factor for readable numbers


def cmmd_terms(
    real: Array, fake: Array, sigma: float = SIGMA, rows: int = 2048, progress: Progress | None = None
) -> Terms:
    """`cmmd`, with the influence of each fake on it (von Mises 1947), from which `terms_interval` takes its limits."""
    a, b = (torch.nn.functional.normalize(x, dim=1) for x in two_sets(real, fake))
    n, m = len(a), len(b)
    blocks = count_pairs(n, None, rows) + count_pairs(m, None, rows) + count_pairs(m, n, rows)
    steps = Steps(progress, blocks)

    def below_one(u: Tensor, v: Tensor) -> Tensor:
        """The kernel less 1: all values lie just below it, so that what differs would be lost in float32."""
        return torch.expm1((2 - 2 * u @ v.T).clamp_(min=0).mul_(-0.5 / sigma**2))

    among_real = row_sums(a, None, below_one, rows, steps).mean() / n
    among_fake = row_sums(b, None, below_one, rows, steps) / m
    to_real = row_sums(b, a, below_one, rows, steps) / n
    value = among_real + among_fake.mean() - 2 * to_real.mean()
    witness = 2 * (among_fake - to_real)
    return Terms(SCALE * max(0.0, value.item()), (SCALE * (witness - witness.mean())).cpu())


def cmmd(real: Array, fake: Array, sigma: float = SIGMA, rows: int = 2048, progress: Progress | None = None) -> float:
    """1000 times the squared maximum mean discrepancy of embeddings real (N, D) and fake (M, D); 0 for equal sets.

    As the paper has it: kernel exp(-|u - v|^2 / (2 sigma^2)), sigma 10, CLIP embeddings brought to unit length (done
    here), and the biased estimate, means over all pairs with a sample's own among them. Its numbers are of CLIP
    ViT-L/14 at 336 pixels. One block of `rows` x `rows` is in memory at a time.
    """
    return cmmd_terms(real, fake, sigma, rows, progress).value
