"""Predictions: conversions both ways for every path, and an error where a prediction does not determine the rest."""

import pytest
import torch

from ditkit.diffusion import DDPM, EDM, KINDS, VP, Cosine, Estimate, Linear, convert, interpolate, interval, target
from ditkit.diffusion.prediction import network_input

PATHS = [Linear(), Cosine(), VP(), EDM(), EDM(schedule="log_normal"), DDPM(), DDPM(schedule="cosine")]
ENDS = {"data end": 0.0, "noise end": 1.0}
QUANTITIES = ("data", "noise", "velocity", "score")

# Where a prediction does not say what is asked: nothing divides by 0 silently. Everything else is admissible.
UNDEFINED = {
    *((p, k, "noise end", q) for p in ("linear", "cosine") for k in ("noise", "score") for q in ("data", "velocity")),
    *((p, "data", "data end", q) for p in ("linear", "cosine", "vp") for q in ("noise", "velocity", "score")),
    *((p, k, "data end", "score") for p in ("linear", "cosine", "vp") for k in ("noise", "velocity", "edm")),
    *(("vp", "velocity", "data end", q) for q in ("data", "noise")),
    *(("vp", k, "data end", "velocity") for k in ("noise", "score", "edm")),
}


def draws(n, dtype=torch.float64):
    return torch.randn(2, n, 2, 3, 3, dtype=dtype, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_perfect_predictions_give_data_noise_velocity_score(path, kind):
    t = torch.linspace(0.01, 0.99, 25, dtype=torch.float64)
    x, eps = draws(25)
    x_t = interpolate(path, x, eps, t)
    estimate = Estimate(x_t, t, path, kind, target(kind, path, x, eps, t))
    for other in KINDS:
        want = target(other, path, x, eps, t)
        assert torch.allclose(convert(estimate, other), want, rtol=1e-7, atol=1e-7 * want.abs().max()), other


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_round_trip(path, kind, other):
    """Any output, even one that no data produce, there and back."""
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    x_t, value = draws(19)
    there = convert(Estimate(x_t, t, path, kind, value), other)
    back = convert(Estimate(x_t, t, path, other, there), kind)
    assert torch.allclose(back, value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("path", [Linear(), Cosine(), VP(), EDM(), DDPM()], ids=lambda p: p.kind)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ENDS)
def test_undefined_ends_raise_and_are_listed(path, kind, end):
    x_t, value = draws(3, torch.float32)
    for t in (torch.full((3,), ENDS[end]), torch.tensor(ENDS[end])):  # per sample and scalar
        for quantity in QUANTITIES:
            estimate = Estimate(x_t, t, path, kind, value)
            listed = (path.kind, kind, end, quantity) in UNDEFINED and kind != quantity
            if listed:
                with pytest.raises(ValueError, match=rf"{kind} prediction on the {path.kind} path"):
                    getattr(estimate, quantity)
            else:
                assert getattr(estimate, quantity).isfinite().all(), quantity


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_finite_inside_the_interval(path, kind):
    low, high = interval(path, kind, "sample")
    low = max(low, 1e-3) if path.kind in ("linear", "cosine") else low  # the score needs sigma > 0
    x_t, value = draws(2, torch.float32)
    estimate = Estimate(x_t, torch.tensor([low, high]), path, kind, value)
    assert all(getattr(estimate, quantity).isfinite().all() for quantity in QUANTITIES)


def test_velocity_never_divides_on_linear_and_cosine():
    """At both ends the velocity tells data and noise exactly (SiT's own formula divides by alpha)."""
    x, eps = draws(2, torch.float32)
    for path in (Linear(), Cosine()):
        t = torch.tensor([0.0, 1.0])
        estimate = Estimate(interpolate(path, x, eps, t), t, path, "velocity", target("velocity", path, x, eps, t))
        assert torch.allclose(estimate.data, x, atol=1e-6) and torch.allclose(estimate.noise, eps, atol=1e-6)


def test_edm_is_karras_preconditioning():
    """D = c_skip x + c_out F with the published coefficients (Karras et al. 2022, table 1), and the input scale."""
    path, t = EDM(), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    x_t, value = draws(3)
    sigma, sd = path.sigma(t).view(3, 1, 1, 1), 0.5
    c_skip, c_out = sd**2 / (sigma**2 + sd**2), sigma * sd / (sigma**2 + sd**2).sqrt()
    assert torch.allclose(Estimate(x_t, t, path, "edm", value).data, c_skip * x_t + c_out * value)
    assert torch.allclose(network_input(path, x_t, t), x_t / (sigma**2 + sd**2).sqrt())
    assert network_input(Linear(), x_t, t) is x_t


def test_network_input_has_unit_variance():
    x, eps = torch.randn(2, 4, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.0, 0.3, 0.6, 1.0])
    x_t = network_input(EDM(), interpolate(EDM(), 0.5 * x, eps, t), t)
    assert torch.allclose(x_t.flatten(1).std(1), torch.ones(4), atol=0.03)


def test_f_is_v_prediction_for_unit_data_on_the_circle():
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    x, eps = draws(9)
    angle = (t * torch.pi / 2).view(9, 1, 1, 1)
    assert torch.allclose(target("edm", Cosine(), x, eps, t), angle.sin() * x - angle.cos() * eps)


def test_dtype_of_the_state_wins():
    """REPA keeps the state in float64 and calls the network in float32; bf16 outputs must not spoil the state."""
    t = torch.tensor([0.3, 0.6], dtype=torch.float64)
    x_t, value = draws(2)
    for kind in KINDS:
        for dtype in (torch.float32, torch.bfloat16):
            estimate = Estimate(x_t, t, Linear(), kind, value.to(dtype))
            assert {getattr(estimate, q).dtype for q in QUANTITIES} == {torch.float64}
            assert convert(estimate, "edm").dtype == torch.float64
    estimate = Estimate(x_t.float(), t, Linear(), "velocity", value.float())
    assert {getattr(estimate, q).dtype for q in QUANTITIES} == {torch.float32}


def test_gradients_flow():
    value = torch.ones(2, 1, 2, 2, requires_grad=True)
    estimate = Estimate(torch.zeros(2, 1, 2, 2), torch.tensor([0.2, 0.7]), Linear(), "velocity", value)
    (estimate.data.sum() + estimate.noise.sum()).backward()
    assert torch.allclose(value.grad[:, 0, 0, 0], torch.tensor([0.6, -0.4]))  # -t + (1 - t)
