"""The oracle of all solvers: on Gaussian data the posterior mean is known, so every solver must end in the data."""

import math
from functools import cache, partial

import pytest
import torch

from ditkit.diffusion.ddpm import DDPM
from ditkit.diffusion.noise import philox_normal
from ditkit.diffusion.path import EDM, VP, Cosine, Linear
from ditkit.diffusion.prediction import KINDS, Estimate, target
from ditkit.diffusion.sample import SamplerSettings, sample
from ditkit.diffusion.solvers import SOLVERS
from ditkit.protocols import Output

MEAN = torch.tensor([0.5, -0.3], dtype=torch.float64).view(1, 2, 1, 1)
STD = torch.tensor([0.6, 0.3], dtype=torch.float64).view(1, 2, 1, 1)
PATHS = {
    "linear": Linear(), "cosine": Cosine(), "vp": VP(), "edm": EDM(), "ddpm": DDPM(),
    "ddpm_cosine": DDPM(schedule="cosine"),
}  # fmt: skip
CONTINUOUS = [Linear(), Cosine(), VP(), EDM()]


def posterior(path, x, t):
    """(E[x | x_t], E[eps | x_t]) for data N(MEAN, STD^2); t broadcasts against x."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    centred = (x - alpha * MEAN.to(x)) / (alpha**2 * STD.to(x) ** 2 + sigma**2)
    return MEAN.to(x) + alpha * STD.to(x) ** 2 * centred, sigma * centred


class Perfect:
    """The exact network of one prediction kind; variance=True adds logits that ask for the posterior's variance."""

    def __init__(self, path, kind, variance=False):
        self.path, self.kind, self.variance = path, kind, variance

    def __call__(self, x, t, cond, *, capture=()):
        now = t[0].to(x.dtype)
        if self.path.kind == "edm":  # undo the input scaling
            x = x * (self.path.sigma(now) ** 2 + self.path.sigma_data**2).sqrt()
        value = target(self.kind, self.path, *posterior(self.path, x, now), now)
        return Output(torch.cat([value, torch.full_like(value, -1.0)], 1) if self.variance else value)


# ------------------------------------------------------------------------------------------------ every combination

# steps; the solvers not named take 80
RANDOM = {"ancestral": 250, "euler_maruyama": 250, "heun_sde": 120}
EXACT = {"euler": 400, "ddim": 300, "reverse_ddim": 300, "dpmpp_2m": 160, "multistep": 120, "heun3": 40, "rk4": 25,
         "dopri5": 1}  # fmt: skip


@cache
def start_of(random):
    """Draws with exactly zero mean and unit variance per channel: nothing is left to luck in deterministic solvers."""
    x = philox_normal(3, (1,), (250, 2, 4, 4) if random else (4, 2, 2, 2))
    return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True, correction=0)


@cache
def draws(step):
    return philox_normal(4, (2, step), (250, 2, 4, 4))


def errors_of(latents, mean, std):
    """Largest errors of the mean and the std of channels, relative to the wanted std."""
    got_mean, got_std = latents.mean((0, 2, 3), keepdim=True), latents.std((0, 2, 3), keepdim=True, correction=0)
    return float(((got_mean - mean) / std).abs().max()), float((got_std / std - 1).abs().max())


