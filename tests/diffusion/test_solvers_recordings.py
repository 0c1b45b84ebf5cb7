"""Solvers against the samplers of SiT, REPA and DiT, through the shipped converters.

Our time is 1 - SiT's, REPA's own, and DiT's index k is k / 999.
"""

from functools import partial

import pytest
import torch

from ditkit.checkpoints import load_published
from ditkit.diffusion.ddpm import DDPM
from ditkit.diffusion.guidance import CFG, first3
from ditkit.diffusion.path import VP, Cosine, Linear
from ditkit.diffusion.sample import Denoise, integrate, sample
from ditkit.diffusion.solvers import SOLVERS, ancestral, ddim, euler, euler_maruyama, heun, heun_sde, reverse_ddim
from ditkit.protocols import Condition, Output

PATHS = {"Linear": Linear(), "GVP": Cosine(), "VP": VP()}


class Negated:
    """The recordings reinterpret one network as velocity, score or noise; only the velocity changes sign with time."""

    def __init__(self, model):
        self.model = model

    def __call__(self, x, t, cond, *, capture=()):
        return Output(-self.model(x, t, cond).sample)

    def null(self, cond):
        return self.model.null(cond)


@pytest.fixture(scope="module")
def sit(reference):
    """(recording, model for a prediction) of the two SiT fixtures; they hold different networks."""

    def load(name):
        ref = reference(name)
        model = load_published(ref.state, "sit", heads=ref.meta["constructor"]["num_heads"]).model.eval()
        return ref, lambda prediction: model if prediction == "velocity" else Negated(model)

    return load


def kinds(case):
    transport = case["create_transport"]
    return PATHS[transport["path_type"]], transport["prediction"], transport.get("sample_eps")


def margins(path, prediction, eps, *, sde=False):
    """Ends of the grid in our time as SiT's check_interval sets them: (near the noise, near the data)."""
    if path.kind == "vp":
        return 1.0, (0.0 if sde else (1e-3 if eps is None else eps))
    if prediction == "velocity":
        return 1.0, 0.0
    eps = 1e-3 if eps is None else eps
    return 1.0 - eps, (0.0 if sde else eps)


