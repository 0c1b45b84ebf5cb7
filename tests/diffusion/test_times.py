"""Every density: draws against the closed form, log-densities that integrate to one; shift and grids."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from ditkit.config import read_settings
from ditkit.diffusion import (
    EDM,
    BatchNoise,
    CosMap,
    Discrete,
    EDMLogNormal,
    Flow,
    Linear,
    LogitNormal,
    Mode,
    SamplerSettings,
    Shifted,
    Uniform,
    grid_with_last,
    log_snr,
    resolution_shift,
    shift,
    uniform_grid,
)
from ditkit.protocols import Condition, Output

N = 20_000


def logit(t):
    return np.log(t) - np.log1p(-t)


def mode_cdf(scale):
    """P(T <= t) = 1 - u(t), the map's inverse by table."""
    u = np.linspace(0, 1, 200_001)
    t = 1 - u - scale * (np.cos(np.pi * u / 2) ** 2 - 1 + u)
    return lambda x: 1 - np.interp(x, t[::-1], u[::-1])


def edm_cdf(mean, std, path):
    low, high = (stats.norm.cdf((math.log(s) - mean) / std) for s in (path.sigma_min, path.sigma_max))
    sigma = lambda t: path.sigma(torch.as_tensor(t, dtype=torch.float64)).numpy()  # noqa: E731
    return lambda t: (stats.norm.cdf((np.log(sigma(t)) - mean) / std) - low) / (high - low)


# density, its distribution function P(T <= t) in closed form
DENSITIES = [
    (Uniform(), lambda t: t),
    (Uniform(low=0.001, high=0.999), lambda t: (t - 0.001) / 0.998),
    (LogitNormal(), lambda t: stats.norm.cdf(logit(t))),
    (LogitNormal(mean=-0.5, std=0.6), lambda t: stats.norm.cdf((logit(t) + 0.5) / 0.6)),
    (LogitNormal(path="cosine"), lambda t: stats.norm.cdf(np.log(np.tan(np.pi * t / 2)))),
    (LogitNormal(mean=0.5, std=1.4, path="cosine"), lambda t: stats.norm.cdf(np.log(np.tan(np.pi * t / 2)), 0.5, 1.4)),
    (Mode(), mode_cdf(1.29)),
    (Mode(scale=-1), mode_cdf(-1)),
    (Mode(scale=0), lambda t: t),
    (Mode(scale=1.75), mode_cdf(1.75)),
    (CosMap(), lambda t: np.arctan2(t, 1 - t) * 2 / np.pi),
    (EDMLogNormal(), edm_cdf(-1.2, 1.2, EDM())),
    (EDMLogNormal(mean=0.6, std=1.8, path=EDM(sigma_min=0.1, sigma_max=5, rho=3)),
     edm_cdf(0.6, 1.8, EDM(sigma_min=0.1, sigma_max=5, rho=3))),
    (Shifted(), lambda t: stats.norm.cdf(logit(t) - math.log(3))),
    (Shifted(base=Uniform(), factor=0.5), lambda t: t * 2 / (1 + t)),
]  # fmt: skip


def moved(cdf, factor):
    """The distribution of shift(T, factor) for T of distribution `cdf`."""
    return lambda t: cdf(t / (factor + t * (1 - factor)))


DENSITIES += [
    (Shifted(base=density, factor=factor), moved(cdf, factor))
    for density, cdf, factor in (
        (Uniform(), lambda t: t, 3.0),
        (LogitNormal(mean=0.5, std=0.6), lambda t: stats.norm.cdf(logit(t), 0.5, 0.6), 4.0),
        (Mode(), mode_cdf(1.29), 3.0),
        (CosMap(), lambda t: np.arctan2(t, 1 - t) * 2 / np.pi, 3.0),
        (EDMLogNormal(), edm_cdf(-1.2, 1.2, EDM()), 1.5),
    )
]
every = pytest.mark.parametrize(("density", "cdf"), DENSITIES, ids=lambda d: str(d) if hasattr(d, "kind") else "")


@every
def test_draws_follow_the_closed_form(density, cdf):
    t = density.sample(N, BatchNoise(1, 0, N))
    assert t.dtype == torch.float32 and t.shape == (N,) and t.min() >= 0 and t.max() <= 1
    assert stats.kstest(t.double().numpy(), cdf).pvalue > 1e-3


@every
def test_log_prob_is_the_derivative_of_the_distribution(density, cdf):
    low, high = getattr(density, "low", 0.0), getattr(density, "high", 1.0)
    t, h = np.linspace(low + 0.01, high - 0.01, 199), 1e-5
    want = (np.asarray(cdf(t + h)) - np.asarray(cdf(t - h))) / (2 * h)
    got = density.log_prob(torch.from_numpy(t)).exp().numpy()
    inner = np.abs(t - 0.5) > 0.02 if density == Mode(scale=1.75) else slice(None)  # nearly singular there
    assert np.allclose(got[inner], want[inner], rtol=3e-4, atol=1e-6)


