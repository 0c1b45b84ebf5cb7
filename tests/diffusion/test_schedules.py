"""Grids and samplers as Stability's SD3.5 code and diffusers have them, against every recorded number of both."""

import pytest
import torch

from ditkit.config import SettingsError, read_settings
from ditkit.diffusion import (
    DDPM,
    SOLVERS,
    Cosine,
    Estimate,
    Linear,
    LogitNormal,
    Mode,
    SamplerSettings,
    Uniform,
    interpolate,
    shift,
)
from ditkit.diffusion.schedules import TABLE, flow_match_grid, image_to_image, sd3_grid
from ditkit.diffusion.times import CosMap
from ditkit.diffusion.weight import DensityWeight, SNRWeight
from ditkit.pretrained.codec import denormalise, normalise
from ditkit.pretrained.kl_file import SD3  # scale, shift


def table(factor, every=1):
    """The shifted table sigma_k of k / 1000, k = 1 ... 1000."""
    return shift(torch.arange(1, TABLE + 1, dtype=torch.float64) / TABLE, factor)[::every]


# ------------------------------------------------------------------------------------------------ Stability


def sd35_settings(case):
    options = {"variable": "log_sigma"} if case["sampler"] == "dpmpp_2m" else {}
    return SamplerSettings(
        solver=case["sampler"], steps=case["steps"], options=options, spacing="sd3", shift=case["shift"]
    )


def test_sd35_samplers(reference):
    """Euler and DPM++(2M) on the doubly shifted grid with an analytic denoiser, from noise and from an image."""
    ref = reference("sd35_sampling")
    x, latent, matrix = ref.inputs["x"], ref.inputs["latent"], ref.inputs["M"]

    def denoise(x, t, step):
        data = torch.tanh(torch.einsum("ij,bjhw->bihw", matrix, x)) * (1 - 0.3 * float(t)) + 0.1
        return Estimate(x, t, Linear(), "data", data)

    for name, case in ref.meta["cases"].items():
        settings = sd35_settings(case)
        times = settings.times(Linear(), "data")
        state, times = image_to_image(times, case.get("denoise", 1.0), Linear(), latent, x)
        assert len(times) == (7 if "denoise" in case else case["steps"] + 1)
        ref.close(f"sample.{name}", settings.function(denoise, Linear(), state, times))
    assert len(ref.meta["cases"]) == 12


def test_sd35_schedules(reference):
    ref, compared = reference("sd35_sampling"), 0
    for factor in ref.meta["shifts"]:
        ref.close(f"shift{factor}.sigmas", table(factor, 9))
        ref.close(f"shift{factor}.sigma_min_max", table(factor)[[0, -1]])
        for steps in ref.meta["steps"]:
            ref.close(f"shift{factor}.get_sigmas.{steps}", sd3_grid(steps, factor))
        compared += 2 + len(ref.meta["steps"])
    x, latent = ref.inputs["x"], ref.inputs["latent"]
    ref.close("noise_scaling", interpolate(Linear(), latent, x, torch.tensor(0.7)))
    ref.close("calculate_denoised", Estimate(x, torch.tensor([0.2, 0.9]), Linear(), "velocity", latent).data)
    ref.close("process_in", normalise(latent, *SD3))
    ref.close("process_out", denormalise(latent, *SD3))
    rest = {name for name in ref.outputs if not name.startswith("sample.")}
    assert compared + 4 == len(rest) == 19 and len(ref.outputs) == 31, "every output is compared, here or above"


def test_published_numbers_of_the_grid():
    head = {(3, 28): (1, 0.987381, 0.974108, 0.960129), (3, 40): (1, 0.991331, 0.982356, 0.973058),
            (3, 4): (1, 0.857692, 0.602151, 0.008929), (1, 50): (1, 0.979612, 0.959224, 0.938837)}  # fmt: skip
    tail = {(3, 28): (0.199827, 0.110906, 0.008929, 0), (3, 40): (0.146509, 0.081046, 0.008929, 0),
            (1, 50): (0.041776, 0.021388, 0.001, 0)}  # fmt: skip
    for (factor, steps), want in head.items():
        assert sd3_grid(steps, factor)[:4].tolist() == pytest.approx(want, abs=6e-7)
    for (factor, steps), want in tail.items():
        assert sd3_grid(steps, factor)[-4:].tolist() == pytest.approx(want, abs=6e-7)


