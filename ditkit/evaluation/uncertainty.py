"""Confidence intervals (95 %) beside every score, and what a gap between two scores is worth.

What limits fit which score, all from the samples that were scored, with the reference taken as given:

- Frechet distances, spatial too: `frechet_interval`, a delete-a-group jackknife on moments, at any size.
- Precision, agreement: `share_interval` over the fakes.
- Recall: `recall_interval`, a delete-a-group jackknife in one pass. A share of the real samples would not do: other
  fakes move it more (such limits held the truth 8 times in 10 where 95 in 100 were meant).
- Kernel distance: `kernel_interval`. CMMD, Inception Score: `terms_interval`. Both from per-sample influences.
- MIND: `mind_interval`. PSNR, SSIM: `mean_interval`, by the bootstrap, as may be anything smooth in its samples.
- Trainings or sampling seeds: `seed_spread`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import special
from torch import Tensor

from ditkit.evaluation.features import Moments
from ditkit.evaluation.metrics.arrays import Array, Progress, Steps, as_float, as_float64
from ditkit.evaluation.metrics.frechet import FrechetTo
from ditkit.evaluation.metrics.kernel import KernelName, kernel_influences
from ditkit.evaluation.metrics.mind import mind_without_groups
from ditkit.evaluation.metrics.precision_recall import Rule
from ditkit.evaluation.metrics.recall_groups import recall_without_groups

GROUPS = 20
NORMAL = 1.959964  # 97.5 % point of the normal distribution
LOTTERY = 0.013  # gaps of FID below this share are inconclusive between trainings (The FID Lottery, arXiv 2606.20536)
RETRAINING = 3.2  # how much more than other samples another training moves FID (same paper)

Interval = tuple[float, float]


def student(degrees: float, comparisons: int = 1) -> float:
    """Half width in standard errors of 95 % limits by Student's t distribution (inf degrees: the normal one).

    comparisons: of limits that hold all together (Bonferroni).
    """
    return float(special.stdtrit(degrees, 1 - 0.025 / comparisons))


def _around(value: float, half: float, low: float, high: float) -> Interval | None:
    """Limits within [low, high]; None where no spread was measured, which is no certainty."""
    return (max(low, value - half), min(high, value + half)) if half > 1e-12 * abs(value) else None


def _groups(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """A random order of n rows, and the group, of 20, of each place in it."""
    order = torch.from_numpy(np.random.Generator(np.random.Philox(seed)).permutation(n))
    return order, torch.arange(n) % GROUPS


def _spread(values: Sequence[float]) -> float:
    """Standard error from the values that are left when each group is deleted in turn (Kott 2001)."""
    left = np.array(values)
    return math.sqrt((len(left) - 1) / len(left) * np.square(left - left.mean()).sum())


def jackknife_error(
    statistic: Callable[[Tensor], float], n: int, seed: int = 0, progress: Progress | None = None
) -> float:
    """Standard error of statistic(rows): the delete-a-group jackknife with 20 random groups (Kott 2001).

    rows: the n - n / 20 kept row numbers, int64. Unlike a bootstrap it never repeats a sample (which would be its own
    nearest neighbour, and breaks kernels and recall), and a bias that depends on the number of samples drops out.
    """
    order, group = _groups(n, seed)
    steps, values = Steps(progress, GROUPS), []
    for g in range(GROUPS):
        values.append(statistic(order[group != g]))
        steps.step()
    return _spread(values)


def jackknife_interval(
    value: float,
    statistic: Callable[[Tensor], float],
    n: int,
    low: float = -math.inf,
    high: float = math.inf,
    progress: Progress | None = None,
) -> Interval | None:
    """Limits around `value`, kept within [low, high], what the metric can be.

    None for fewer than 100 samples, and where no group changes the value: it measured no spread, which is no certainty.
    """
    if n < 5 * GROUPS:
        return None
    return _around(value, student(GROUPS - 1) * jackknife_error(statistic, n, progress=progress), low, high)


def frechet_interval(
    value: float, features: Array, reference: Moments, seed: int = 0, progress: Progress | None = None
) -> Interval | None:
    """Limits of the Frechet distance `value` from features (N, D) to a reference: `jackknife_interval`, at any size.

    The moments without a group are those of all, less the group's own (`Moments.without`), and the reference's root is
    made once: 20 eigenvalue problems of size D and two passes over the features, whatever N. The value itself stays: it
    is biased upwards by the number of samples, which both sides of a comparison share. None for fewer than 100 samples.
    """
    x = as_float(torch.as_tensor(features).cpu(), "features")
    if len(x) < 5 * GROUPS:
        return None
    order, group = _groups(len(x), seed)
    distance = FrechetTo(reference.mean, reference.covariance)
    total, steps, values = Moments.of(x), Steps(progress, GROUPS), []
    for g in range(GROUPS):
        rest = total.without(Moments.of(x[order[group == g]]))
        values.append(distance(rest.mean, rest.covariance))
        steps.step()
    return _around(value, student(GROUPS - 1) * _spread(values), 0.0, math.inf)


def mind_interval(
    value: float, real: Array, fake: Array, progress: Progress | None = None, projections: int = 256
) -> Interval | None:
    """Limits of MIND by a delete-a-group jackknife on some directions, which counts the real set as a sample too.

    None for fewer than 100 samples in the smaller set.
    """
    if min(len(real), len(fake)) < 5 * GROUPS:
        return None
    values = mind_without_groups(real, fake, GROUPS, projections, progress=progress)
    return _around(value, student(GROUPS - 1) * _spread(values), 0.0, math.inf)


def share_interval(share: float, n: int) -> Interval:
    """Limits of a share of n independent samples (Wilson 1927); also right at 0 and 1."""
    z = 1.96
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def recall_interval(
    value: float, real: Array, fake: Array, k: int = 3, rule: Rule = "float64", progress: Progress | None = None
) -> Interval | None:
    """Limits of the recall `value` of features real (N, D) and fake (M, D): `jackknife_interval`, at any size.

    It costs about as much as `precision_recall` itself. Where no group changes it, at 0 and 1, the limits of a share of
    the real samples are all that is known. None for fewer than 100 fakes.
    """
    if len(fake) < 5 * GROUPS:
        return None
    order, group = _groups(len(fake), 0)
    label = torch.empty_like(group)
    label[order] = group
    half = student(GROUPS - 1) * _spread(recall_without_groups(real, fake, label, k, rule=rule, progress=progress))
    return _around(value, half, 0.0, 1.0) or share_interval(value, len(real))


def kernel_interval(
    values: Array,
    real: Array,
    fake: Array,
    name: KernelName = "polynomial",
    sigma: float = 10.0,
    most: int = 10_000,
    progress: Progress | None = None,
) -> Interval | None:
    """Limits of the mean of `kernel_distances` values (S,) of features real (N, D) and fake (M, D).

    Two parts of its variance: other fakes, var(influences) / M, however many of them a subset holds, and the draw of
    S subsets, var(values) / S. Influences are of `most` random samples of each side at most. None for fewer than 100
    fakes.
    """
    v = as_float64(values, "values", 1)
    if len(fake) < 5 * GROUPS:
        return None
    some = [x[_groups(len(x), 0)[0][:most]] if len(x) > most else x for x in map(torch.as_tensor, (real, fake))]
    variance = kernel_influences(some[0], some[1], name, sigma, progress=progress).var().item() / len(fake)
    drawn = v.var().item() / len(v) if len(v) > 1 else 0.0
    return _around(v.mean().item(), NORMAL * math.sqrt(variance + drawn), -math.inf, math.inf)


def terms_interval(value: float, influence: Array, low: float = -math.inf, high: float = math.inf) -> Interval | None:
    """Limits of a score of N samples from how much each one moves it, influence (N,) (infinitesimal jackknife).

    For `cmmd_terms` and `inception_terms`, whose influences are exact: what a bootstrap over samples converges to, for
    one pass (Efron 1982, chapter 6). None for fewer than 100 samples.
    """
    terms = as_float64(influence, "influence", 1)
    if len(terms) < 5 * GROUPS:
        return None
    return _around(value, NORMAL * terms.std().item() / math.sqrt(len(terms)), low, high)


def mean_interval(values: Array, low: float = -math.inf, high: float = math.inf) -> Interval | None:
    """Limits of the mean of a score per image, values (N,): PSNR, SSIM. None below two images.

    `bootstrap_interval`, whose limits are as skewed as the scores; below 100 images, which are too few to tell the
    skewness, Student's t.
    """
    v = as_float64(values, "values", 1)
    if len(v) < 2:
        return None
    if len(v) >= 5 * GROUPS:
        return bootstrap_interval(lambda rows: v[rows].mean().item(), len(v))
    half = student(len(v) - 1) * v.std().item() / math.sqrt(len(v))
    return _around(v.mean().item(), half, low, high)


def bootstrap_interval(
    statistic: Callable[[Tensor], float], n: int, draws: int = 1000, seed: int = 0, progress: Progress | None = None
) -> Interval | None:
    """Limits of statistic(rows) over n samples by the bias-corrected and accelerated bootstrap (Efron 1987).

    rows: n row numbers drawn with replacement, int64. Sound for means, shares, quantiles and smooth functions of them.
    Not for the rest here, which get a jackknife: a repeated sample is its own nearest neighbour (precision, recall) and
    fills a kernel matrix with pairs that are no pairs; and a Frechet distance of resampled features is biased once more
    by what the sample already is, some D / N of it, so that limits would lie above the value. None below 20 samples, or
    where no draw changes the value.
    """
    if n < GROUPS:
        return None
    generator, steps = np.random.Generator(np.random.Philox(seed)), Steps(progress, draws)
    drawn = np.empty(draws)
    for i in range(draws):
        drawn[i] = statistic(torch.from_numpy(generator.integers(0, n, n)))
        steps.step()
    value = statistic(torch.arange(n))
    if np.ptp(drawn) <= 1e-12 * abs(value):
        return None
    below = (np.sum(drawn < value) + 0.5 * np.sum(drawn == value)) / draws
    shift = special.ndtri(np.clip(below, 1 / draws, 1 - 1 / draws))
    order, group = _groups(n, seed)
    kept = np.array([statistic(order[group != g]) for g in range(GROUPS)])
    pull = kept.mean() - kept
    bend = np.sum(pull**3) / (6 * np.sum(pull**2) ** 1.5) if np.any(pull) else 0.0
    places = [special.ndtr(shift + (shift + z) / (1 - bend * (shift + z))) for z in (-NORMAL, NORMAL)]
    low, high = np.quantile(drawn, places)
    return float(low), float(high)


class SeedSpread(NamedTuple):
    """The mean over seeds, its standard error, and its 95 % limits by Student's t (None, nan for a single seed)."""

    mean: float
    error: float
    interval: Interval | None