@every
def test_log_prob_integrates_to_one(density, cdf):
    function = lambda s: density.log_prob(torch.tensor(s, dtype=torch.float64)).exp().item()  # noqa: E731
    low, high = getattr(density, "low", 0.0), getattr(density, "high", 1.0)
    middle = (low + high) / 2  # Mode's steep place
    total = sum(integrate.quad(function, *ends, epsabs=1e-7)[0] for ends in ((low, middle), (middle, high)))
    assert total == pytest.approx(1, abs=1e-5)


@every
def test_log_prob_outside_is_minus_infinity(density, cdf):
    outside = density.log_prob(torch.tensor([-0.1, 1.1]))
    assert (outside == -math.inf).all()
    inside = density.log_prob(torch.linspace(0.05, 0.95, 11))
    assert inside.dtype == torch.float32 and inside.isfinite().all()


@every
def test_a_batch_cut_does_not_change_the_times(density, cdf):
    whole = density.sample(64, BatchNoise(0, 3, 64))
    parts = [density.sample(16, BatchNoise(0, 3, 64, k, k + 16)) for k in range(0, 64, 16)]
    assert torch.equal(torch.cat(parts), whole)


@every
def test_reads_back(density, cdf):
    flow = Flow(density=density)
    assert read_settings(Flow, flow.model_dump(mode="json")) == flow


def test_sd3_golden_densities():
    at = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9], dtype=torch.float64)

    def check(density, want, t=at):
        assert density.log_prob(t).exp().tolist() == pytest.approx(want, abs=2e-6)

    check(LogitNormal(), [0.396575, 1.163652, 1.595769, 1.163652, 0.396575])
    check(LogitNormal(mean=0.5, std=0.6), [0.000302, 0.101924, 1.879413, 2.155825, 0.135205])
    check(CosMap(), [0.636620, 0.776366, 1.018592, 1.273240, 0.636620], torch.tensor([0, 0.1, 0.25, 0.5, 1.0]).double())
    check(Mode(), [0.436681, 0.501549, 0.683008, 3.792580], torch.tensor([0, 0.1, 0.25, 0.5]).double())


class Recorded:
    """A noise source that returns given numbers."""

    def __init__(self, values):
        self.values = torch.tensor(values)

    def uniform(self, stream, shape):
        assert stream == "t" and shape == (len(self.values),)
        return self.values

    normal = uniform


def test_sd3_golden_mode_map():
    u = [0.1, 0.25, 0.5, 0.75, 0.9]
    golden = {
        1.29: [0.802569, 0.616416, 0.5, 0.383584, 0.197431],
        1.75: [0.767826, 0.568782, 0.5, 0.431218, 0.232174],
        -1.0: [0.975528, 0.853553, 0.5, 0.146447, 0.024472],
    }
    for scale, want in golden.items():
        assert Mode(scale=scale).sample(5, Recorded(u)).tolist() == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize("scale", [-1.01, 1.76])
def test_a_mode_that_is_not_monotone_is_refused(scale):
    with pytest.raises(ValueError):
        Mode(scale=scale)


@pytest.mark.parametrize("draws", [[0.0, 0.5, 1 - 2**-24]])
def test_extreme_draws_stay_inside(draws):
    for density, _ in DENSITIES:
        if not isinstance(density, (LogitNormal, Shifted)):
            t = density.sample(len(draws), Recorded(draws))
            assert t.isfinite().all() and t.min() >= 0 and t.max() <= 1


def test_discrete_times_are_exact_and_uniform():
    density = Discrete()
    t = density.sample(200_000, BatchNoise(0, 0, 200_000))
    k = (t * 999).long()
    assert torch.equal(t, torch.arange(1000).float()[k] / 999), "only k / 999, exactly"
    counts = torch.bincount(k, minlength=1000)
    assert len(counts) == 1000 and stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert density.sample(2, Recorded([0.0, 1 - 2**-24])).tolist() == [0.0, 1.0]
    assert density.log_prob(t[:5]).exp().sum().item() == pytest.approx(5 / 1000)
    assert density.log_prob(torch.tensor([0.5, 0.50049])).tolist() == [-math.inf, -math.inf]
    assert density.log_prob(torch.arange(1000) / 999).exp().sum().item() == pytest.approx(1, abs=1e-4)


def test_repa_times(reference):
    """uniform, and lognormal on both of REPA's paths, from the recorded draws."""
    ref = reference("repa_loss")
    u, n = ref.inputs["u"].tolist(), ref.inputs["n"].tolist()
    for path in ("linear", "cosine"):
        ref.close(f"{path}.uniform.t", Uniform().sample(4, Recorded(u)))
        ref.close(f"{path}.lognormal.t", LogitNormal(path=path).sample(4, Recorded(n)))


def test_shift():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.allclose(shift(shift(t, 3), 1 / 3), t) and torch.equal(shift(t, 1), t)
    assert (shift(t, 3)[1:-1] > t[1:-1]).all() and shift(t, 3)[[0, -1]].tolist() == [0, 1]
    assert shift(torch.tensor(0.5), 3.0).item() == pytest.approx(0.75)
    ours = 1 - torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])  # DDT's t / (t + (1 - t) s) in its time, s = 1.5
    foreign = 1 - ours
    assert torch.allclose(1 - shift(ours, 1.5), foreign / (foreign + (1 - foreign) * 1.5), atol=1e-6)