def test_sd3_is_a_named_preset_and_the_paper_s_grid_the_default():
    own = SamplerSettings(steps=4, shift=3.0).times(Linear(), "velocity")
    assert own.tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0]), "shift(linspace(1, 0))"
    settings = SamplerSettings(steps=4, shift=3.0, spacing="sd3")
    assert torch.equal(settings.times(Linear(), "velocity"), sd3_grid(4, 3.0))
    assert settings.evaluations(Linear(), "velocity") == 4
    assert read_settings(SamplerSettings, settings.model_dump(mode="json")) == settings
    for path, changes in ((Cosine(), {}), (DDPM(), {"solver": "ddim"}), (Linear(), {"last": 0.04}),
                          (Linear(), {"start": 0.5})):  # fmt: skip
        with pytest.raises(ValueError, match="spacing sd3 is for the linear path"):
            settings.model_copy(update=changes).times(path, "velocity")
    with pytest.raises(SettingsError, match="spacing"):
        read_settings(SamplerSettings, {"spacing": "sd4"})


def test_image_to_image():
    latents, noise = torch.full((2, 3, 2, 2), 5.0), torch.full((2, 3, 2, 2), -1.0)
    grid = torch.linspace(1, 0, 11, dtype=torch.float64)
    state, times = image_to_image(grid, 0.6, Linear(), latents, noise)
    assert torch.equal(times, grid[4:]) and torch.allclose(state, torch.full_like(state, 0.4 * 5 - 0.6))
    assert state.dtype == torch.float32
    assert len(image_to_image(grid, 0.9, Linear(), latents, noise)[1]) == 10, "float rounding left nothing out"
    assert len(image_to_image(grid, 1e-9, Linear(), latents, noise)[1]) == 2, "one step at least"
    whole, times = image_to_image(grid, 1.0, Linear(), latents, noise)
    assert whole is noise and torch.equal(times, grid)
    for strength in (0.0, 1.1):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            image_to_image(grid, strength, Linear(), latents, noise)


# ------------------------------------------------------------------------------------------------ diffusers


def flow_match(init, setting):
    """Our grid for the arguments of diffusers' constructor and set_timesteps."""
    known = {"shift", "use_dynamic_shifting", "time_shift_type", "shift_terminal", "use_karras_sigmas", "invert_sigmas"}
    assert set(init) <= known and set(setting) <= {"num_inference_steps", "sigmas", "mu"}
    return flow_match_grid(
        setting.get("num_inference_steps", 0), init["shift"], mu=setting.get("mu"), sigmas=setting.get("sigmas"),
        dynamic=init.get("time_shift_type", "exponential") if init.get("use_dynamic_shifting") else None,
        terminal=init.get("shift_terminal"), inverted=init.get("invert_sigmas", False),
        spacing="karras" if init.get("use_karras_sigmas") else "even",
    )  # fmt: skip


def test_diffusers_schedulers(reference):
    ref, compared = reference("diffusers_flowmatch"), 0
    x, noise, outputs = ref.inputs["x"], ref.inputs["noise"], ref.inputs["model_out"]
    for name, case in ref.meta["schedulers"].items():
        init, dynamic = case["init"], case["init"].get("use_dynamic_shifting")
        trained = table(1.0 if dynamic else init["shift"]).flip(0)
        ref.close(f"{name}.train_sigmas", trained[::23])
        ref.close(f"{name}.train_timesteps", 1000 * trained[::23])
        for k, setting in enumerate(case["set"]):
            grid = flow_match(init, setting)
            ref.close(f"{name}.set{k}.sigmas", grid)
            ref.close(f"{name}.set{k}.timesteps", 1000 * grid[:-1])
            ref.close(
                f"{name}.set{k}.result",
                SOLVERS["euler"](
                    lambda x, t, step: Estimate(x, t, Linear(), "velocity", outputs[step % 4]), Linear(), x, grid
                ),
            )
        if f"{name}.scale_noise" in ref.outputs:
            levels = trained[[5, 500]]  # before set_timesteps it looks them up in the training table
            ref.close(f"{name}.scale_noise_t", 1000 * levels)
            ref.close(f"{name}.scale_noise", interpolate(Linear(), x, noise, levels.float()))
            compared += 2
        compared += 2 + 3 * len(case["set"])
    rest = {name for name in ref.outputs if name.split(".")[0] in ("density", "weighting")}
    assert compared == len(ref.outputs) - len(rest) == 55 and len(ref.outputs) == 66