def seed_spread(values: Sequence[float]) -> SeedSpread:
    """What scores of several seeds, of training or of sampling, say together. ValueError for none, or NaN."""
    v = as_float64(np.array(values, dtype=np.float64), "values", 1)
    mean = v.mean().item()
    if len(v) == 1:
        return SeedSpread(mean, math.nan, None)
    error = v.std().item() / math.sqrt(len(v))
    half = student(len(v) - 1) * error
    return SeedSpread(mean, error, (mean - half, mean + half))


class Gap(NamedTuple):
    """difference: b - a. noise: how large a gap chance alone makes, once in 20. within: it is no larger."""

    difference: float
    noise: float
    within: bool
    statement: str


def within_noise(
    a: float, b: float, limits: tuple[Interval | None, Interval | None], *, trainings: bool = True, frechet: bool = True
) -> Gap:
    """Whether the gap between two scores is within noise, in words.

    limits: their 95 % intervals, of samples or of seeds (None: unknown). trainings: a and b are two trainings, each
    scored once, so that another seed would have moved both: for Frechet distances 3.2 times as much as other samples
    do, and no gap under 1.3 % decides ("The FID Lottery", arXiv 2606.20536); of other scores that is not known. False
    for two ways to sample one network, or where the intervals are over training seeds. ValueError for NaN.
    """
    if not (math.isfinite(a) and math.isfinite(b)):
        raise ValueError(f"within_noise: {a} and {b} are not two finite scores")
    gap = b - a
    known = [interval for interval in limits if interval is not None]
    noise = math.sqrt(sum(((high - low) / 2) ** 2 for low, high in known))
    source = "other samples" if len(known) == 2 else "the samples of one side (the other has no limits)"
    if trainings and frechet:
        least = LOTTERY * max(abs(a), abs(b))
        source = f"another training seed ({RETRAINING} times what samples do, at least {LOTTERY:.1%})"
        noise = max(RETRAINING * noise, least)
    if not known and not (trainings and frechet):
        return Gap(gap, math.nan, False, f"a gap of {gap:+.4g}: neither score has limits, so it proves nothing")
    within = abs(gap) <= noise
    verdict = "within the noise: no difference is shown" if within else "more than the noise"
    said = f"a gap of {gap:+.4g} where {source} could make {noise:.3g}: {verdict}"
    if trainings and not frechet:
        said += "; another training seed moves more than samples do"
    return Gap(gap, noise, within, said)
