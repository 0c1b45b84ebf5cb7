"""Solvers piece by piece: coefficients, forms, jumps, refusals. The oracles are in test_solvers_gaussian."""

import math
from functools import partial

import pytest
import torch

from ditkit.diffusion.ddpm import DDPM, space_timesteps
from ditkit.diffusion.discrete import jumps
from ditkit.diffusion.noise import philox_normal
from ditkit.diffusion.path import EDM, VP, Cosine, Linear
from ditkit.diffusion.prediction import Estimate
from ditkit.diffusion.sde import FORMS, diffusion
from ditkit.diffusion.solvers import SOLVERS, find_solver, lagrange_weights, solver_options

SHAPE = (2, 3, 4, 4)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def scalar(value):
    return torch.tensor(value, dtype=torch.float64)


def velocity(field, path):
    """A denoise function whose velocity is field(x, t); `.times` records where it was asked."""

    def denoise(x, t, step):
        denoise.times.append((round(float(t), 6), step))
        return Estimate(x, t, path, "velocity", field(x, t))

    denoise.times = []
    return denoise


# ------------------------------------------------------------------------------------------------ multistep


def test_lagrange_weights_of_the_papers_table():
    step = [0.96 - 0.24 * k for k in range(5)]  # DDT's grid: five equal steps, then a short one from 0.96 to 1
    assert lagrange_weights([0.5], 0.5, 0.4) == [1.0]
    expected = {
        2: (-0.5, 1.5),
        3: (0.416667, -1.333333, 1.916667),
        4: (-0.375, 1.541667, -2.458333, 2.291667),
    }
    for order, weights in expected.items():
        assert lagrange_weights(step[:order][::-1], 0.96, 1.20) == pytest.approx(weights, abs=1e-6)
    assert lagrange_weights([0.72, 0.96], 0.96, 1.0) == pytest.approx((-0.083333, 1.083333), abs=1e-6)


def test_lagrange_weights_recorded(reference):
    ref = reference("ddt_preint")
    for name, case in ref.meta["cases"].items():
        nodes, (start, end) = ref.inputs[f"{name}.ts"][-case["order"] :], ref.inputs[f"{name}.range"]
        weights = tensor(*lagrange_weights(nodes.tolist(), float(start), float(end)))
        ref.close(f"{name}.coeffs", weights)
        ref.close(f"{name}.value", (end - start) * weights @ ref.inputs[f"{name}.vs"][-case["order"] :])
    nodes, powers = tensor(0.1, 0.4, 0.6, 1.0), torch.arange(4)  # four nodes integrate a cubic exactly
    values = (ref.inputs["poly"] * nodes[:, None] ** powers).sum(1)
    ref.close("polynomial", (0.9 - 0.2) * tensor(*lagrange_weights(nodes.tolist(), 0.2, 0.9)) @ values)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_multistep_integrates_polynomials_exactly(order):
    """Once `order` velocities are known, a velocity of degree order - 1 in t costs no error on any grid."""
    times = tensor(0.9, 0.8, 0.75, 0.5, 0.45, 0.1)
    denoise = velocity(lambda x, t: torch.full_like(x, 1.0) * t ** (order - 1), Linear())
    states = [torch.zeros(SHAPE, dtype=torch.float64)]
    for points in range(2, len(times) + 1):
        states.append(SOLVERS["multistep"](denoise, Linear(), states[0], times[:points], None, order=order))
    gained = states[-1] - states[order - 1] if order > 1 else states[-1]
    begin = times[order - 1] if order > 1 else times[0]
    assert torch.allclose(gained, torch.full_like(gained, float(times[-1] ** order - begin**order) / order), atol=1e-12)


# ------------------------------------------------------------------------------------------------ where they look