class Recorded:
    """Gives back recorded draws."""

    def __init__(self, values):
        self.values = values

    def normal(self, stream, shape):
        return self.values

    uniform = normal


def test_diffusers_densities(reference):
    """Draws u of its training script; u there indexes a falling table, so sigma is 1 - u before the shift."""
    ref, compared = reference("diffusers_flowmatch"), 0
    z, u = Recorded(ref.inputs["z"]), Recorded(ref.inputs["u"])
    for name, case in ref.meta["density"].items():
        scheme = case["weighting_scheme"]
        if scheme == "logit_normal":
            density = LogitNormal(mean=case["logit_mean"], std=case["logit_std"])
            mirrored = LogitNormal(mean=-case["logit_mean"], std=case["logit_std"])
            drawn = density.sample(12, z)
            assert torch.allclose(1 - drawn, mirrored.sample(12, Recorded(-z.values)), atol=1e-6)
        else:  # cosmap draws uniformly there, and weights the loss instead
            drawn = (Mode(scale=case["mode_scale"]) if scheme == "mode" else Uniform()).sample(12, u)
        ref.close(f"density.{name}", drawn)
        compared += 1
    assert compared == sum(name.startswith("density.") for name in ref.outputs) == 7


def test_diffusers_weightings(reference):
    ref = reference("diffusers_flowmatch")
    sigmas, path = ref.inputs["sigmas"], Linear()
    ref.close("weighting.sigma_sqrt", SNRWeight(form="inverse_sigma")(path, sigmas, "velocity"))
    ref.close("weighting.cosmap", DensityWeight(density=CosMap())(path, sigmas, "velocity"))
    for name in ("logit_normal", "none"):
        ref.close(f"weighting.{name}", torch.ones_like(sigmas))
    assert sum(name.startswith("weighting.") for name in ref.outputs) == 4


def test_other_options_of_the_grid():
    even = flow_match_grid(5, 3.0)
    assert torch.equal(even, sd3_grid(5, 3.0)), "the same double shift"
    log = flow_match_grid(5, 3.0, spacing="exponential")
    assert log[[0, 4, 5]].tolist() == pytest.approx(even[[0, 4, 5]].tolist())
    assert torch.allclose(log[:5].log().diff(), log[:5].log().diff().mean())
    for wrong in ({"mu": 0.5}, {"dynamic": "linear"}):
        with pytest.raises(ValueError, match="need each other"):
            flow_match_grid(5, **wrong)
    with pytest.raises(ValueError, match="at least two steps"):
        flow_match_grid(1, terminal=0.1)
    assert flow_match_grid(1, 3.0).tolist() == [1, 0]


INITS = {
    "double shift": {"shift": 3.0},
    "exponential": {"shift": 3.0, "use_exponential_sigmas": True},
    "stretched": {"shift": 2.0, "shift_terminal": 0.02, "use_karras_sigmas": True},
}


@pytest.mark.parametrize("steps", [2, 4, 28])
@pytest.mark.parametrize("init", INITS.values(), ids=INITS)
def test_as_the_installed_diffusers(init, steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**init)
    scheduler.set_timesteps(steps)
    spacing = next((s for s in ("karras", "exponential") if init.get(f"use_{s}_sigmas")), "even")
    ours = flow_match_grid(steps, init["shift"], terminal=init.get("shift_terminal"), spacing=spacing)
    assert torch.allclose(ours, scheduler.sigmas.double(), atol=2e-6)
