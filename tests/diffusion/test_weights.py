"""Loss weights against SD3's and SiT's formulas; one weight means the same loss for any prediction."""

import math

import pytest
import torch
from scipy import stats

from ditkit.diffusion import (
    EDM,
    KINDS,
    VP,
    Cosine,
    CosMap,
    DensityWeight,
    Discrete,
    Estimate,
    Flow,
    Linear,
    LogitNormal,
    Mode,
    Plain,
    SD3Weight,
    SiTWeight,
    convert,
    interpolate,
    log_snr,
    philox_normal,
    philox_uniform,
)
from ditkit.diffusion.noise import stream_id
from ditkit.protocols import Condition, Output

T = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)
PATHS = [Linear(), Cosine(), VP(), EDM(), EDM(schedule="rf")]
WEIGHTS = [SD3Weight(form=form) for form in ("rf", "v_cos", "eps_cos", "edm")]


def unified(path, w):
    """-1/2 w lambda', the factor of the noise error in SD3's unified loss, by finite differences of the log-SNR."""
    h = 1e-6
    slope = (log_snr(path, T + h) - log_snr(path, T - h)) / (2 * h)
    return -slope / 2 * w(log_snr(path, T))


def edm_weight(snr):
    normal = torch.from_numpy(stats.norm.pdf(snr.numpy(), 2.4, 2.4))
    return normal * (torch.exp(-snr) + 0.25)


FORMULAS = {
    "rf": lambda snr: torch.exp(-snr / 2),
    "v_cos": lambda snr: torch.exp(-snr / 2),
    "eps_cos": lambda snr: 1 / torch.cosh(snr / 2),
    "edm": edm_weight,
}


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("form", FORMULAS)
def test_sd3_weights_are_the_paper_formulas(path, form):
    assert torch.allclose(SD3Weight(form=form)(path, T), unified(path, FORMULAS[form]), rtol=1e-5)


def test_sd3_weights_are_one_where_they_come_from():
    """Plain losses in disguise: rf velocity on the line, v and eps prediction on the circle (up to constants)."""
    ends = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    assert torch.allclose(SD3Weight(form="rf")(Linear(), ends, "velocity"), torch.ones(3).double())
    assert torch.allclose(SD3Weight(form="v_cos")(Cosine(), ends, "velocity"), torch.full((3,), 2 / math.pi).double())
    assert torch.allclose(SD3Weight(form="eps_cos")(Cosine(), T), torch.full_like(T, math.pi))
    rf = SD3Weight(form="rf")(Linear(), T)  # t / (1 - t) times -lambda'/2 = 1 / (t (1 - t))
    assert torch.allclose(rf, 1 / (1 - T) ** 2)
    assert SD3Weight(form="edm")(Linear(), ends).isfinite().tolist() == [True, True, False]


def test_sd3_edm_weight_is_edm_training():
    """EDM: times from its log-normal, weight 1 on F. The same expected loss: density times F-weight is constant."""
    density = {"kind": "edm_log_normal"}
    flow = Flow(path=EDM(), prediction="edm", density=density)
    ours = SD3Weight(form="edm")(EDM(), T, "edm") / torch.exp(flow.density.log_prob(T))
    assert torch.allclose(ours, ours[0].expand_as(ours), rtol=1e-6)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("weight", [*WEIGHTS, SiTWeight(), SiTWeight(form="likelihood")], ids=str)
def test_a_weight_means_the_same_for_any_prediction(path, weight):
    """The weighted squared error is one number, whichever of its five forms the network's output takes."""
    generator = torch.Generator().manual_seed(0)
    x, eps, output = torch.randn(3, len(T), 1, 2, 2, generator=generator, dtype=torch.float64)
    x_t = interpolate(path, x, eps, T)
    losses = {}
    for kind in KINDS:
        if kind == "velocity" and weight.kind == "sit":
            continue  # SiT's code keeps weight 1 there
        value = convert(Estimate(x_t, T, path, "noise", output), kind)
        flow = Flow(path=path, prediction=kind, weight=weight, density={"kind": "cosmap"})
        losses[kind] = flow.per_sample(value, x, eps, T)
    for kind, loss in losses.items():
        assert torch.allclose(loss, losses["noise"], rtol=1e-6), kind


@pytest.mark.parametrize("path", [Linear(), Cosine(), VP()], ids=str)
def test_sit_weights_are_the_code_formulas(path):
    """SiT's time: r = alpha'/alpha, D = r sigma^2 - sigma sigma'; weights (D / sigma)^2 and D / sigma^2."""
    alpha, sigma = path.alpha(T), path.sigma(T)
    r, d_sigma = -path.d_alpha(T) / alpha, -path.d_sigma(T)
    d = r * sigma**2 - sigma * d_sigma
    for kind in ("noise", "score"):
        assert torch.allclose(SiTWeight(form="velocity")(path, T, kind), (d / sigma) ** 2)
        assert torch.allclose(SiTWeight(form="likelihood")(path, T, kind), d / sigma**2)
    for form in ("velocity", "likelihood"):
        assert torch.equal(SiTWeight(form=form)(path, T, "velocity"), torch.ones_like(T))


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_sit_velocity_weight_is_the_velocity_error(path):
    generator = torch.Generator().manual_seed(1)
    x, eps, output = torch.randn(3, len(T), 1, 2, 2, generator=generator, dtype=torch.float64)
    estimate = Estimate(interpolate(path, x, eps, T), T, path, "noise", output)
    weighted = Flow(path=path, prediction="noise", weight=SiTWeight(), density=CosMap()).per_sample(output, x, eps, T)
    plain = Flow(path=path, prediction="velocity", density=CosMap()).per_sample(estimate.velocity, x, eps, T)
    assert torch.allclose(weighted, plain, rtol=1e-7)


class Quick:
    """Draws for many one-number samples at once."""

    def __init__(self, seed):
        self.seed = seed

    def normal(self, stream, shape):
        return philox_normal(self.seed, (stream_id(stream),), shape)

    def uniform(self, stream, shape):
        return philox_uniform(self.seed, (stream_id(stream),), shape)


class Zero:
    def __call__(self, x, t, cond, *, capture=()):
        return Output(torch.zeros_like(x))

    def null(self, cond):
        return cond


@pytest.mark.parametrize("density", [LogitNormal(), Mode(), CosMap(), LogitNormal(mean=0.5, std=0.6)], ids=str)
def test_a_density_is_a_weight(density):
    """Times from a density, or uniform times with its weight: the same expected loss (SD3 section 3.1)."""
    n = 40_000
    x = torch.full((n, 1, 1, 1), 0.7)
    drawn = Flow(path=Cosine(), density=density, drop=0)(Zero(), x, Condition(), Quick(0))
    weight = DensityWeight(density=density)
    weighted = Flow(path=Cosine(), weight=weight, drop=0)(Zero(), x, Condition(), Quick(1))
    error = (drawn.terms["denoise"].var() / n + weighted.terms["denoise"].var() / n) ** 0.5
    assert abs(drawn.total - weighted.total) < 4 * error
    assert Plain()(Linear(), T).eq(1).all()


def test_discrete_probability_as_weight_is_constant():
    t = torch.arange(1000) / 999
    assert torch.allclose(DensityWeight(density=Discrete())(Linear(), t), torch.full((1000,), 1e-3))