EVALUATIONS = {"euler": 4, "heun": 7, "midpoint": 8, "heun3": 12, "rk4": 16, "multistep": 4, "euler_maruyama": 4,
               "heun_sde": 7, "ddim": 4, "reverse_ddim": 4, "ancestral": 4, "dpmpp_2m": 4}  # fmt: skip


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluations_and_steps(name):
    """Four steps: how often a solver looks, always at the grid's steps in order, never at the end unless it must."""
    times = tensor(0.9, 0.7, 0.5, 0.3, 0.1)
    if name == "reverse_ddim":
        times = times.flip(0)
    denoise = velocity(lambda x, t: -x, Linear())
    options = {"variance": "fixed_small"} if name == "ancestral" else {}
    x = SOLVERS[name](denoise, Linear(), torch.ones(SHAPE), times, lambda k: torch.zeros(SHAPE), **options)
    assert len(denoise.times) == EVALUATIONS[name] and x.dtype == torch.float32
    steps = [step for _, step in denoise.times]
    assert steps == sorted(steps) and set(steps) == {0, 1, 2, 3}
    assert denoise.times[0] == (round(float(times[0]), 6), 0)
    assert (float(times[-1]) in {t for t, _ in denoise.times}) == (name == "rk4")


def test_heun_corrects_the_last_step_on_demand():
    denoise = velocity(lambda x, t: -x, Linear())
    SOLVERS["heun"](denoise, Linear(), torch.ones(SHAPE), tensor(1.0, 0.5, 0.0), None, correct_last=True)
    assert denoise.times == [(1.0, 0), (0.5, 0), (0.5, 1), (0.0, 1)]
    denoise.times.clear()
    SOLVERS["heun"](denoise, Linear(), torch.ones(SHAPE), tensor(1.0, 0.0), None)
    assert denoise.times == [(1.0, 0)]  # one step without a corrector is Euler's


@pytest.mark.parametrize("times, word", [
    ([0.5], "at least two"), ([1.0, 1.0, 0.0], "strictly"), ([1.0, 0.2, 0.5], "strictly"), ([1.5, 0.0], "in \\[0, 1\\]")
])  # fmt: skip
def test_bad_grids(times, word):
    for name in ("euler", "heun_sde", "ddim", "dopri5"):
        with pytest.raises(ValueError, match=word):
            SOLVERS[name](velocity(lambda x, t: x, Linear()), Linear(), torch.ones(SHAPE), times, lambda k: 0)


def test_names_and_options():
    with pytest.raises(ValueError, match="did you mean 'euler_maruyama'"):
        find_solver("euler_maruyana")
    assert solver_options(find_solver("ddim")) == {"eta": 0.0, "clip": False}
    assert "order" in solver_options(find_solver("multistep"))
    arguments = (velocity(lambda x, t: x, Linear()), Linear(), torch.ones(SHAPE), tensor(0.9, 0.5), lambda k: 0)
    for name, options in [("multistep", {"order": 5}), ("ancestral", {"variance": "large"}),
                          ("euler_maruyama", {"form": "sigmoid"}), ("heun_sde", {"last_rule": "average"}),
                          ("dpmpp_2m", {"variable": "t"})]:  # fmt: skip
        with pytest.raises(ValueError, match=r"must be|is not known"):
            SOLVERS[name](*arguments, **options)
    with pytest.raises(ValueError, match="must increase"):
        SOLVERS["reverse_ddim"](*arguments)
    for name in ("euler_maruyama", "heun_sde", "ddim", "ancestral", "dpmpp_2m"):
        with pytest.raises(ValueError, match="must decrease"):
            SOLVERS[name](*arguments[:3], tensor(0.0, 0.9), lambda k: 0)
    with pytest.raises(ValueError, match="predicts no variance"):
        SOLVERS["ancestral"](*arguments)


# ------------------------------------------------------------------------------------------------ SDE forms


