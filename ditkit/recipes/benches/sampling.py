"""How fast sampling is, with random weights: the step loop against the network inside it, and encoder sharing."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ditkit.analysis.cost import cost, sharing_cost
from ditkit.diffusion import CFG, SampleNoise, SamplerSettings, Sharing, every_schedule
from ditkit.diffusion.ode import Draws
from ditkit.models import AnyModel, DDTSettings, DiTSettings
from ditkit.protocols import Denoiser
from ditkit.recipes.benches.bench import Bench, Progress, condition, network, precision, public_name, take_turns
from ditkit.recipes.registry import recipe as find_recipe
from ditkit.recipes.stopwatch import Call, Run, runs_ahead, seconds_of, spread, stopwatch, timed

DDT, SHARED, REMADE = "DDT", "DDT shared", "DDT shared, modulations remade"


class Arm(NamedTuple):
    """One side of a comparison; gmacs: multiply-accumulates of its run, an image."""

    model: nn.Module
    shape: AnyModel
    sampler: SamplerSettings
    gmacs: float


# ---------------------------------------------------------------------------------------------------- benchmarks


def sampling(bench: Bench, progress: Progress | None = None) -> dict:
    """The recipe's sampler on its model: time in the network, what the step loop adds, and rates."""
    recipe, settings, _ = bench
    if recipe.sampling.sharing is not None:
        raise ValueError("bench sampling: the whole network runs at every evaluation; for sharing see bench sharing")
    sampler = recipe.sampling.with_({"steps": settings.steps})
    sampler.times(recipe.objective.path, recipe.objective.prediction)  # refuse a grid that cannot be, before building
    model = network(bench, recipe.model, 2 if isinstance(sampler.guidance, CFG) else 1, progress)
    gmacs = cost(recipe.model).gmacs
    runs = sides(bench, {"run": Arm(model, recipe.model, sampler, gmacs)}, progress)["run"]
    calls = [call for run in runs for call in run.network]
    rates = [gmacs * call.rows / call.seconds for call in calls]
    return {
        "sampler": sampler.model_dump(mode="json"),
        "gmacs_an_evaluation": gmacs,
        "evaluations_an_image": runs[0].evaluations,
        "rows_a_call": [min(call.rows for call in calls), max(call.rows for call in calls)],
        "seconds_a_call": spread(call.seconds for call in calls),
        "seconds_a_run": spread(run.seconds for run in runs),
        "loop_percent": spread(run.loop_percent for run in runs),
        "noise_percent": spread(run.noise_percent for run in runs),
        "evaluations_a_second": spread(bench.batch * run.evaluations / run.seconds for run in runs),
        "images_a_second": spread(bench.batch / run.seconds for run in runs),
        "gmacs_a_second": spread(rates),
        "peak_percent": spread(0.2 * rate / settings.peak for rate in rates) if settings.peak else None,
    }


def sharing(bench: Bench, progress: Progress | None = None) -> dict:
    """DDT as it is, DDT with its encoder at 1 evaluation in r (modulations kept, or remade), and SiT, taking turns.

    Euler without guidance. Speed-ups stand beside those that multiply-accumulates predict.
    """
    recipe, settings, _ = bench
    model, n = recipe.model, settings.steps
    if not isinstance(model, DDTSettings) or not model.encoder_blocks:
        raise ValueError(f"bench sharing: {recipe.name} has no encoder to share: name a DDT such as ddt.xl_2_256")
    other = rival(model, settings.against)
    plan = Sharing(rule=f"every:{settings.every}", evaluations=n, encode=tuple(every_schedule(n, settings.every)))
    spent, k = sharing_cost(model), plan.budget
    plain = SamplerSettings(solver="euler", steps=n)
    kept = plain.model_copy(update={"sharing": plan})
    remade = plain.model_copy(update={"sharing": plan.model_copy(update={"keep": False})})
    ddt = network(bench, model, 1, progress)
    arms = {
        DDT: Arm(ddt, model, plain, spent.run(n, n)),
        SHARED: Arm(ddt, model, kept, spent.run(n, k)),
        REMADE: Arm(ddt, model, remade, spent.run(n, k, keep=False)),
    }
    if other is not None:
        name, shape = other
        arms[name] = Arm(network(bench, shape, 1, progress), shape, plain, n * cost(shape).gmacs)
    runs = sides(bench, arms, progress)
    pairs = zip(runs[SHARED], runs[REMADE], strict=True)
    return {
        "sampler": plain.model_dump(mode="json"),
        "schedule": list(plan.encode),
        "other": None if other is None else {"name": other[0], "model": other[1].model_dump(mode="json")},
        "bit_equal": all(torch.equal(a.latents, b.latents) for a, b in pairs),
        "arms": {name: arm_facts(arm, runs[name], bench.batch) for name, arm in arms.items()},
        "speedup": {
            name: {base: speedup(arms, runs, name, base) for base in arms if base not in (SHARED, REMADE)}
            for name in (SHARED, REMADE)
        },
    }