def test_shifting_is_adding_to_the_logit():
    """SD3 section 5.3.2: lambda falls by 2 log s, so logit-normal(0, 1) shifted by 3 is logit-normal(ln 3, 1)."""
    t = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9], dtype=torch.float64)
    assert shift(t, 3).tolist() == pytest.approx([0.25, 0.5, 0.75, 0.9, 0.964286], abs=1e-6)
    assert torch.allclose(log_snr(Linear(), shift(t, 3)), log_snr(Linear(), t) - 2 * math.log(3))
    one, other = Shifted(base=LogitNormal(), factor=3), LogitNormal(mean=math.log(3))
    assert torch.allclose(one.log_prob(t), other.log_prob(t))
    drawn = [density.sample(1000, BatchNoise(0, 0, 1000)) for density in (one, other)]
    assert torch.allclose(*drawn, atol=1e-6)


class Told:
    """A network that remembers the times it was told; one sample a row, all of data 1 and noise -1."""

    def __init__(self):
        self.told, self.mixed = [], []

    def __call__(self, x, t, cond, *, capture=()):
        self.told.append(t)
        self.mixed.append((1 - x[:, 0, 0, 0]) / 2)  # x = (1 - t) 1 + t (-1)
        return Output(torch.full_like(x, -2.0))

    def null(self, cond):
        return cond


class MinusOne(BatchNoise):
    def normal(self, stream, shape):
        return -torch.ones(shape) if stream == "eps" else super().normal(stream, shape)


@pytest.mark.parametrize("density", [Shifted(), LogitNormal(), Mode(scale=1.75), Shifted(base=CosMap())], ids=str)
def test_the_label_is_the_noise_level_in_training(density):
    """Shifted draws make the mixture, and the network is told the shifted time, not the one before."""
    model = Told()
    loss = Flow(density=density, drop=0)(model, torch.ones(256, 1, 1, 1), Condition(), MinusOne(0, 0, 256))
    assert torch.equal(model.told[0], loss.t) and torch.allclose(model.mixed[0], loss.t, atol=1e-6)
    assert loss.terms["denoise"].abs().max() == 0


@pytest.mark.parametrize("settings", [
    SamplerSettings(steps=7, shift=3.0), SamplerSettings(steps=7, shift=3.0, spacing="sd3"),
    SamplerSettings(steps=7, shift=3.0, spacing="sd3", solver="dpmpp_2m", options={"variable": "log_sigma"}),
    SamplerSettings(steps=7, shift=4.0, solver="heun"),
], ids=["euler", "sd3", "dpmpp", "heun"])  # fmt: skip
def test_the_label_is_the_noise_level_in_sampling(settings):
    """From noise -1 the exact velocity keeps the state the mixture of the time that the network is told."""
    model, noise = Told(), -torch.ones(2, 1, 1, 1)
    latents, _ = settings.run(model, noise, Condition(), path=Linear(), prediction="velocity")
    told, mixed = torch.stack(model.told), torch.stack(model.mixed)
    assert torch.allclose(told, mixed, atol=1e-5) and torch.allclose(latents, torch.ones_like(latents), atol=1e-5)
    grid = settings.times(Linear(), "velocity").float()
    assert sorted(set(told[:, 0].tolist())) == pytest.approx(grid[:-1].flip(0).tolist(), abs=1e-6)
    assert grid[1] > 1 - 1 / 7 and told[0, 0] == 1


def test_resolution_shift_keeps_the_uncertainty():
    """SD3 section 5.3.2: constant images, t / (1 - t) / sqrt(pixels) must stay."""
    s = resolution_shift(256**2, 1024**2)
    assert s == 4
    t = torch.tensor(0.3)
    moved = shift(t, s)
    assert (moved / (1 - moved) / 1024).item() == pytest.approx((t / (1 - t) / 256).item())
    with pytest.raises(ValueError):
        resolution_shift(0, 4)


def test_grids():
    assert uniform_grid(4).tolist() == [1, 0.75, 0.5, 0.25, 0] and uniform_grid(2, 0.999, 1e-3).tolist()[-1] == 1e-3
    grid = grid_with_last(250, 0.04)
    assert len(grid) == 251 and grid[-2:].tolist() == [0.04, 0] and grid.diff().max() < 0
    assert grid[0] - grid[1] == pytest.approx(0.96 / 249)
    ddt = 1 - grid_with_last(5, 0.04)
    assert ddt.tolist() == pytest.approx([0, 0.24, 0.48, 0.72, 0.96, 1])
    shifted = 1 - shift(grid_with_last(5, 0.04), 1.5)
    assert shifted[:5].tolist() == pytest.approx([0, 0.173913, 0.380952, 0.631579, 0.941176], abs=1e-6)
    fifth = 1 - shift(grid_with_last(5, 0.2), 1.5)
    assert fifth.tolist() == pytest.approx([0, 0.142857, 0.307692, 0.5, 0.727273, 1], abs=1e-6)
    with pytest.raises(ValueError, match="last step"):
        grid_with_last(5, 0.0)