@pytest.mark.parametrize("path", [Linear(), Cosine(), VP(), EDM()], ids=lambda path: path.kind)
def test_diffusion_forms(path):
    """SiT's table of forms, in our time; the quotient with sigma is what multiplies the noise."""
    for t in (scalar(0.05), scalar(0.4), scalar(0.97)):
        alpha, sigma, u = path.alpha(t), path.sigma(t), 1 - t
        formulas = {
            "constant": 1.0, "sigma": sigma, "linear": t,
            "sbdm": sigma * path.d_sigma(t) - sigma**2 * path.d_alpha(t) / alpha,
            "decreasing": 0.25 * (torch.cos(math.pi * u) + 1) ** 2,
            "increasing-decreasing": torch.sin(math.pi * u) ** 2,
        }  # fmt: skip
        assert set(formulas) == set(FORMS)
        for form, wanted in formulas.items():
            d, quotient = diffusion(form, path, t)
            assert float(d) == pytest.approx(float(wanted), rel=1e-9)
            assert float(quotient) == pytest.approx(float(wanted / sigma), rel=1e-9)
    assert float(diffusion("sigma", path, scalar(0.4), 0.6)[0]) == pytest.approx(0.6 * float(path.sigma(scalar(0.4))))


def test_sbdm_is_half_the_noise_rate_of_vp():
    for t in (scalar(0.01), scalar(0.6), scalar(1.0)):
        assert float(diffusion("sbdm", VP(), t)[0]) == pytest.approx(float(VP().beta(t)) / 2, rel=1e-9)


FINITE_AT_DATA = {"linear": {"sbdm": 1.0, "sigma": 1.0, "linear": 1.0, "decreasing": 0.0, "increasing-decreasing": 0.0},
                  "cosine": {"sbdm": math.pi / 2, "sigma": 1.0, "linear": 2 / math.pi, "decreasing": 0.0,
                             "increasing-decreasing": 0.0}}  # fmt: skip


@pytest.mark.parametrize("path", [Linear(), Cosine()], ids=lambda path: path.kind)
def test_diffusion_at_the_ends(path):
    """D s has a limit at the data end unless D is positive there; D itself is infinite at the noise end for sbdm."""
    for form in FORMS:
        wanted = FINITE_AT_DATA[path.kind].get(form)
        if wanted is None:
            with pytest.raises(ValueError, match="'constant' is infinite at t = 0 on the"):
                diffusion(form, path, scalar(0.0))
        else:
            d, quotient = diffusion(form, path, scalar(0.0))
            assert float(d) == 0 and float(quotient) == pytest.approx(wanted, abs=1e-4)
        if form == "sbdm":
            with pytest.raises(ValueError, match="infinite at t = 1"):
                diffusion(form, path, scalar(1.0))
        else:
            assert all(math.isfinite(float(v)) for v in diffusion(form, path, scalar(1.0)))


def test_sde_without_diffusion_is_the_ode():
    denoise = velocity(lambda x, t: torch.sin(3 * x) - t, Linear())
    x, times = philox_normal(0, (1,), SHAPE), tensor(1.0, 0.7, 0.3, 0.0)
    silent = partial(SOLVERS["euler_maruyama"], norm=0.0, form="sigma")
    assert torch.equal(silent(denoise, Linear(), x, times, lambda k: torch.ones(SHAPE)),
                       SOLVERS["euler"](denoise, Linear(), x, times))  # fmt: skip


def test_last_rules():
    """mean, euler and tweedie land from t = 0.04; on Linear tweedie is euler; none makes the last step a noisy one."""
    denoise = velocity(lambda x, t: torch.sin(3 * x) - t, Linear())
    x, times, asked = philox_normal(0, (1,), SHAPE), tensor(1.0, 0.5, 0.04, 0.0), []

    def noise(k):
        asked.append(k)
        return torch.ones(SHAPE)

    ends = {}
    for rule, steps in {"mean": [0, 1], "euler": [0, 1], "tweedie": [0, 1], "none": [0, 1, 2]}.items():
        asked.clear()
        ends[rule] = SOLVERS["euler_maruyama"](denoise, Linear(), x, times, noise, last_rule=rule)
        assert asked == steps
    assert torch.allclose(ends["tweedie"], ends["euler"], atol=1e-6)
    assert not torch.allclose(ends["mean"], ends["euler"], atol=1e-3)


