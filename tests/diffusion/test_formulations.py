"""SD3's 61 formulations: names, settings, induced weights against the paper's w_t, one training step and five Euler."""

import math

import pytest
import torch
from scipy import stats

from ditkit.diffusion import (
    DDPM,
    EDM,
    BatchNoise,
    Cosine,
    Denoise,
    EDMLogNormal,
    Flow,
    Linear,
    LogitNormal,
    Mode,
    SampleNoise,
    SamplerSettings,
    interpolate,
    log_snr,
    target,
)
from ditkit.diffusion.formulations import FORMULATIONS, SAMPLERS, TABLE1, TABLE2, formulation, induced_weight, sampler
from ditkit.protocols import Condition, Output

T = torch.linspace(0.03, 0.97, 95, dtype=torch.float64)
every = pytest.mark.parametrize("name", FORMULATIONS)


def snr(name):
    return log_snr(formulation(name).path, T)


# ------------------------------------------------------------------------------------------------ names


def test_there_are_61_and_the_tables_are_of_them():
    assert len(FORMULATIONS) == len(set(FORMULATIONS)) == 61
    kinds = [name.partition("(")[0] for name in FORMULATIONS]
    assert [kinds.count(k) for k in ("rf/lognorm", "rf/mode", "edm")] == [30, 8, 15]
    assert len({formulation(name).model_dump_json() for name in FORMULATIONS}) == 61, "no two are the same"
    rows = [row.name for row in TABLE1]
    assert len(rows) == 16 and set(rows) <= set(FORMULATIONS) and rows[0] == "rf/lognorm(0.00,1.00)"
    assert [row.every for row in TABLE1] == sorted(row.every for row in TABLE1)
    assert len(TABLE2) == 10 and {row.name for row in TABLE2} <= set(FORMULATIONS)
    assert len(SAMPLERS) == 6 and {steps for steps, scale in SAMPLERS if scale == 5} == {5, 10, 25, 50}


def test_names_are_read():
    assert formulation("rf") == Flow()
    assert formulation("rf/lognorm(0.50, 0.60)") == formulation("rf/lognorm(.5,.6)")
    assert formulation("rf/lognorm(-1,2.2)").density == LogitNormal(mean=-1, std=2.2)
    assert formulation("rf/mode(1.29)").density == Mode()
    assert formulation("edm(-1.20,1.20)") == Flow(path=EDM(), prediction="edm", density=EDMLogNormal())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rf/cosmop", "did you mean 'rf/cosmap'"), ("edm", "did you mean"), ("rf(1)", "did you mean 'rf'"),
        ("rf/mode(9)", "less than or equal to 1.75"), ("rf/mode(a)", "not numbers"), ("edm(1)", "takes 2 numbers"),
        ("edm(0,0)", "greater than 0"), ("", "not known"),
    ],
)  # fmt: skip
def test_other_names_are_refused_in_one_line(name, said):
    with pytest.raises(ValueError) as caught:
        formulation(name)
    assert said in str(caught.value) and "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ weights


