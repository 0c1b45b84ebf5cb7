"""The variational bound of a DDPM chain, in bits per dimension (Ho et al. 2020; Nichol & Dhariwal 2021).

Data are taken as 8-bit pixels in [-1, 1], latents too, as published.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ditkit.diffusion.broadcast import expand, mean_per_sample
from ditkit.diffusion.ddpm import DDPM, Variance
from ditkit.diffusion.path import interpolate
from ditkit.diffusion.prediction import Estimate


class Bound(NamedTuple):
    """total, prior: (B,). vb, data_mse, noise_mse: (B, N), one column a step, noise first. Bits per dimension."""

    total: Tensor
    prior: Tensor
    vb: Tensor
    data_mse: Tensor
    noise_mse: Tensor


def normal_kl(mean_a: Tensor, log_var_a: Tensor, mean_b: Tensor, log_var_b: Tensor) -> Tensor:
    """KL(N(mean_a, exp log_var_a) || N(mean_b, exp log_var_b)) in nats, elementwise and broadcast."""
    square = (mean_a - mean_b) ** 2 * torch.exp(-log_var_b)
    return 0.5 * (-1.0 + log_var_b - log_var_a + torch.exp(log_var_a - log_var_b) + square)


def normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation of the standard normal's distribution function (Page 1977), as published."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log P, in nats, of the 8-bit value of x under a Gaussian: bins of half width 1/255, open at -1 and 1."""
    centred, inverse = x - mean, torch.exp(-log_scale)
    above, below = normal_cdf(inverse * (centred + 1 / 255)), normal_cdf(inverse * (centred - 1 / 255))
    inside = torch.where(x > 0.999, 1 - below, above - below)
    return torch.log(torch.where(x < -0.999, above, inside).clamp(min=1e-12))


def variational_term(estimate: Estimate, x: Tensor, variance: Variance, clip: bool = False) -> Tensor:
    """The bound's term of one step, (B,) bits per dimension: KL of the reverse step, at the first step -log p(x).

    estimate: of x_t on a DDPM path; clip: keep its data in [-1, 1]. Gradients reach what the estimate carries.
    """
    path, x_t, t = estimate.path, estimate.x, estimate.t.to(x.device)
    if not isinstance(path, DDPM):
        raise ValueError(f"the variational bound needs a DDPM path, not {path.kind!r}")
    data = estimate.data.clamp(-1, 1) if clip else estimate.data
    mean = path.posterior_mean(data, x_t, t)
    log_variance = path.log_variance(variance, t, estimate.variance)
    if variance != "learned_range":
        log_variance = expand(log_variance, x).expand_as(x)
    true_mean, true = path.posterior_mean(x, x_t, t), expand(path.log_variance("fixed_small", t), x)
    kl = mean_per_sample(normal_kl(true_mean, true, mean, log_variance))
    first = mean_per_sample(-discretised_log_likelihood(x, mean, 0.5 * log_variance))
    return torch.where(path.index(t) == 0, first, kl) / math.log(2)


def prior_term(path: DDPM, x: Tensor) -> Tensor:
    """KL of q(x_T | x) from the standard normal, (B,) bits per dimension."""
    last = path.times()[:1].to(x.device).expand(len(x))
    mean, log_variance = expand(path.alpha(last), x) * x, 2 * torch.log(expand(path.sigma(last), x))
    zero = torch.zeros((), device=x.device, dtype=x.dtype)
    return mean_per_sample(normal_kl(mean, log_variance, zero, zero)) / math.log(2)


@torch.no_grad()
def bits_per_dimension(
    denoise: Callable[[Tensor, Tensor, int], Estimate],
    path: DDPM,
    x: Tensor,
    noise: Callable[[int], Tensor],
    *,
    variance: Variance = "learned_range",
    clip: bool = True,
) -> Bound:
    """The whole bound of x (B, C, H, W) in [-1, 1]: one call denoise(x_t, t, step) for each step of the chain.

    denoise: a `Denoise` of the (respaced) path, for one; t is a scalar. noise(step): (B, C, H, W) draws; step 0 is the
    noisiest.
    """
    columns = []
    for step, t in enumerate(path.times().to(x.device)):
        eps = noise(step)
        estimate = denoise(interpolate(path, x, eps, t), t, step)
        data = estimate.data.clamp(-1, 1) if clip else estimate.data
        implied = (estimate.x - expand(path.alpha(t), x) * data) / expand(path.sigma(t), x)
        row = (variational_term(estimate, x, variance, clip), (data - x) ** 2, (implied - eps) ** 2)
        columns.append((row[0], mean_per_sample(row[1]), mean_per_sample(row[2])))
    vb, data_mse, noise_mse = (torch.stack(column, dim=1) for column in zip(*columns, strict=True))
    prior = prior_term(path, x)
    return Bound(vb.sum(1) + prior, prior, vb, data_mse, noise_mse)
