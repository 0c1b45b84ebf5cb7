"""How alike two representations of the same images are: CKNNA, CKA, and shares of common nearest neighbours.

Every score takes two sets of features a (N, D) and b (N, D'), row i of both of the same image, as arrays or tensors,
computes in float64 (where the tensors lie, if that is a CUDA device) and returns a float. None depends on the order of
the images, on a rotation of either space, or on the scale of either. Kernels are inner products k_ij = <a_i, a_j>;
they are made by blocks of rows and never stored, so that N = 10,000 (REPA's number) needs megabytes.

CKNNA is REPA's measure (arXiv 2410.06940, eq. 21-24; Huh et al., arXiv 2405.07987, appendix A): the kernel alignment
Align(K, L) = 1/(n-1)^2 sum_ij alpha_ij (k_ij - mean_l k_il)(l_ij - mean_l l_il), divided by sqrt(Align(K, K) Align(L,
L)), where alpha_ij is 1 if j != i is among the k nearest neighbours of i in both spaces. What is computed is the
reference implementation's form of it, which all published numbers have: the kernels are masked first, the masks (of
row i, so not symmetric) with their own diagonal left out, and centred afterwards, by the unbiased HSIC of the masked
kernels, each self term under its own mask. The reference adds 1e-6 to the denominator; here that is done for the RBF
kernel only, whose values have a scale of their own. Without it identical features score 1, and scale does not matter,
even where inner products are small; recorded numbers of the reference stay within their tolerance of 2e-4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Array = np.ndarray | Tensor
BLOCK = 4_000_000  # numbers of a kernel that exist at once
EPSILON = 1e-6  # the reference's, in the denominator


@dataclass(frozen=True)
class Neighbours:
    """index (N, k) int64: the k rows with the largest inner products with each row, nearest first; value: those."""

    index: Tensor
    value: Tensor


@dataclass(frozen=True)
class Sums:
    """All that an HSIC needs of two kernels K and L (n, n): cross = sum_ij K_ij L_ji, and sums of rows and columns."""

    n: int
    cross: Tensor
    rows: tuple[Tensor, Tensor]
    columns: tuple[Tensor, Tensor]

    @property
    def unbiased(self) -> Tensor:
        """The unbiased estimator of Song et al. (2012, eq. 5), for kernels with zero diagonals; needs n >= 4."""
        n, (k, l) = self.n, self.rows
        both = k.sum() * l.sum() / ((n - 1) * (n - 2))
        return (self.cross + both - 2 * (self.columns[0] @ l) / (n - 2)) / (n * (n - 3))

    @property
    def biased(self) -> Tensor:
        """trace(K H L H) with H = 1 - 11'/n, not divided by (n - 1)^2."""
        (k, l), (k_columns, l_columns) = self.rows, self.columns
        return self.cross - (k @ l_columns + k_columns @ l) / self.n + k.sum() * l.sum() / self.n**2


def cknna(a: Array, b: Array, k: int = 10, unbiased: bool = True) -> float:
    """Centred kernel nearest-neighbour alignment: 1 for identical features, about 0 for unrelated ones.

    As in the reference, cknna(a, b) and cknna(b, a) differ slightly if unbiased, for the masks are not symmetric.
    unbiased=False: a row may be its own neighbour, and trace(KHLH) stands for the unbiased HSIC. ValueError for other
    numbers of rows, fewer than 4, k below 2 or above N - 1 (N if biased), and for features that do not vary.
    """
    a, b = same_images(a, b)
    low, high = 2, len(a) - unbiased
    if not low <= k <= high:
        raise ValueError(f"cknna: k is {k}, and {len(a)} images allow {low} to {high}")
    return cknna_of(nearest(a, k, itself=not unbiased), nearest(b, k, itself=not unbiased), unbiased)


def cknna_of(a: Neighbours, b: Neighbours, unbiased: bool = True) -> float:
    """CKNNA from the nearest neighbours in both spaces alone (of `nearest`, with itself=True if biased).

    Outside the masks both kernels are zero, so the neighbours' inner products are all that it depends on.
    """
    parts = [_masked(*pair) for pair in ((a, b), (a, a), (b, b))]
    both, own, other = (part.unbiased if unbiased else part.biased for part in parts)
    return _ratio(both, own, other, "cknna")


def cka(
    a: Array, b: Array, unbiased: bool = False, kernel: Literal["ip", "rbf"] = "ip", sigma: float = 1.0
) -> float:  # fmt: skip
    """Centred kernel alignment HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) (Kornblith et al., arXiv 1905.00414, eq. 2).

    kernel ip: inner products, with memory and time in D D', not N^2; rbf: exp(-|x - y|^2 / (2 sigma^2)), which depends
    on scale. unbiased: the unbiased HSIC; the biased one is high where D is not far below N. ValueError as `cknna`.
    """
    a, b = same_images(a, b)
    sums = _inner_sums if kernel == "ip" else _rbf_sums
    parts = [sums(x, y, unbiased, sigma) for x, y in ((a, b), (a, a), (b, b))]
    both, own, other = (part.unbiased if unbiased else part.biased for part in parts)
    return _ratio(both, own, other, "cka", EPSILON if kernel == "rbf" else 0.0)