def grid(start, stop, points):
    return torch.linspace(start, stop, points, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------ SiT, ODE


def test_sit_fields(sit):
    ref, model_for = sit("sit_ode")
    x, t, y = (ref.inputs[k] for k in "xty")
    for name, case in ref.meta["cases"].items():
        if case["kind"] != "fields":
            continue
        path, prediction, _ = kinds(case)
        # one call per sample: a Denoise works at one time
        estimates = [
            Denoise(model_for(prediction), Condition(label=y[i : i + 1]), path=path, prediction=prediction)(
                x[i : i + 1], 1 - t[i].double()
            )
            for i in range(len(x))
        ]
        with torch.no_grad():
            ref.close(f"{name}.drift", -torch.cat([e.velocity for e in estimates]))
            ref.close(f"{name}.score", torch.cat([e.score for e in estimates]))


ODE = {"euler": euler, "heun2": partial(heun, correct_last=True)} | {
    k: SOLVERS[k] for k in ("heun3", "midpoint", "rk4")
}


def ode_solver(settings):
    if settings["sampling_method"] == "dopri5":
        return partial(SOLVERS["dopri5"], atol=settings["atol"], rtol=settings["rtol"], stop_at_end=False)
    return ODE[settings["sampling_method"]]


def test_sit_ode(sit):
    ref, model_for = sit("sit_ode")
    cond = Condition(label=ref.inputs["y2"])
    seen = 0
    for name, case in ref.meta["cases"].items():
        if case["kind"] != "ode":
            continue
        path, prediction, eps = kinds(case)
        settings = case["sample_ode"]
        start, stop = margins(path, prediction, eps)
        times = grid(start, stop, settings["num_steps"])
        if settings.get("reverse"):
            times = times.flip(0)
        guidance = first3(case["cfg"]) if "cfg" in case else None
        denoise = Denoise(model_for(prediction), cond, path=path, prediction=prediction, guidance=guidance)
        states = []
        with torch.no_grad():
            z = integrate(denoise, ref.inputs["z"], ode_solver(settings), times, None)
            if case.get("traj"):
                states = [integrate(denoise, ref.inputs["z"], ode_solver(settings), times[: n + 1], None)
                          for n in range(1, len(times))]  # fmt: skip
        if guidance is not None:  # the official result keeps the discarded unconditional half
            ref.outputs[f"{name}.final"] = ref.outputs[f"{name}.final"][: len(z)]
        ref.close(f"{name}.final", z)
        if states:
            ref.close(f"{name}.traj", torch.stack([ref.inputs["z"], *states]))
        seen += 1
    assert seen == 14


# ------------------------------------------------------------------------------------------------ SiT, SDE


def test_sit_sde(sit):
    ref, model_for = sit("sit_sde")
    cond, w = Condition(label=ref.inputs["y"]), ref.inputs["w"]
    compared, finite, refused = 0, set(), set()
    for name, case in ref.meta["cases"].items():
        path, prediction, eps = kinds(case)
        settings = case["sample_sde"]
        rule = (settings["last_step"] or "none").lower()
        start, _ = margins(path, prediction, eps, sde=True)
        last = settings["last_step_size"] if rule != "none" else 0.0
        times = grid(start, last, settings["num_steps"])
        times = torch.cat([times, times.new_zeros(1)]) if rule != "none" else times
        form = settings["diffusion_form"].replace("inccreasing", "increasing").lower()
        solver = {"Euler": euler_maruyama, "Heun": heun_sde}[settings["sampling_method"]]
        solver = partial(solver, form=form, norm=settings.get("diffusion_norm", 1.0), last_rule=rule)
        arguments = dict(path=path, prediction=prediction, times=times, noise_source=lambda k: w[k])
        if f"{name}.final" not in ref.outputs:  # not a number, or an error, in the official code
            try:
                z = sample(model_for(prediction), ref.inputs["z"], cond, solver=solver, **arguments)
                assert z.isfinite().all(), name
                finite.add(name)
            except ValueError as error:
                assert "is infinite at t = " in str(error) and "\n" not in str(error)
                refused.add(name)
            continue
        z = sample(model_for(prediction), ref.inputs["z"], cond, solver=solver, **arguments)
        ref.close(f"{name}.final", z)
        compared += 1
        if case.get("traj"):
            states = []
            watch = Denoise(model_for(prediction), cond, path=path, prediction=prediction)

            def spy(x, t, step, watch=watch, states=states):
                states.append(x)
                return watch(x, t, step)

            with torch.no_grad():
                states.append(solver(spy, path, ref.inputs["z"], times, lambda k: w[k]))
            ref.close(f"{name}.traj", torch.stack(states[1:]))  # without the start
    assert compared == 48
    info = ref.meta["info"]
    assert finite | refused == set(info["nan_cases"]) | set(info["error_cases"])
    # refused: an infinite diffusion at the noise end, and the constant one at the data end; all others are finite here
    sbdm = {name for name in info["nan_cases"] if ".SBDM." in name}
    assert refused == sbdm | {"Linear.velocity.constant.Heun.None"}


# ------------------------------------------------------------------------------------------------ REPA


REPA_SOLVERS = {"euler": euler, "heun": heun, "em": partial(euler_maruyama, form="linear", last_rule="mean")}


def test_repa_samplers(reference):
    ref = reference("repa_samplers")
    published = load_published(ref.state, "repa", heads=ref.meta["constructor"]["num_heads"], align_depth=1)
    cond, w = Condition(label=ref.inputs["y"]), ref.inputs["w"].double()
    for name, case in ref.meta["cases"].items():
        settings, (kind, *_) = case["kw"], name.split(".")
        path = Cosine() if settings.get("path_type") == "cosine" else Linear()
        n = settings["num_steps"]
        times = torch.cat([grid(1, 0.04, n), torch.zeros(1).double()]) if kind == "em" else grid(1, 0, n + 1)
        guidance = CFG(
            scale=settings["cfg_scale"], low=settings.get("guidance_low", 0), high=settings.get("guidance_high", 1)
        )
        denoise = Denoise(published.model.eval(), cond, path=path, prediction="velocity", guidance=guidance)
        with torch.no_grad():
            z = integrate(denoise, ref.inputs["latents"].double(), REPA_SOLVERS[kind], times, lambda k: w[k])
        assert z.dtype == torch.float64
        ref.close(name, z)
        calls = [[rows, round(t, 6)] for rows, t in denoise.calls]
        assert calls == ref.meta["info"]["calls"][name]
        assert denoise.evaluations == sum(rows for rows, _ in calls) // len(z)


# ------------------------------------------------------------------------------------------------ DiT


class Part:
    """A network's first channels only: the recordings with fixed variance drop the variance logits."""

    def __init__(self, model, channels):
        self.model, self.channels = model, channels

    def __call__(self, x, t, cond, *, capture=()):
        return Output(self.model(x, t, cond).sample[:, : self.channels])


def dit_solver(case):
    clip, options = case["clip"], case["create_diffusion"]
    if case["kind"] == "ddim":
        return partial(ddim, eta=case["eta"], clip=clip)
    if case["kind"] == "ddim_reverse":
        return reverse_ddim
    variance = "learned_range"
    if not options.get("learn_sigma", True):
        variance = "fixed_small" if options.get("sigma_small") else "fixed_large"
    return partial(ancestral, variance=variance, clip=clip)


EVEN10 = [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]


def test_dit_sampling(reference):
    ref = reference("dit_sampling")
    model = load_published(ref.state, "dit", heads=ref.meta["constructor"]["num_heads"]).model.eval()
    z, cond = ref.inputs["z"], Condition(label=ref.inputs["y"])
    for name, case in ref.meta["cases"].items():
        options = case["create_diffusion"]
        indices = [k * 100 for k in range(10)] if options["timestep_respacing"] == "ddim10" else EVEN10
        times = torch.tensor(indices if case["kind"] == "ddim_reverse" else indices[::-1], dtype=torch.float64) / 999
        denoise = Denoise(
            model if options.get("learn_sigma", True) else Part(model, z.shape[1]), cond, path=DDPM(),
            prediction="data" if options.get("predict_xstart") else "noise",
            guidance=first3(case["cfg"]) if case["cfg"] else None, times=times,
        )  # fmt: skip
        states, data = [], []

        def spy(x, t, step, denoise=denoise, states=states, data=data, clip=case["clip"]):
            states.append(x)
            estimate = denoise(x, t, step)
            data.append(estimate.data.clamp(-1, 1) if clip else estimate.data)
            return estimate

        with torch.no_grad():
            final = dit_solver(case)(spy, DDPM(), z, times, lambda k: ref.inputs["step_noise"][k])
        states = [*states[1:], final]
        assert denoise.evaluations == (2 if case["cfg"] else 1) * len(states)
        if f"{name}.final" in ref.outputs:
            ref.outputs[f"{name}.final"] = ref.outputs[f"{name}.final"][: len(z)]  # without the unconditional half
            ref.close(f"{name}.final", final)
        if f"{name}.traj" in ref.outputs:
            ref.close(f"{name}.traj", torch.stack(states))
        if f"{name}.pred_xstart_traj" in ref.outputs:
            ref.close(f"{name}.pred_xstart_traj", torch.stack(data))
    assert len(ref.meta["cases"]) == 9