def allowed(name, solver):
    """4,000 draws a channel: 1.6 % of a std. Truncation errors are larger where sigma spans 0.002 to 80 (EDM)."""
    rough = {("edm", "euler"): 0.07, ("edm", "euler_maruyama"): 0.08, ("ddpm", "dopri5"): 0.06}
    return rough.get((name, solver), 0.05 if solver in RANDOM else 0.035)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name == "ddpm_cosine" else ()) for name in PATHS]
)
def test_every_solver_recovers_the_data(name, kind):
    """6 paths x 5 predictions x 13 solvers, on the grids that SamplerSettings builds: all are admissible there.

    Velocity with fine steps and narrow limits, the others with a third of the steps and three times the limits:
    the next test shows that the prediction makes no other difference.
    """
    path, failures, coarse = PATHS[name], [], 1 if kind == "velocity" else 3
    for solver in SOLVERS:
        steps = -(-(RANDOM.get(solver) or EXACT.get(solver, 80)) // coarse)
        options = {"variance": "fixed_small"} if solver == "ancestral" else {}
        settings = SamplerSettings(solver=solver, steps=steps, options=options)
        x, mean, std = start_of(solver in RANDOM), MEAN, STD
        if solver == "reverse_ddim":  # from the data to the noise
            x, mean, std = (MEAN + STD * x).float(), torch.zeros(1), torch.full((1,), path.prior_scale)
        latents, _ = settings.run(Perfect(path, kind), x, None, path=path, prediction=kind, noise_source=draws)
        errors = errors_of(latents, mean, std)
        if not max(errors) < coarse * allowed(name, solver):
            failures.append((solver, *(round(e, 4) for e in errors)))
    assert not failures


@pytest.mark.parametrize("name", PATHS)
def test_every_prediction_gives_the_same_latents(name):
    """Exact networks of all five kinds say the same, so every solver must go the same way, step by step."""
    path = PATHS[name]
    for solver in SOLVERS:
        options = {"variance": "fixed_large"} if solver == "ancestral" else {}
        function = partial(SOLVERS[solver], **options)
        times = torch.tensor([100, 300, 500, 700, 900] if solver == "reverse_ddim" else [900, 700, 500, 300, 100])
        x = path.prior_scale * start_of(True)[:8]
        latents = [
            sample(Perfect(path, kind), x, None, path=path, prediction=kind, solver=function, times=times / 999,
                   noise_source=lambda step: draws(step)[:8])
            for kind in KINDS
        ]  # fmt: skip
        for kind, other in zip(KINDS[1:], latents[1:], strict=True):
            assert torch.allclose(latents[0], other, rtol=1e-3, atol=1e-3), (solver, kind)


# At t = 1 these have no data estimate, at t = 0 those no noise estimate; both ends of Linear and Cosine.
SINGULAR = [(Linear(), "noise", 1), (Linear(), "score", 1), (Cosine(), "noise", 1), (Cosine(), "score", 1),
            (Linear(), "data", 0), (Cosine(), "data", 0), (VP(), "data", 0), (VP(), "noise", 0)]  # fmt: skip


@pytest.mark.parametrize("path, kind, end", SINGULAR, ids=lambda v: getattr(v, "kind", v))
def test_singular_ends_are_refused(path, kind, end):
    """A grid that evaluates where the prediction does not determine the velocity stops in one line, not in a NaN."""
    times = torch.linspace(1, 0, 5) if end else torch.linspace(0, 1, 5)
    for solver in ("euler", "heun", "midpoint", "heun3", "rk4", "multistep", "dopri5"):
        with pytest.raises(ValueError, match="at this end of time") as caught:
            sample(Perfect(path, kind), start_of(False), None, path=path, prediction=kind, solver=solver, times=times)
        assert "\n" not in str(caught.value)


LOOKS_EVERYWHERE = {"heun": {"correct_last": True}, "heun_sde": {"last_rule": "none"},
                    "euler_maruyama": {"last_rule": "none"}, "ancestral": {"variance": "fixed_large"}}  # fmt: skip


@pytest.mark.parametrize("kind", ["velocity", "edm"])
@pytest.mark.parametrize("path", [Linear(), Cosine(), EDM(), DDPM()], ids=lambda path: path.kind)
def test_finite_on_the_closed_interval(path, kind):
    """Nothing keeps away from the ends here: each solver looks at t = 1, and those that can at t = 0 too."""
    times = torch.linspace(1, 0, 13, dtype=torch.float64)
    for name, solver in SOLVERS.items():
        options = LOOKS_EVERYWHERE.get(name, {})
        grid = times.flip(0) if name == "reverse_ddim" else times
        if path.kind == "ddpm":
            grid = (grid * 999).round() / 999
        denoise = lambda x, t, step: estimate(path, kind, x, t)  # noqa: E731
        latents = solver(denoise, path, start_of(True) * path.prior_scale, grid, draws, **options)
        assert latents.isfinite().all(), name


def estimate(path, kind, x, t):
    """The exact Estimate, in the state's own precision."""
    t = torch.as_tensor(t, dtype=torch.float64)
    return Estimate(x, t, path, kind, target(kind, path, *posterior(path, x, t.to(x.dtype)), t))


# ------------------------------------------------------------------------------------------------ order of convergence

ORDERS: dict = {
    "euler": (1, {}), "heun": (2, {"correct_last": True}), "midpoint": (2, {}), "heun3": (3, {}), "rk4": (4, {}),
    "ddim": (1, {}), "dpmpp_2m": (2, {}), "reverse_ddim": (1, {}),
    "multistep": (2, {"order": 2}),
}  # fmt: skip


def exact_flow(path, x, start, end):
    """The probability-flow map of Gaussian data: standardised values stay what they are."""
    spread = [torch.sqrt(path.alpha(t) ** 2 * STD**2 + path.sigma(t) ** 2) for t in (start, end)]
    return path.alpha(end) * MEAN + spread[1] / spread[0] * (x - path.alpha(start) * MEAN)


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("path", [Linear(), Cosine(), VP(beta_max=4.0)], ids=lambda path: path.kind)
def test_order_of_convergence(path, name):
    """Halving the step divides the error by 2^order, on a grid of uneven steps between t = 0.9 and 0.2."""
    order, options = ORDERS[name]
    solver = SOLVERS[name]
    x = start_of(False).double() + 0.2
    errors = []
    for steps in (24, 48, 96):
        u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        times = 0.9 - 0.7 * (0.6 * u + 0.4 * u**2)
        times = times.flip(0) if name == "reverse_ddim" else times
        got = solver(lambda x, t, step: estimate(path, "velocity", x, t), path, x, times, None, **options)
        errors.append(float((got - exact_flow(path, x, times[0], times[-1])).abs().max()))
    assert math.log2(errors[1] / errors[2]) > order - 0.2, errors


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_order_of_multistep(order):
    """dx/dt = x g(t), with g flat where the order ramps up: there the low-order first steps cost nothing."""
    errors, x = [], torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64)
    for steps in (24, 48, 96):
        u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        times = 1 - 0.9 * (0.7 * u + 0.3 * u**2)

        def denoise(x, t, step):
            return Estimate(x, t, Linear(), "velocity", x * (1 - t) ** 4 * torch.cos(5 * t))

        reference = SOLVERS["rk4"](denoise, Linear(), x, torch.linspace(1, 0.1, 2000, dtype=torch.float64), None)
        errors.append(float((SOLVERS["multistep"](denoise, Linear(), x, times, None, order=order) - reference).abs()))
    assert math.log2(errors[1] / errors[2]) > order - 0.25, errors


@pytest.mark.parametrize("rtol", [1e-3, 1e-6])
def test_dopri5_keeps_its_tolerance_and_its_interval(rtol):
    seen = []

    def denoise(x, t, step):
        seen.append(float(t))
        return estimate(Cosine(), "velocity", x, t)

    x = start_of(False).double()
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    got = SOLVERS["dopri5"](denoise, Cosine(), x, [1.0, 0.0], None, atol=rtol, rtol=rtol)
    assert float((got - exact_flow(Cosine(), x, one, zero)).abs().max()) < 20 * rtol
    assert 0 <= min(seen) < 1e-12 and max(seen) == 1
    SOLVERS["dopri5"](denoise, Cosine(), x, [1.0, 0.0], None, atol=rtol, rtol=rtol, stop_at_end=False)
    assert min(seen) < 0