# ------------------------------------------------------------------------------------------------ jumps


def test_jumps_on_a_table_end_in_the_data():
    times = tensor(999, 500, 0) / 999
    visited = list(jumps(DDPM(), times))
    assert [j.step for j in visited] == [0, 1, 2] and [round(float(j.t) * 999) for j in visited] == [999, 500, 0]
    assert float(visited[-1].sigma) == pytest.approx(0.01) and float(visited[-1].sigma_to) == 0
    assert len(list(jumps(Linear(), times))) == 2  # a continuous path ends at its last point
    assert len(list(jumps(DDPM(), tensor(1.0)))) == 1


def test_ancestral_coefficients_are_the_tables():
    """One jump of the general formulas equals the respaced chain's own posterior tables, for each variance."""
    path = DDPM(indices=space_timesteps(1000, 10))
    times, x = path.times().double(), philox_normal(1, (1,), SHAPE).double()
    data, logits = philox_normal(1, (2,), SHAPE).double(), philox_normal(1, (3,), SHAPE).double()
    full = torch.full_like(x, 1.0)
    for k in (0, 4, 8):
        pair = times[k : k + 2]
        now = pair[0]
        for variance in ("learned_range", "fixed_large", "fixed_small"):
            states = [
                SOLVERS["ancestral"](
                    lambda x, t, step: Estimate(x, t, DDPM(), "data", data, logits), Level(pair), x, pair,
                    lambda step, level=level: level * full, variance=variance,
                )
                for level in (0.0, 1.0)
            ]  # fmt: skip
            assert torch.allclose(states[0], path.posterior_mean(data, x, now), atol=1e-9)
            log = path.log_variance(variance, now, logits)
            assert torch.allclose(states[1] - states[0], torch.exp(0.5 * log) * full, rtol=1e-6)


class Level:
    """DDPM's alpha and sigma as a path without the implied last jump."""

    kind = "levels"

    def __init__(self, times):
        self.alpha, self.sigma = DDPM().alpha, DDPM().sigma


def test_ddim_with_eta_one_is_ancestral_with_the_posterior_variance():
    path = DDPM()
    times = tensor(*space_timesteps(1000, 8)[::-1]) / 999
    denoise = velocity(lambda x, t: torch.sin(x) * t, path)
    x = philox_normal(0, (5,), SHAPE).double()
    noise = lambda k: philox_normal(0, (6, k), SHAPE).double()  # noqa: E731
    for clip in (False, True):
        one = SOLVERS["ddim"](denoise, path, x, times, noise, eta=1.0, clip=clip)
        two = SOLVERS["ancestral"](denoise, path, x, times, noise, variance="fixed_small", clip=clip)
        assert torch.allclose(one, two, atol=1e-9)
    assert float(two.abs().max()) <= 1


def test_reverse_ddim_is_undone_by_ddim():
    path, denoise = Linear(), velocity(lambda x, t: torch.sin(x), Linear())
    x, up = philox_normal(0, (7,), SHAPE).double(), torch.linspace(0, 1, 400, dtype=torch.float64)
    z = SOLVERS["reverse_ddim"](denoise, path, x, up)
    assert torch.allclose(SOLVERS["ddim"](denoise, path, z, up.flip(0)), x, atol=0.02)
    assert not torch.allclose(z, x, atol=0.1)


def test_dpmpp_with_two_points_is_ddim():
    denoise, x = velocity(lambda x, t: torch.sin(x), Linear()), philox_normal(0, (8,), SHAPE).double()
    for times in (tensor(1.0, 0.4), tensor(0.8, 0.0)):
        one = SOLVERS["dpmpp_2m"](denoise, Linear(), x, times)
        assert torch.allclose(one, SOLVERS["ddim"](denoise, Linear(), x, times), atol=1e-12)