def mutual_knn(a: Array, b: Array, k: int = 10) -> float:
    """Mean share of an image's k nearest neighbours in one space that are so in the other too (Huh et al., eq. 5)."""
    return mutual_knn_of(*_both_nearest(a, b, k, "mutual_knn"))


def mutual_knn_of(a: Neighbours, b: Neighbours) -> float:
    """`mutual_knn` from the nearest neighbours of `nearest`."""
    k = a.index.shape[1]
    return len(_shared(a, b)[0]) / (len(a.index) * k)


def cycle_knn(a: Array, b: Array, k: int = 10) -> float:
    """Share of images that are among the k nearest in a of one of their own k nearest in b."""
    first, second = _both_nearest(a, b, k, "cycle_knn")
    rows = torch.arange(len(first.index), device=first.index.device)
    hits = torch.zeros_like(rows, dtype=torch.bool)
    for column in second.index.unbind(1):
        hits |= (first.index[column] == rows[:, None]).any(1)
    return hits.double().mean().item()


def lcs_knn(a: Array, b: Array, k: int = 10) -> float:
    """Mean length, 0 to k, of the longest common subsequence of an image's k neighbours in both, nearest first."""
    first, second = _both_nearest(a, b, k, "lcs_knn")
    length = torch.zeros(len(first.index), k + 1, dtype=torch.int64, device=first.index.device)
    for mine in first.index.unbind(1):
        before = length.clone()
        for j, other in enumerate(second.index.unbind(1), start=1):
            longer = torch.maximum(before[:, j], length[:, j - 1])
            length[:, j] = torch.where(mine == other, before[:, j - 1] + 1, longer)
    return length[:, k].double().mean().item()


def hsic_unbiased(k: Array, l: Array) -> float:
    """The unbiased HSIC of two kernels (n, n), whose diagonals do not count. ValueError unless n >= 4."""
    k, l = (kernel - torch.diag(kernel.diagonal()) for kernel in same_images(k, l))
    return _dense_sums(k, l).unbiased.item()


def hsic_biased(k: Array, l: Array) -> float:
    """trace(K H L H) of two kernels (n, n), as the reference has it: not divided by (n - 1)^2."""
    return _dense_sums(*same_images(k, l)).biased.item()


def clamp_outliers(features: Array, q: float = 0.95, exact: bool = False) -> Tensor:
    """Features (N, D) clamped at +-v, v the mean of the rows' q-quantiles of |x|; exact: the quantile of all of |x|."""
    x = _read(features, "features")
    size = x.abs()
    value = size.flatten().sort().values[int(q * x.numel())] if exact else torch.quantile(size, q, dim=1).mean()
    return x.clamp(-value, value)


def normalised(features: Array) -> Tensor:
    """Rows of length 1, float64: what REPA's CKNNA is of, so that neighbours are the most alike by cosine."""
    return F.normalize(_read(features, "features"), dim=1)


def platonic(features: Array, q: float = 0.95) -> Tensor:
    """The preparation of Huh et al.'s pipeline: outliers clamped at the q-quantile, then rows of length 1."""
    return normalised(clamp_outliers(features, q))


def nearest(features: Array, k: int, itself: bool = False) -> Neighbours:
    """The k nearest rows of each row by inner product, made by blocks of rows; itself: a row may be its own.

    ValueError where there are not as many.
    """
    x = _read(features, "features")
    if not 1 <= k <= len(x) - (not itself):
        raise ValueError(f"nearest: k is {k}, and there are {len(x)} images")
    index = torch.empty(len(x), k, dtype=torch.int64, device=x.device)
    value = x.new_empty(len(x), k)
    for rows in _blocks(len(x), x.device):
        kernel = x[rows] @ x.T
        if not itself:
            kernel[torch.arange(len(rows), device=x.device), rows] = -math.inf
        torch.topk(kernel, k, dim=1, out=(value[rows[0] : rows[-1] + 1], index[rows[0] : rows[-1] + 1]))
    return Neighbours(index, value)


def same_images(a: Array, b: Array) -> tuple[Tensor, Tensor]:
    """Both as float64 tensors on one device. ValueError for other shapes, unequal N, N below 4, NaN or infinite."""
    a, b = _read(a, "a"), _read(b, "b")
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} rows and b has {len(b)}: row i of both must be of the same image")
    if len(a) < 4:
        raise ValueError(f"{len(a)} images are too few to compare representations; 4 are the least")
    return a, b.to(a.device)


# ------------------------------------------------------------------------------------------------ inside


