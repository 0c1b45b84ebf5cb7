"""Tokens as pictures: their first principal components as colours."""

from __future__ import annotations

import torch
from torch import Tensor

TAILS = 0.01  # share of tokens at either end that the colours do not resolve


def principal_colours(tokens: Tensor) -> tuple[Tensor, list[float]]:
    """tokens (B, N, D), D >= 3 -> (colours (B, N, 3) in [0, 1], shares of the variance (3)); all images together.

    Components of the centred tokens by falling variance, in float64; each points to where its weight of largest size
    is positive, so that signs do not hang on the solver. Each is scaled so that all but TAILS of the tokens at either
    end span [0, 1]; a component without variance is 0.5.
    """
    if tokens.ndim != 3 or tokens.shape[2] < 3:
        raise ValueError(f"principal colours: tokens (B, N, D) with D of 3 or more, got {tuple(tokens.shape)}")
    x = tokens.double().flatten(0, 1)
    x = x - x.mean(0)
    variance, axes = torch.linalg.eigh(x.T @ x / len(x))
    total = float(variance.clamp(min=0).sum())
    variance, axes = variance.flip(0)[:3], axes.flip(1)[:, :3]
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    place = x @ axes
    low, high = torch.quantile(place, torch.tensor([TAILS, 1 - TAILS], dtype=torch.float64, device=x.device), dim=0)
    flat = variance <= 1e-12 * total
    colours = torch.where(flat, 0.5, (place - low) / torch.where(flat, 1.0, high - low).clamp(min=1e-300))
    shares = [float(v) / total if total > 0 else 0.0 for v in variance.clamp(min=0)]
    return colours.clamp(0, 1).unflatten(0, tokens.shape[:2]), shares
