"""Straightness against flows whose paths are known: a constant field, and the flow of Gaussian data."""

import math

import pytest
import torch

from ditkit.analysis.straightness import (
    Flow,
    Straightness,
    Travel,
    at_once,
    least_error,
    observed_order,
    step_errors,
    straightness,
    travel,
)
from ditkit.diffusion.guidance import CFG
from ditkit.diffusion.path import Cosine, Linear
from ditkit.diffusion.prediction import target
from ditkit.protocols import Condition, Output

MEAN, STD = 0.4, 0.3


def draws(n=3, seed=0):
    return torch.randn((n, 2, 3, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Constant:
    """v = 1 + label everywhere, 1 without a label: straight at even speed."""

    def __call__(self, x, t, cond, *, capture=()):
        speed = 1.0 if cond.label is None else 1.0 + cond.label.to(x).view(-1, 1, 1, 1)
        return Output(torch.ones_like(x) * speed)

    def null(self, cond):
        return cond.with_label(torch.zeros_like(cond.label))


class Gaussian:
    """The exact velocity for data N(MEAN, STD^2): x_t = alpha m + s(t) z with s^2 = alpha^2 STD^2 + sigma^2."""

    def __init__(self, path):
        self.path = path

    def __call__(self, x, t, cond, *, capture=()):
        t = t[0].to(x.dtype)
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        centred = (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        return Output(target("velocity", self.path, MEAN + alpha * STD**2 * centred, sigma * centred, t))

    def null(self, cond):
        return cond


def flow_of(path):
    return Flow(Gaussian(path), None, path, "velocity")


def test_a_straight_flow_is_straight_and_one_step_is_exact():
    flow, noise = Flow(Constant(), None, Linear(), "velocity"), draws()
    found, latents = travel(flow, noise, 8)
    assert torch.allclose(latents, noise - 1) and len(found.times) == 9 and found.times[0] == 1 and found.times[-1] == 0
    seen = straightness(found)
    assert seen.s.value == pytest.approx(0, abs=1e-24) and seen.s.error == pytest.approx(0, abs=1e-24)
    assert torch.allclose(seen.length, torch.ones(3, dtype=torch.float64)) and float(seen.turn.max()) < 1e-5
    for solver in ("euler", "heun"):
        errors = step_errors(flow, noise, latents, solver, (1, 4))
        assert float(errors.errors.max()) < 1e-12
        assert errors.evaluations == ((1, 4) if solver == "euler" else (2, 8))


@pytest.mark.parametrize("path", [Linear(), Cosine()], ids=lambda p: p.kind)
def test_the_gaussian_flow_has_the_straightness_that_calculus_says(path):
    noise = draws()
    seen = straightness(travel(flow_of(path), noise, 400)[0])
    t = torch.linspace(0, 1, 20001, dtype=torch.float64)
    alpha, s = path.alpha(t), (path.alpha(t) ** 2 * STD**2 + path.sigma(t) ** 2).sqrt()
    d_s = (path.alpha(t) * path.d_alpha(t) * STD**2 + path.sigma(t) * path.d_sigma(t)) / s
    z = noise.flatten(1)[..., None]
    v, whole = path.d_alpha(t) * MEAN + d_s * z, (alpha[-1] - alpha[0]) * MEAN + (s[-1] - s[0]) * z
    deviation = torch.trapezoid((v - whole).square().sum(1), t)
    assert seen.s.value == pytest.approx(float(deviation.sum() / whole.square().sum()), rel=2e-3)
    length = torch.trapezoid(v.norm(dim=1), t) / whole[..., 0].norm(dim=1)
    assert torch.allclose(seen.length, length, rtol=1e-3) and (seen.length > 1).all()
    unit = (v / v.norm(dim=1, keepdim=True))[..., 1:]  # on the cosine path it stands still at the data
    turned = (unit.diff(dim=2).norm(dim=1)).sum(1).rad2deg()  # the length of the curve of directions
    assert torch.allclose(seen.turn.sum(1), turned, rtol=5e-3)
    assert float((seen.turn_rate * seen.times.diff().abs()).sum()) == pytest.approx(float(seen.turn.sum(1).mean()))
    assert float(torch.trapezoid(seen.deviation_at, seen.times)) == pytest.approx(-seen.s.value)


def test_errors_fall_with_the_order_of_the_solver():
    flow, noise, counts = flow_of(Linear()), draws(2), (8, 16, 32, 64)
    fine = travel(flow, noise, 2048)[1]
    exact = MEAN + STD * noise
    assert torch.allclose(fine, exact, atol=1e-5)
    for solver, order in (("euler", 1), ("heun", 2)):
        errors = step_errors(flow, noise, fine, solver, counts).errors.mean(0).tolist()
        assert errors == sorted(errors, reverse=True)
        assert observed_order(counts, errors) == pytest.approx(order, abs=0.2)


def test_guidance_changes_the_flow_and_conditions_are_cut_with_it():
    cond = Condition(label=torch.tensor([1, 3]))
    guided = Flow(Constant(), cond, Linear(), "velocity", CFG(scale=2.0))
    noise = draws(2)
    latents, denoise = guided.run(noise, "euler", 2)
    speeds = torch.tensor([3.0, 7.0], dtype=torch.float64).view(2, 1, 1, 1)  # 1 + 2 label
    assert torch.allclose(latents, noise - speeds) and denoise.evaluations == 4
    assert torch.allclose(guided.of(slice(1, 2)).run(noise[1:], "euler", 2)[0], latents[1:])


def test_no_path_is_shorter_than_the_straight_line():
    turning = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)[None]  # two velocities of a quarter circle
    far = Travel(
        torch.tensor([1.0, 0.0]).double(), turning, torch.zeros(1, 2).double(), torch.full((1, 2), 5.0).double()
    )
    assert straightness(far).length.tolist() == [1]


def test_parts_join_and_order_needs_two_errors():
    noise = draws(4)
    parts = [straightness(travel(flow_of(Linear()), noise[i : i + 2], 20)[0]) for i in (0, 2)]
    whole = straightness(travel(flow_of(Linear()), noise, 20)[0])
    assert Straightness.join(parts).s.value == pytest.approx(whole.s.value)
    assert observed_order((1, 2), (0.0, 0.0)) is None
    assert observed_order((2, 4, 8, 16), (1e-2, 2.5e-3, 1e-4, 1.1e-4), 2e-4) == pytest.approx(2)
    assert observed_order((1, 2, 4, 8), (700.0, 90.0, 0.5, 0.25)) == pytest.approx(1), "far off is no order"
    assert least_error(0.0) == 1e-5 and least_error(0.01) == pytest.approx(0.04)
    assert observed_order((2, 4), (1.0, 0.25)) == pytest.approx(2)
    assert at_once(10, 9, 64) == 64 and at_once(1 << 22, 127, 64) == 1
    assert math.isclose(at_once(1 << 20, 1, 10**6), 128)
