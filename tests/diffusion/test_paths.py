"""Every path: derivatives by finite differences, ends, dtypes; and SiT's recorded path quantities.

SiT's time is 1 - ours, so its derivatives in time are minus ours.
"""

import math

import pytest
import torch

from ditkit.config import SettingsError, read_settings
from ditkit.diffusion import (
    DDPM,
    EDM,
    VP,
    Cosine,
    Estimate,
    Flow,
    Linear,
    determinant,
    interpolate,
    interval,
    log_snr,
    velocity,
)
from ditkit.diffusion.sde import diffusion

PATHS = [Linear(), Cosine(), VP(), EDM(), EDM(rho=3, sigma_max=20), DDPM(), DDPM(schedule="cosine"), DDPM(steps=100)]
SCHEDULES = [EDM(schedule="log_normal"), EDM(schedule="rf"), EDM(schedule="cosine")]
PATHS += [*SCHEDULES, EDM(schedule="log_normal", mean=1.2, std=0.6, sigma_max=20), DDPM(schedule="scaled_linear")]
SIT = {"Linear": Linear(), "GVP": Cosine(), "VP": VP()}
by_name = pytest.mark.parametrize("path", PATHS, ids=str)


@by_name
def test_derivatives_by_finite_differences(path):
    h = 1e-6
    t = torch.linspace(0.02, 0.98, 241, dtype=torch.float64)
    if path.kind == "ddpm":  # linear between the indices: stay inside one cell
        t = (torch.floor(t * (path.steps - 1)) + 0.4) / (path.steps - 1)
    for value, slope in ((path.alpha, path.d_alpha), (path.sigma, path.d_sigma)):
        measured = (value(t + h) - value(t - h)) / (2 * h)
        assert torch.allclose(slope(t), measured, rtol=1e-6, atol=1e-7)


@by_name
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
def test_shape_and_dtype_stay(path, dtype, shape):
    t = torch.full(shape, 0.3, dtype=dtype)
    for function in (path.alpha, path.sigma, path.d_alpha, path.d_sigma):
        out = function(t)
        assert out.shape == t.shape and out.dtype == dtype
    assert torch.equal(t, torch.full(shape, 0.3, dtype=dtype))
    path.sigma(t).add_(1)
    assert torch.equal(t, torch.full(shape, 0.3, dtype=dtype)), "sigma must not be a view of t"


@by_name
def test_noise_grows(path):
    t = torch.linspace(0, 1, 501, dtype=torch.float64)
    assert (log_snr(path, t[1:-1]).diff() < 0).all()
    assert (path.alpha(t) >= 0).all() and (path.sigma(t) >= 0).all()
    assert (determinant(path, t[1:-1]) > 0).all()


