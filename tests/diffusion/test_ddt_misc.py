"""DDT's schedulers, guidance functions, time shift and loss weights, as recorded. Their time is one minus ours.

Except that their GVP runs our way, and that its derivatives lack the factor pi / 2 of a quarter circle.
"""

import math

import pytest
import torch

from ditkit.diffusion import (
    CFG,
    VP,
    Cosine,
    Denoise,
    Flow,
    Linear,
    LogitNormal,
    SNRWeight,
    Uniform,
    interpolate,
    log_snr,
    shift,
    target,
)
from ditkit.diffusion.guidance import extrapolate
from ditkit.diffusion.noise import philox_normal
from ditkit.diffusion.ode import place
from ditkit.diffusion.sde import diffusion
from ditkit.diffusion.solvers import lagrange_weights
from ditkit.protocols import Condition, Output


@pytest.fixture
def ref(reference):
    return reference("ddt_misc")


def forms(form, path, times):
    return torch.stack([diffusion(form, path, t)[0] for t in times])


@pytest.mark.parametrize("name", ["linear", "gvp"])
def test_schedulers(ref, name):
    theirs = ref.inputs["t"]
    # direction: sign of the derivatives; quarter: what their GVP derivatives lack
    path, t, direction, quarter = (
        (Linear(), 1 - theirs, -1.0, 1.0) if name == "linear" else (Cosine(), theirs, 1.0, math.pi / 2)
    )
    alpha, sigma = path.alpha(t), path.sigma(t)
    d_alpha, d_sigma = direction * path.d_alpha(t) / quarter, direction * path.d_sigma(t) / quarter
    for quantity, value in {
        "alpha": alpha, "sigma": sigma, "dalpha": d_alpha, "dsigma": d_sigma, "dalpha_over_alpha": d_alpha / alpha,
        "dsigma_mul_sigma": d_sigma * sigma, "drift_coefficient": d_alpha / alpha,
        "diffuse_coefficient": direction * forms("sbdm", path, t) / quarter,
        # sin(t)^2 for GVP: its pi is missing too
        "w": forms("sigma", path, t) if name == "linear" else forms("increasing-decreasing", path, t / math.pi),
    }.items():  # fmt: skip
        ref.close(f"{name}.{quantity}", value)


def test_vp_and_constant_schedulers(ref):
    """Their VP scheduler is DDPM's continuous one, with 0 at the data, as ours."""
    path, t = VP(), ref.inputs["t"]
    ref.close("vp.alpha", path.alpha(t))
    ref.close("vp.sigma", path.sigma(t))
    ref.close("vp.beta", path.beta(t))
    ref.close("vpbeta.w", 2 * forms("sbdm", path, t))  # w of sqrt(w) dw, where D is half of it
    ref.close("const.w", forms("constant", Linear(), t[:1]))


def test_time_shift_and_axes_of_interpolation(ref):
    t = 1 - ref.inputs["t"].double()
    for s in (1.0, 1.5, 3.0):
        ref.close(f"shift_respace.{s}", 1 - shift(t, s))
    ref.close("t2snr", torch.exp(log_snr(Linear(), t) / 2))
    ref.close("t2isnr", torch.exp(-log_snr(Linear(), t) / 2))
    ref.close("t2logsnr", torch.tensor([place(Linear(), point, "log_snr") for point in t]))
    assert [place(Linear(), point, "time") for point in t] == t.tolist()


def test_the_ends_of_the_log_snr_axis_are_finite():
    ends = [place(Linear(), torch.tensor(t, dtype=torch.float64), "log_snr") for t in (1.0, 0.5, 0.0)]
    assert ends == pytest.approx([math.log(0.001 / 1.001), math.log(0.5 / 0.501), math.log(1000)])
    assert all(map(math.isfinite, lagrange_weights(ends[:2], ends[1], ends[2])))


