"""Likelihood by the probability-flow ODE: SiT's recording, and a Gaussian whose density is known."""

import math

import pytest
import torch

from ditkit.checkpoints import load_published
from ditkit.diffusion.ddpm import DDPM
from ditkit.diffusion.likelihood import log_likelihood
from ditkit.diffusion.noise import SampleNoise
from ditkit.diffusion.path import EDM, VP, Cosine, Linear
from ditkit.diffusion.prediction import target
from ditkit.protocols import Condition, Output


def test_sit_likelihood(reference):
    ref = reference("sit_ode")
    model = load_published(ref.state, "sit", heads=ref.meta["constructor"]["num_heads"]).model.eval()
    signs = ref.inputs["rademacher01"] * 2 - 1
    for name, case in ref.meta["cases"].items():
        if case["kind"] != "lik":
            continue
        asked = []

        def rademacher(k, asked=asked):
            asked.append(k)
            return signs[k]

        settings = case["sample_ode"]
        logp, z = log_likelihood(
            model, ref.inputs["z"], Condition(label=ref.inputs["y2"]), path=Linear(), prediction="velocity",
            steps=settings["num_steps"] - 1, solver=settings["sampling_method"].replace("heun2", "heun"),
            rademacher=rademacher,
        )  # fmt: skip
        ref.close(f"{name}.logp", logp)
        ref.close(f"{name}.z", z)
        assert asked == list(range(ref.meta["info"]["likelihood_draws"][name]["randint"]))
        assert not logp.requires_grad and not z.requires_grad


class Gaussian:
    """The exact denoiser of data N(mean, std^2), independent per element."""

    mean, std = 0.4, 0.7

    def __init__(self, path):
        self.path = path

    def __call__(self, x, t, cond, *, capture=()):
        t = t.to(x.dtype).view(-1, 1, 1, 1)
        if self.path.kind == "edm":  # the network's input is divided by its standard deviation for sigma_data
            x = x * (self.path.sigma(t) ** 2 + self.path.sigma_data**2).sqrt()
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        centred = (x - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)
        data = self.mean + alpha * self.std**2 * centred
        return Output(target("velocity", self.path, data, sigma * centred, t[:, 0, 0, 0]))


@pytest.mark.parametrize("solver, steps", [("rk4", 60), ("heun", 300), ("dopri5", 1)])
@pytest.mark.parametrize("path", [Linear(), Cosine(), VP(), EDM()], ids=lambda path: path.kind)
def test_gaussian_density(path, solver, steps):
    """The divergence of a linear field along the axes is exact under any signs, so only the solver's error is left."""
    noise = SampleNoise(0, range(3), (2, 2, 2), dtype=torch.float64)
    x = 0.4 + 0.7 * noise.initial()
    logp, z = log_likelihood(
        Gaussian(path), x, None, path=path, prediction="velocity", steps=steps, solver=solver,
        rademacher=noise.rademacher,
    )  # fmt: skip
    # VP starts its grid at t = 1e-3 (x is taken as the state there) and all but Linear and Cosine end in a prior that
    # is not exactly normal: alpha(1)^2 std^2 is left
    exact = (-0.5 * ((x - 0.4) / 0.7) ** 2 - math.log(0.7) - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)
    assert torch.allclose(logp, exact, atol=0.03 if path.kind in ("vp", "edm") else 2e-3), logp - exact
    assert z.shape == x.shape and logp.shape == (3,)


def test_refusals():
    signs = torch.ones(1, 1, 2, 2)
    arguments = dict(prediction="velocity", rademacher=lambda k: signs)
    with pytest.raises(ValueError, match="did you mean 'heun'"):
        log_likelihood(Gaussian(Linear()), signs, None, path=Linear(), solver="huen", **arguments)
    with pytest.raises(ValueError, match="variational bound"):
        log_likelihood(Gaussian(DDPM()), signs, None, path=DDPM(), **arguments)
