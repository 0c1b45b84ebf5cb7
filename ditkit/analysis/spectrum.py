"""Frequency content of maps: power by radius of a two-dimensional Fourier transform.

Frequencies are in units of Nyquist's (half a cycle a sample): along an axis they end at 1, in the corners at sqrt 2.
Maps (B, C, h, w) are latents, images, or tokens laid on their grid; power is per sample and channel, float64.
Shares leave the zero frequency (each channel's mean) out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ditkit.analysis.ratio import Ratio

HALF = 0.5  # of Nyquist's frequency: power above it is high


def power(maps: Tensor) -> Tensor:
    """|FFT|^2 (B, h, w) of each map, mean over channels; its sum is the mean over channels of sum x^2 (Parseval)."""
    return torch.fft.fft2(maps.double(), norm="ortho").abs().square().mean(1)


def on_grid(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens (B, N, D), row-major, as maps (B, D, rows, columns)."""
    return tokens.mT.unflatten(2, grid)


def radii(height: int, width: int) -> Tensor:
    """(h, w) float64: the distance of each frequency from 0."""
    rows, columns = (2 * torch.fft.fftfreq(side, dtype=torch.float64) for side in (height, width))
    return (rows[:, None].square() + columns.square()).sqrt()


@dataclass(frozen=True)
class Radial:
    """A radially averaged spectrum: frequency (K,), power (K,), count (K,) of the frequencies in each ring."""

    frequency: Tensor
    power: Tensor
    count: Tensor


def radial(powers: Tensor) -> Radial:
    """Mean power of each ring of one spectrum (h, w); rings are one cycle of the shorter side wide, the first is 0.

    power * count sums to the power of the whole.
    """
    height, width = powers.shape
    radius = radii(height, width)
    ring = (radius * min(height, width) / 2).round().long().flatten()
    rings = int(ring.max()) + 1
    sums = torch.zeros(3, rings, dtype=torch.float64)
    sums.index_add_(1, ring, torch.stack([powers.double().cpu().flatten(), radius.flatten(), torch.ones(ring.shape)]))
    return Radial(sums[1] / sums[2], sums[0] / sums[2], sums[2])


def high_share(powers: Tensor) -> Ratio:
    """The share of the power (B, h, w) above half of Nyquist's frequency."""
    radius = radii(*powers.shape[1:]).to(powers.device)
    return Ratio.of(powers[:, radius > HALF + 1e-9].sum(1), powers[:, radius > 0].sum(1))


def centroid(powers: Tensor) -> Ratio:
    """The mean frequency, weighted by power (B, h, w)."""
    radius = radii(*powers.shape[1:]).to(powers.device)
    return Ratio.of((powers * radius).sum((1, 2)), powers[:, radius > 0].sum(1))


def white(height: int, width: int) -> tuple[float, float]:
    """(high share, centroid) of white noise at this size: what no structure at all gives."""
    flat = torch.ones(1, height, width, dtype=torch.float64)
    return high_share(flat).value, centroid(flat).value