WEIGHTS = {
    "inverse_sigma": SNRWeight(form="inverse_sigma"),
    "snr": SNRWeight(form="snr"),
    "minsnr": SNRWeight(form="snr_floor"),
    "maxsnr": SNRWeight(form="snr_cap"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_loss_weights(ref, name):
    ref.close(f"weight.{name}", WEIGHTS[name](Linear(), 1 - ref.inputs["t"], "velocity"))


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("path", [Linear(), Cosine()])
def test_loss_weights_do_not_depend_on_the_prediction(name, path):
    """An error of the data estimate costs the same whatever the network predicts (DDT: the velocity)."""
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    x, wrong, eps = (philox_normal(0, (i,), (5, 2, 2, 2)).double() for i in range(3))
    x_t = interpolate(path, x, eps, t)
    other = (x_t - path.alpha(t).view(-1, 1, 1, 1) * wrong) / path.sigma(t).view(-1, 1, 1, 1)  # x_t's noise for `wrong`
    losses = {}
    for kind in ("velocity", "noise", "data"):
        error = target(kind, path, wrong, other, t) - target(kind, path, x, eps, t)
        losses[kind] = WEIGHTS[name](path, t, kind) * error.square().mean(dim=(1, 2, 3))
    assert torch.allclose(losses["noise"], losses["velocity"]) and torch.allclose(losses["data"], losses["velocity"])
    assert losses["velocity"].min() > 0


def test_weights_in_the_objective():
    """They read back as settings and multiply each sample's loss; times at which they are infinite are refused."""
    x, eps = philox_normal(1, (0,), (8, 1, 2, 2)), philox_normal(1, (1,), (8, 1, 2, 2))
    t, value = torch.linspace(0.05, 0.95, 8), torch.zeros(8, 1, 2, 2)
    plain = Flow(density=LogitNormal()).per_sample(value, x, eps, t)
    capped = Flow(density=LogitNormal(), weight={"kind": "snr", "form": "snr_cap", "limit": 3})
    assert Flow.model_validate_json(capped.model_dump_json()) == capped
    assert torch.allclose(capped.per_sample(value, x, eps, t), plain * ((1 - t) / t).clamp(max=3))
    assert Flow(weight=capped.weight).density == Uniform()  # a cap is finite everywhere
    for form in ("inverse_sigma", "snr", "snr_floor"):
        with pytest.raises(ValueError, match="infinite at t = 0"):
            Flow(weight=SNRWeight(form=form))


# ------------------------------------------------------------------------------------------------ guidance


def mixed(scale, channels, rest):
    """One's own guidance: a scale for the first channels and one for the others."""

    def guide(denoise, x, t, cond):
        strong, weak = denoise.passes(x, t, cond, denoise.null(cond))
        return extrapolate(weak, strong, scale, channels, rest)

    return guide


FUNCTIONS = {
    "simple": lambda scale: CFG(scale=scale),
    "c3": lambda scale: CFG(scale=scale, channels=3),
    "c4": lambda scale: mixed(scale, 4, 1.05),
    "c4_p10": lambda scale: mixed(scale, 4, 1.1),
    "c4_p20": lambda scale: mixed(scale, 4, 1.2),
    "p4": lambda scale: mixed(1.0, 4, scale),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_guidance_functions(ref, name):
    without, under = ref.inputs["out"].chunk(2)  # [unconditional, conditional]

    class Recorded:
        def __call__(self, x, t, cond, *, capture=()):
            is_null = (cond.label == 9).view(-1, 1, 1, 1)
            repeat = len(x) // len(under)
            return Output(torch.where(is_null, without.repeat(repeat, 1, 1, 1), under.repeat(repeat, 1, 1, 1)))

        def null(self, cond):
            return cond.with_label(torch.full_like(cond.label, 9))

    cond = Condition(label=torch.arange(3))
    for scale in ref.meta["guidance"]:
        denoise = Denoise(Recorded(), cond, path=Linear(), prediction="velocity", guidance=FUNCTIONS[name](scale))
        ref.close(f"{name}_guidance_fn.{scale}", denoise(torch.zeros_like(under), 0.5, 0).velocity)