@pytest.mark.parametrize("path", [Linear(), Cosine()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_are_exact(path, dtype):
    ends = torch.tensor([0.0, 1.0], dtype=dtype)
    assert path.alpha(ends).tolist() == [1.0, 0.0]
    assert path.sigma(ends).tolist() == [0.0, 1.0]


def test_ends_of_the_others():
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    assert VP().alpha(zero) == 1 and VP().sigma(zero) == 0 and VP().alpha(one) == pytest.approx(0.006572, rel=1e-3)
    assert EDM().sigma(zero).item() == pytest.approx(0.002) and EDM().sigma(one).item() == pytest.approx(80)
    assert DDPM().sigma(zero).item() == pytest.approx(0.01) and EDM().prior_scale == 80
    assert [p.prior_scale for p in (Linear(), Cosine(), VP(), DDPM())] == [1.0] * 4


@pytest.mark.parametrize("path", [Cosine(), VP(), DDPM(), DDPM(schedule="cosine")], ids=str)
def test_variance_is_preserved(path):
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert torch.allclose(path.alpha(t) ** 2 + path.sigma(t) ** 2, torch.ones_like(t), atol=1e-12)


def test_vp_is_accurate_near_the_data():
    """sigma^2 = 1 - alpha^2 would lose all digits in float32 here."""
    t = torch.tensor([1e-5, 1e-4])
    assert torch.allclose(VP().sigma(t).double(), VP().sigma(t.double()), rtol=1e-6)


def test_edm_grid_is_uniform_in_t():
    """Karras et al. 2022, eq. 5: sigma_i = (80^(1/7) + i / (N - 1) (0.002^(1/7) - 80^(1/7)))^7."""
    i = torch.arange(18, dtype=torch.float64)
    want = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    t = torch.linspace(1, 0, 18, dtype=torch.float64)
    assert torch.allclose(EDM().sigma(t), want, rtol=1e-12)
    assert torch.allclose(EDM().time(want), t, atol=1e-12)


def test_interpolate_and_velocity_are_the_formulas():
    generator = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, 3, 4, 5, 6, generator=generator)
    t = torch.tensor([0.1, 0.5, 0.9])
    tt = t.view(3, 1, 1, 1)
    assert torch.allclose(interpolate(Linear(), x, eps, t), (1 - tt) * x + tt * eps)
    assert torch.equal(velocity(Linear(), x, eps, t), eps - x)
    angle = tt * math.pi / 2
    assert torch.allclose(interpolate(Cosine(), x, eps, t), angle.cos() * x + angle.sin() * eps, atol=1e-6)
    assert torch.equal(interpolate(Linear(), x, eps, torch.ones(())), eps)
    assert interpolate(Linear(), x.double(), eps.double(), t).dtype == torch.float64


@pytest.mark.parametrize("name", SIT)
def test_sit_path_quantities(reference, name):
    ref, path = reference("sit_paths"), SIT[name]
    t, x, eps, field = 1 - ref.inputs["t"], ref.inputs["x1"], ref.inputs["x0"], ref.inputs["field"]
    alpha, sigma, d_alpha, d_sigma = path.alpha(t), path.sigma(t), path.d_alpha(t), path.d_sigma(t)
    x_t = interpolate(path, x, eps, t)
    wide = (-1, 1, 1, 1)
    forward = (sigma * determinant(path, t) / alpha).view(wide)  # half the squared diffusion, SiT's drift_var
    minus = Estimate(x_t, t, path, "velocity", -field)
    got = {
        "alpha": alpha,
        "d_alpha": -d_alpha,
        "sigma": sigma,
        "d_sigma": -d_sigma,
        "d_alpha_over_alpha": -d_alpha / alpha,
        "mu_t": x_t,
        "xt": x_t,
        "ut": -velocity(path, x, eps, t),
        "drift": (d_alpha / alpha).view(wide) * x_t,
        "drift_var": forward,
        "score_from_velocity": minus.score,
        "noise_from_velocity": minus.noise,
        "velocity_from_score": -Estimate(x_t, t, path, "score", field).velocity,
    }
    forms = {"SBDM": "sbdm", "inccreasing-decreasing": "increasing-decreasing"}
    for key in ref.outputs:
        owner, quantity = key.split(".", 1)
        if owner == name and quantity.startswith("diffusion."):
            form = quantity.split(".")[1]
            values = [diffusion(forms.get(form, form), path, s, ref.meta["norm"])[0] for s in t]
            shape = ref.outputs[key].shape
            ref.close(key, torch.stack(values).view(wide).expand(shape))
        elif owner == name:
            ref.close(key, got[quantity])


def test_sit_value_check():
    """Golden numbers at SiT's t = 0.3: Linear score and noise of x = 0.7, v = -0.4."""
    x, v, t = torch.full((1, 1, 1, 1), 0.7), torch.full((1, 1, 1, 1), 0.4), torch.tensor([0.7])
    assert Estimate(x, t, Linear(), "velocity", v).score.item() == pytest.approx(-1.171429, abs=1e-6)
    assert Estimate(x, t, Linear(), "velocity", v).noise.item() == pytest.approx(0.82, abs=1e-6)
    assert Estimate(x, t, Cosine(), "velocity", v).score.item() == pytest.approx(-0.829750, abs=1e-6)
    assert Estimate(x, t, VP(), "velocity", v).score.item() == pytest.approx(-0.757021, abs=1e-6)


def test_training_and_sampling_intervals(reference):
    """SiT's check_interval for every path and prediction, at its default margins."""
    checked = 0
    for key, recorded in reference("sit_paths").meta["info"]["intervals"].items():
        name, kind, options = key.split(".", 2)
        if options == "{}":
            low, high = interval(SIT[name], kind)
            assert [1 - high, 1 - low] == pytest.approx(recorded["train"])
            low, high = interval(SIT[name], kind, "sample")
            assert [1 - high, 1 - low] == pytest.approx(recorded["ode"])
            checked += 1
    assert checked == 9


def test_settings_read_back():
    for path in PATHS:
        flow = Flow(path=path, density={"kind": "uniform", "low": 1e-3})
        assert read_settings(Flow, flow.model_dump(mode="json")) == flow
    with pytest.raises(SettingsError, match="sigma_min"):
        read_settings(EDM, {"sigma_min": 90.0})
    with pytest.raises(SettingsError, match="cosine"):
        read_settings(Flow, {"path": {"kind": "cosin"}})
