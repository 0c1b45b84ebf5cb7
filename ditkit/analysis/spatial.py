"""Spatial structure of tokens: how alike the tokens of one image are, near, far, and within regions.

After iREPA (Singh et al., arXiv 2512.10794), from its text alone: LDS, local minus distant similarity; CDS, how fast
similarity falls with distance; RMSC, the spatial contrast. Its SRSS needs masks of regions; `region_score` is ours and
stands in its place. What the paper's text does not fix is ours as well: Euclidean distance in tokens, no pair of a
token with itself, near and far both half the shorter side, CDS by least squares over all pairs.
Shapes: B images, N = rows columns tokens, D width, P = N (N - 1) / 2 pairs, R whole distances 1 ... R.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

AT_ONCE = 1 << 24  # similarities that are held together


@dataclass(frozen=True)
class Pairs:
    """The pairs (i, j), i < j, of a grid's tokens. distance (P,): in tokens; ring (P,): rounded, less 1; side: shorter.

    rings: R, the number of whole distances.
    """

    i: Tensor
    j: Tensor
    distance: Tensor
    ring: Tensor
    rings: int
    side: int

    @classmethod
    def of(cls, grid: tuple[int, int], device: torch.device | None = None) -> Pairs:
        """All pairs of a grid (rows, columns). ValueError for a side of fewer than 3: no pair is near (LDS)."""
        rows, columns = grid
        if min(rows, columns) < 3:
            raise ValueError(f"spatial structure needs a grid of 3 x 3 tokens at least, got {rows} x {columns}")
        place = torch.cartesian_prod(torch.arange(rows, device=device), torch.arange(columns, device=device))
        i, j = torch.triu_indices(len(place), len(place), 1, device=device)
        distance = (place[i] - place[j]).double().square().sum(1).sqrt()
        ring = distance.round().long() - 1
        return cls(i, j, distance, ring, int(ring.max()) + 1, min(rows, columns))


@dataclass(frozen=True)
class Structure:
    """Of each image, float64. profile (B, R): mean similarity of tokens 1, 2, ... apart; the others (B,).

    lds: mean similarity below half the shorter side less that from there on. cds: fall of similarity over one shorter
    side. rmsc: root mean square distance of unit tokens from their mean, 0 (all alike) to 1. region: see region_score,
    NaN for an image without two regions, or where none were given.
    """

    lds: Tensor
    cds: Tensor
    rmsc: Tensor
    region: Tensor
    profile: Tensor

    @staticmethod
    def join(parts: list[Structure]) -> Structure:
        """The images of all parts."""
        return Structure(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Structure)))


def spatial_structure(tokens: Tensor, grid: tuple[int, int], regions: Tensor | None = None) -> Structure:
    """tokens (B, N, D) row-major on `grid`; regions (B, N) bool: which of two regions a token is in.

    Similarities are cosines of the tokens as they are (no mean removed). ValueError for tokens that do not fill the
    grid, and as `Pairs.of`.
    """
    if tokens.ndim != 3 or tokens.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"spatial structure: tokens {tuple(tokens.shape)} do not fill a grid of {grid[0]} x {grid[1]}")
    pairs = Pairs.of(grid, tokens.device)
    parts = []
    for rows in torch.arange(len(tokens)).split(max(1, AT_ONCE // len(tokens[0]) ** 2)):
        unit = F.normalize(tokens[rows].float(), dim=-1)
        alike = (unit @ unit.mT)[:, pairs.i, pairs.j].double()  # (b, P)
        near = pairs.distance < pairs.side / 2
        lds = alike[:, near].mean(1) - alike[:, ~near].mean(1)
        spread = (pairs.distance - pairs.distance.mean()) / pairs.side
        cds = -(alike @ spread) / (spread @ spread)
        rmsc = (unit - unit.mean(1, keepdim=True)).double().square().sum(-1).mean(1).sqrt()
        everywhere = torch.ones_like(alike)
        profile = by_ring(alike, pairs) / by_ring(everywhere, pairs)
        region = torch.full_like(lds, torch.nan) if regions is None else region_score(alike, regions[rows], pairs)
        parts.append(Structure(*(v.cpu() for v in (lds, cds, rmsc, region, profile))))
    return Structure.join(parts)


def by_ring(values: Tensor, pairs: Pairs) -> Tensor:
    """Sums (B, R) of values (B, P) over the pairs of each whole distance."""
    total = torch.zeros(len(values), pairs.rings, dtype=values.dtype, device=values.device)
    return total.index_add_(1, pairs.ring, values)


def region_score(alike: Tensor, regions: Tensor, pairs: Pairs) -> Tensor:
    """(B,): how much more alike tokens of one region are than tokens of different regions at the same distance; ours.

    alike (B, P), regions (B, N) bool. For each whole distance with n pairs inside regions and m across, the difference
    of the means counts n m / (n + m) (Mantel and Haenszel's weights): tokens that are alike because they are close
    score 0. NaN where no distance has both.
    """
    same = (regions[:, pairs.i] == regions[:, pairs.j]).to(alike)
    inside, across = by_ring(same, pairs), by_ring(1 - same, pairs)
    weight = inside * across / (inside + across)
    within = by_ring(alike * same, pairs) / inside.clamp(min=1)
    between = by_ring(alike * (1 - same), pairs) / across.clamp(min=1)
    total = weight.sum(1)
    return torch.where(total > 0, (weight * (within - between)).sum(1) / total, torch.nan)


def colour_regions(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, N) bool: the two regions of images (B, C, H, W) that the mean colours of their grid cells fall into.

    Colours are laid on their principal axis and cut where the variance between both parts is largest (Otsu 1979): the
    exact 2-means of a line. No network has a say in it. All False for an image of one colour.
    """
    cells = F.adaptive_avg_pool2d(images.double(), grid).flatten(2).mT  # (B, N, C)
    centred = cells - cells.mean(1, keepdim=True)
    axis = torch.linalg.eigh(centred.mT @ centred)[1][:, :, -1:]  # (B, C, 1)
    place = (centred @ axis).squeeze(2)
    ordered = place.sort(1).values
    n = ordered.shape[1]
    below = torch.arange(1, n, device=images.device, dtype=torch.float64)
    sums = ordered.cumsum(1)[:, :-1]
    between = (sums / below + sums / (n - below)).square() * below * (n - below)  # the sum of all is 0
    cut = ordered.gather(1, between.argmax(1, keepdim=True))
    varied = ordered[:, -1:] - ordered[:, :1] > 1e-9
    return (place > cut) & varied