def same_up_to_a_constant(got, want, rtol=1e-6):
    ratio = got / want
    assert torch.allclose(ratio, ratio[len(ratio) // 2].expand_as(ratio), rtol=rtol), (ratio.min(), ratio.max())


def rf_times(name="rf"):
    """The rectified flow's time of the same log-SNR: lambda = 2 log((1 - t) / t)."""
    return torch.sigmoid(-snr(name) / 2)


@pytest.mark.parametrize("name", [n for n in FORMULATIONS if n.startswith("rf")])
def test_rectified_flow_weights(name):
    """w^pi = t / (1 - t) pi(t) (section 3.1), pi by its formula."""
    t = T
    numbers = [float(v) for v in name.partition("(")[2].rstrip(")").split(",") if v]
    if "lognorm" in name:
        m, s = numbers
        z = (torch.logit(t) - m) / s
        pi = torch.exp(-z * z / 2) / (s * math.sqrt(2 * math.pi) * t * (1 - t))
    elif "mode" in name:
        u = torch.linspace(0, 1, 2_000_001, dtype=torch.float64)
        f = 1 - u - numbers[0] * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)
        at = torch.searchsorted(-f, -t)
        pi = (u[at + 50] - u[at - 50]) / (f[at - 50] - f[at + 50])
    else:
        pi = 2 / (math.pi - 2 * math.pi * t + 2 * math.pi * t * t) if "cosmap" in name else torch.ones_like(t)
    steep = (
        torch.abs(t - 0.5) > 0.005 if name == "rf/mode(1.75)" else torch.ones_like(t).bool()
    )  # a spike in the middle
    got, want = induced_weight(formulation(name), t), t / (1 - t) * pi
    assert torch.allclose(got[steep], want[steep], rtol=1e-4)


def test_cosine_weights():
    assert torch.allclose(induced_weight(formulation("v/cos"), T), math.pi / 2 * torch.exp(-snr("v/cos") / 2))
    inside = 1 / 0.998  # uniform on [0.001, 0.999]
    got = induced_weight(formulation("eps/cos"), T)
    assert torch.allclose(got, inside / math.pi / torch.cosh(snr("eps/cos") / 2)), "sin(pi t) / pi is sech(lambda/2)"
    assert torch.allclose(got, inside * torch.sin(math.pi * T) / math.pi)


@pytest.mark.parametrize("name", [n for n in FORMULATIONS if n.startswith("edm(")])
def test_edm_weights(name):
    """N(lambda; -2 P_m, (2 P_s)^2) (e^-lambda + 0.5^2)."""
    mean, std = (float(v) for v in name[4:-1].split(","))
    normal = torch.from_numpy(stats.norm.pdf(snr(name).numpy(), -2 * mean, 2 * std))
    inside = normal > 1e-200
    got = induced_weight(formulation(name), T)
    same_up_to_a_constant(got[inside], (normal * (torch.exp(-snr(name)) + 0.25))[inside], rtol=1e-5)


@pytest.mark.parametrize(("name", "other"), [("edm/rf", "rf"), ("edm/cos", "v/cos")])
def test_matched_edm(name, other):
    """The same weighting of the same log-SNRs, uniform times, another network."""
    flow, twin = formulation(name), formulation(other)
    same_up_to_a_constant(induced_weight(flow, T), torch.exp(-snr(name) / 2))
    same_up_to_a_constant(induced_weight(twin, T), torch.exp(-snr(other) / 2))
    assert (flow.prediction, flow.path.sigma_data) == ("edm", 0.5) and flow.density == twin.density
    ends = torch.tensor([0.002, 80.0], dtype=torch.float64)  # the cut ends, in the twin's time
    low, high = (ends / (1 + ends) if other == "rf" else torch.atan(ends) * 2 / math.pi).tolist()
    assert torch.allclose(snr(name), log_snr(twin.path, low + (high - low) * T))
    assert low < 0.002 and high > 0.987


def test_ldm_weights():
    """From the table itself: lambda = log(abar / (1 - abar)), w = -2 / (lambda' g), g what the network's error is."""
    roots = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
    abar = torch.cumprod(1 - roots**2, 0)
    assert abar[-1].item() == pytest.approx(0.00466010, abs=5e-9)
    path = formulation("eps/linear").path
    assert torch.allclose(path.alphas_bar, abar) and path == DDPM(schedule="scaled_linear")
    assert path.alpha(torch.ones(1).double()).item() == pytest.approx(0.068265, abs=1e-6)
    assert log_snr(path, torch.ones(1).double()).item() == pytest.approx(-5.364, abs=1e-3)
    table = torch.log(abar) - torch.log1p(-abar)
    slope = (table[2:] - table[:-2]) / 2 * 999
    k = torch.arange(1, 999).double() / 999
    eps = induced_weight(formulation("eps/linear"), k)
    v = induced_weight(formulation("v/linear"), k)
    assert torch.allclose(eps[20:], (-2 / slope)[20:], rtol=0.03), "a cell's slope against the two beside it"
    assert torch.allclose(v / eps, 1 / abar[1:-1])


def test_f_is_minus_v_on_a_variance_preserving_path():
    x, eps = torch.randn(2, len(T), 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for path in (formulation("v/linear").path, Cosine()):
        a, b = path.alpha(T).view(-1, 1, 1, 1), path.sigma(T).view(-1, 1, 1, 1)
        assert torch.allclose(target("edm", path, x, eps, T), b * x - a * eps)


@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (0.6, 1.8), (0.0, 0.9)])
def test_edm_times_as_a_schedule_or_as_a_density(mean, std):
    """b_t = exp(F^-1(t; P_m, P_s^2)) with uniform t, or EDM's own times drawn so: the same noise levels, cut alike."""
    quantile = EDM(schedule="log_normal", mean=mean, std=std)
    assert torch.allclose(
        quantile.sigma(quantile.time(torch.tensor([0.5, 1.0, 2.0]).double())), torch.tensor([0.5, 1, 2]).double()
    )
    schedule = Flow(path=quantile, prediction="edm")
    density = Flow(path=EDM(), prediction="edm", density=EDMLogNormal(mean=mean, std=std))
    n, noise = 512, BatchNoise(0, 0, 512)
    drawn = [flow.path.sigma(flow.density.sample(n, noise).double()) for flow in (schedule, density)]
    middle = (drawn[1] > 0.01) & (drawn[1] < 20)  # the power's float32 times are coarse at the ends
    assert middle.sum() > 0.8 * n
    assert torch.allclose(drawn[0][middle], drawn[1][middle], rtol=1e-3)
    at = quantile.sigma(T)
    assert torch.allclose(induced_weight(schedule, T), induced_weight(density, EDM().time(at)), rtol=1e-6)
    uncut = torch.exp(mean + std * torch.special.ndtri(T))
    assert torch.allclose(torch.log(at), torch.log(uncut), atol=0.5)
    with pytest.raises(ValueError, match="out of reach"):
        EDM(schedule="log_normal", mean=-1.2, std=0.6)