# ---------------------------------------------------------------------------------------------------- measuring


def sides(bench: Bench, arms: dict[str, Arm], progress: Progress | None = None) -> dict[str, list[Run]]:
    """Runs of every arm, taking turns."""
    return take_turns(bench.settings, {name: partial(timed_run, bench, arm) for name, arm in arms.items()}, progress)


def timed_run(bench: Bench, arm: Arm, told: Callable[[int, int], None]) -> Run:
    """One run of `SamplerSettings.run` from the bench's noise, the calls inside it timed.

    Waiting for an accelerator at every call slows the run, so there it is run once more without.
    """
    recipe, settings, device = bench
    model, shape, denoiser = arm.model, arm.shape, cast(Denoiser, arm.model)
    draws = SampleNoise(settings.seed, range(bench.batch), (shape.channels, *shape.size), device)
    noise, cond = draws.initial(), condition(shape, bench.batch, device)
    calls: list[Call] = []

    def run(source: Draws) -> tuple[Tensor, int]:
        with precision(settings, device):
            return arm.sampler.run(
                denoiser, noise, cond, path=recipe.objective.path, prediction=recipe.objective.prediction,
                noise_source=source, progress=told,
            )  # fmt: skip

    with timed(model, device, calls):
        watched, (latents, spent) = seconds_of(lambda: run(stopwatch("noise", draws, device, calls)), device)
    alone = seconds_of(lambda: run(draws), device)[0] if runs_ahead(device) else watched
    return Run(alone, watched, calls, spent, latents)


def arm_facts(arm: Arm, runs: list[Run], batch: int) -> dict:
    """Times and rates of one side of a comparison."""
    return {
        "gmacs_a_run": arm.gmacs,
        "seconds_a_run": spread(run.seconds for run in runs),
        "seconds_with_encoder": spread(s for run in runs for s in run.with_encoder),
        "seconds_without_encoder": spread(s for run in runs for s in run.without_encoder),
        "loop_percent": spread(run.loop_percent for run in runs),
        "gmacs_a_second": spread(batch * arm.gmacs / run.seconds for run in runs),
    }


def speedup(arms: dict[str, Arm], runs: dict[str, list[Run]], name: str, base: str) -> dict[str, float]:
    """How much faster `name` is than `base`: by whole runs, by the median of each kind of evaluation, by GMACs."""
    measured = statistics.median(r.seconds for r in runs[base]) / statistics.median(r.seconds for r in runs[name])
    predicted = arms[base].gmacs / arms[name].gmacs
    by_evaluation = typical(runs[base]) / typical(runs[name])
    return {
        "measured": measured,
        "by_evaluation": by_evaluation,
        "predicted": predicted,
        "attained_percent": 100 * measured / predicted,
    }


def typical(runs: list[Run]) -> float:
    """Seconds of a run in which every evaluation takes the median of its kind."""
    kinds = ([run.with_encoder for run in runs], [run.without_encoder for run in runs])
    medians = (spread(s for each in kind for s in each) for kind in kinds)
    return sum(m["median"] * len(kind[0]) for kind, m in zip(kinds, medians, strict=True) if m is not None)


# ---------------------------------------------------------------------------------------------------- what it stands on


def rival(ddt: DDTSettings, against: str) -> tuple[str, AnyModel] | None:
    """The network to compare with: SiT of the same depth, width and latents, or that of a named recipe.

    ValueError for a recipe whose latents are others, SettingsError for one that is not there.
    """
    if against == "none":
        return None
    if against:
        found = find_recipe(against)
        if (found.model.channels, found.model.size) != (ddt.channels, ddt.size):
            has, needs = ((m.channels, *m.size) for m in (found.model, ddt))
            raise ValueError(f"bench sharing: against={against} works on latents of {has}, this DDT on {needs}")
        return public_name(found), found.model
    same = ("depth", "width", "heads", "patch", "channels", "size", "num_classes", "null_label", "time_scale")
    shape = {key: getattr(ddt, key) for key in (*same, "time_offset")}
    return "SiT", DiTSettings(**shape, variance="dropped")