def _read(values: Array, name: str) -> Tensor:
    found = torch.as_tensor(values).detach()
    found = found.to(found.device if found.device.type == "cuda" else "cpu", torch.float64)
    if found.ndim != 2 or not found.numel():
        raise ValueError(f"{name}: expected features (N, D), got shape {tuple(found.shape)}")
    if not bool(found.isfinite().all()):
        raise ValueError(f"{name}: holds NaN or infinite features")
    return found


def _ratio(between: Tensor, a: Tensor, b: Tensor, name: str, epsilon: float = 0.0) -> float:
    if not (a > 0 and b > 0):
        which = "b" if a > 0 else "a"
        raise ValueError(f"{name}: undefined, for {which} has no structure of its own (features that hardly vary?)")
    return (between / (torch.sqrt(a) * torch.sqrt(b) + epsilon)).item()


def _blocks(n: int, device: torch.device) -> Iterator[Tensor]:
    """Row numbers, so many that a block of an (n, n) kernel stays small."""
    yield from torch.arange(n, device=device).split(max(1, BLOCK // n))


def _both_nearest(a: Array, b: Array, k: int, name: str) -> tuple[Neighbours, Neighbours]:
    a, b = same_images(a, b)
    if not 1 <= k < len(a):
        raise ValueError(f"{name}: k is {k}, and {len(a)} images allow 1 to {len(a) - 1}")
    return nearest(a, k), nearest(b, k)


def _places(of: Neighbours) -> tuple[Tensor, Tensor]:
    """Sorted flat places i n + j of the neighbours, and their values."""
    n = len(of.index)
    rows = torch.arange(n, device=of.index.device)[:, None]
    place, order = (rows * n + of.index).flatten().sort()
    return place, of.value.flatten()[order]


def _find(places: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Of each `wanted` number whether it is in the sorted `places`, and where."""
    at = torch.searchsorted(places, wanted).clamp(max=len(places) - 1)
    return places[at] == wanted, at


def _shared(a: Neighbours, b: Neighbours) -> tuple[Tensor, Tensor, Tensor]:
    """Sorted flat places of the neighbours in both spaces, and both values there."""
    (mine, mine_values), (other, other_values) = _places(a), _places(b)
    there, at = _find(other, mine)
    return mine[there], mine_values[there], other_values[at[there]]


def _masked(a: Neighbours, b: Neighbours) -> Sums:
    """Sums of both kernels, which are zero but for neighbours in both spaces."""
    n = len(a.index)
    place, k, l = _shared(a, b)
    row, column = place // n, place % n
    there, at = _find(place, column * n + row) if len(place) else (torch.zeros_like(row, dtype=torch.bool), row)

    def total(index: Tensor, values: Tensor) -> Tensor:
        return values.new_zeros(n).index_add_(0, index, values)

    cross = (k[there] * l[at[there]]).sum()
    return Sums(n, cross, (total(row, k), total(row, l)), (total(column, k), total(column, l)))


def _symmetric(n: int, cross: Tensor, k: Tensor, l: Tensor) -> Sums:
    return Sums(n, cross, (k, l), (k, l))


def _dense_sums(k: Tensor, l: Tensor) -> Sums:
    if not k.shape == l.shape == (len(k), len(k)):
        raise ValueError(f"kernels must be (n, n) both, got {tuple(k.shape)} and {tuple(l.shape)}")
    return Sums(len(k), (k * l.T).sum(), (k.sum(1), l.sum(1)), (k.sum(0), l.sum(0)))


def _inner_sums(a: Tensor, b: Tensor, hollow: bool, sigma: float) -> Sums:
    """Of centred features, which no HSIC can tell from the given ones: their kernels' rows sum to 0.

    hollow: without the diagonals.
    """
    a, b = a - a.mean(0), b - b.mean(0)
    width = max(1, BLOCK // b.shape[1])
    cross = torch.stack([(part.T @ b).square().sum() for part in a.split(width, dim=1)]).sum()
    k, l = (x.square().sum(1) if hollow else x.new_zeros(len(x)) for x in (a, b))
    return _symmetric(len(a), cross - k @ l, -k, -l)


def _rbf_sums(a: Tensor, b: Tensor, hollow: bool, sigma: float) -> Sums:
    n = len(a)
    cross, k_rows, l_rows = a.new_zeros(()), a.new_zeros(n), a.new_zeros(n)
    for rows in _blocks(n, a.device):
        k, l = (torch.exp(torch.cdist(x[rows], x).square() / (-2 * sigma**2)) for x in (a, b))
        if hollow:
            own = torch.arange(len(rows), device=a.device), rows
            k[own] = l[own] = 0
        cross += (k * l).sum()
        k_rows[rows], l_rows[rows] = k.sum(1), l.sum(1)
    return _symmetric(n, cross, k_rows, l_rows)