# ------------------------------------------------------------------------------------------------ training, sampling


class Toy(torch.nn.Module):
    """A linear network of x, a function of t and the label."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Conv2d(2, 2, 1)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(2).view(2, 2, 1, 1) * 0.3)
        self.seen = []

    def forward(self, x, t, cond, *, capture=()):
        self.seen.append((x, t))
        return Output(self.linear(x) * torch.cos(t).view(-1, 1, 1, 1) + cond.label.view(-1, 1, 1, 1) / 10)

    def null(self, cond):
        return cond.with_label(torch.zeros_like(cond.label))


COND = Condition(label=torch.arange(1, 9))


@every
def test_each_trains_and_samples_in_five_steps_of_euler(name):
    flow, model = formulation(name), Toy()
    x = torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    loss = flow(model, x, COND, BatchNoise(0, 0, 8))
    loss.total.backward()
    assert loss.total.isfinite() and 0 < model.linear.weight.grad.abs().sum() < 1e4
    noise = SampleNoise(0, range(8), (2, 4, 4)).initial()
    own = sampler(flow, 5, scale=2.0)
    for settings, evaluations in ((own, 10), (SamplerSettings(solver="euler", steps=5), 5)):
        latents, spent = settings.run(model, noise, COND, path=flow.path, prediction=flow.prediction)
        assert latents.isfinite().all() and spent == evaluations
    assert own.guidance.scale == 2 and sampler(flow, 5).guidance is None


@pytest.mark.parametrize("name", ["rf", "edm(0.00,0.60)", "edm/rf", "v/cos", "v/linear", "eps/linear"])
def test_a_perfect_network_is_followed_to_the_data(name):
    """One data point: its ODE is straight in sigma / alpha, so that any number of steps ends there."""
    flow, point = formulation(name), torch.tensor([0.7, -0.4]).view(1, 2, 1, 1)

    class Perfect:
        def __call__(self, x, t, cond, *, capture=()):
            path, now = flow.path, t[0].double()
            if path.kind == "edm":
                x = x * (path.sigma(now) ** 2 + path.sigma_data**2).sqrt()
            eps = (x - path.alpha(now) * point) / path.sigma(now)
            return Output(target(flow.prediction, path, point.expand_as(x).to(x), eps, now).to(x))

    noise = SampleNoise(0, range(3), (2, 1, 1)).initial().double()
    settings = sampler(flow, 3).model_copy(update={"state": "float64"})
    latents, _ = settings.run(Perfect(), noise, None, path=flow.path, prediction=flow.prediction)
    assert torch.allclose(latents, point.expand_as(latents).double(), atol=0.02)


@every
def test_the_network_is_told_the_noise_level_it_sees(name):
    """In training and in sampling, x_t is made at the very time that the network is told."""
    flow, model = formulation(name), Toy()
    x = torch.full((64, 2, 8, 8), 2.0)
    cond = Condition(label=torch.ones(64, dtype=torch.long))
    noise = BatchNoise(3, 0, 64)
    loss = flow(model, x, cond, noise)
    seen, t = model.seen[-1]
    assert torch.equal(t, loss.t) and t.dtype == torch.float32
    scale = (flow.path.sigma(t) ** 2 + 0.25).sqrt().view(-1, 1, 1, 1) if flow.path.kind == "edm" else 1.0
    assert torch.allclose(seen * scale, interpolate(flow.path, x, noise.normal("eps", tuple(x.shape)), t), rtol=1e-4)

    denoise = Denoise(model, cond, path=flow.path, prediction=flow.prediction)
    for now in sampler(flow, 5).times(flow.path, flow.prediction)[:5].tolist():
        estimate = denoise(x, now, None)
        assert model.seen[-1][1].tolist() == [pytest.approx(now, abs=1e-7)] * 64 and float(estimate.t) == now


def test_rectified_flow_takes_the_same_steps_either_way():
    flow, model = formulation("rf/lognorm(0,1)"), Toy()
    noise = SampleNoise(0, range(8), (2, 4, 4)).initial()
    run = {"path": Linear(), "prediction": "velocity"}
    euler, _ = sampler(flow, 7).run(model, noise, COND, **run)
    ddim, _ = SamplerSettings(solver="ddim", steps=7).run(model, noise, COND, **run)
    assert sampler(flow, 7).solver == "euler" and torch.allclose(euler, ddim, atol=1e-5)
