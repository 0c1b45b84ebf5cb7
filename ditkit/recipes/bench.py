"""How fast sampling is, with random weights: the step loop against the network inside it, and encoder sharing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from ditkit.analysis.cost import cost, sharing_cost
from ditkit.config import Settings, nearest
from ditkit.diffusion import CFG, SampleNoise, SamplerSettings, Sharing, every_schedule
from ditkit.diffusion.ode import Draws
from ditkit.models import AnyModel, Condition, DDTSettings, DiTSettings, build_model, example_condition
from ditkit.protocols import Denoiser
from ditkit.recipes.environment import environment
from ditkit.recipes.memory import available, count
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.registry import recipe as find_recipe
from ditkit.recipes.stopwatch import (
    Call,
    Run,
    cpu_name,
    cpu_threads,
    runs_ahead,
    seconds_of,
    spread,
    stopwatch,
    synchronise,
    timed,
)

DDT, SHARED, REMADE = "DDT", "DDT shared", "DDT shared, modulations remade"
ENOUGH, MOST = 10.0, 100  # seconds of runs, and runs, where no number is asked for

Progress = Callable[[str, int, int], None]


def _silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


class BenchSettings(Settings):
    """What a benchmark is told beside its recipe."""

    batch: int = Field(8, ge=1, description="images drawn together; a guided call holds twice as many rows")
    steps: int = Field(5, ge=1, description="solver steps of a run")
    repeats: int | None = Field(None, ge=1, description="runs of each kind, taking turns; None: 10 seconds of them")
    warmup: int = Field(1, ge=0, description="calls of each network before the clock starts")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast with float32 islands")
    threads: int | None = Field(None, ge=1, description="CPU threads of PyTorch; None: as it starts")
    seed: int = Field(0, ge=0, description="of weights and noise")
    peak: float | None = Field(None, gt=0, description="TFLOP/s that the device's maker states (2 a MAC)")
    every: int = Field(5, ge=1, description="sharing: the encoder runs at 1 evaluation in so many")
    against: str = Field("", description="sharing: a recipe to compare with; '': SiT of the same size; none: nothing")


class Bench(NamedTuple):
    """What is measured, and where."""

    recipe: Recipe
    settings: BenchSettings
    device: torch.device


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
    runs = take_turns(bench, {"run": Arm(model, recipe.model, sampler, gmacs)}, progress)["run"]
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
        "evaluations_a_second": spread(settings.batch * run.evaluations / run.seconds for run in runs),
        "images_a_second": spread(settings.batch / run.seconds for run in runs),
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
    runs = take_turns(bench, arms, progress)
    pairs = zip(runs[SHARED], runs[REMADE], strict=True)
    return {
        "sampler": plain.model_dump(mode="json"),
        "schedule": list(plan.encode),
        "other": None if other is None else {"name": other[0], "model": other[1].model_dump(mode="json")},
        "bit_equal": all(torch.equal(a.latents, b.latents) for a, b in pairs),
        "arms": {name: arm_facts(arm, runs[name], settings.batch) for name, arm in arms.items()},
        "speedup": {
            name: {base: speedup(arms, runs, name, base) for base in arms if base not in (SHARED, REMADE)}
            for name in (SHARED, REMADE)
        },
    }


BENCHES: dict[str, Callable[[Bench, Progress | None], dict]] = {"sampling": sampling, "sharing": sharing}
OWN = {"sampling": ("peak",), "sharing": ("every", "against")}  # settings that the others have no use for


def measure(what: str, bench: Bench, command: str = "", progress: Progress | None = None) -> dict:
    """Everything that the result file of benchmark `what` holds, as JSON values; ValueError for an unknown one."""
    if what not in BENCHES:
        raise ValueError(f"bench: no benchmark {what!r}{nearest(what, BENCHES)}")
    recipe, settings, device = bench
    for other in BENCHES.keys() - {what}:
        for key in OWN[other]:
            if getattr(settings, key) != BenchSettings.model_fields[key].default:
                raise ValueError(f"bench {what}: {key} is a setting of bench {other} and has no use here")
    with cpu_threads(settings.threads):
        results = BENCHES[what](bench, progress)
        return {
            "what": what,
            "command": command,
            "date": datetime.now(UTC).date().isoformat(),
            "environment": environment(device, cpu=cpu_name()),
            "recipe": public_name(recipe),
            "model": recipe.model.model_dump(mode="json"),
            "settings": settings.model_dump(mode="json"),
            "results": results,
        }


# ---------------------------------------------------------------------------------------------------- measuring


def network(bench: Bench, model: AnyModel, copies: int = 1, progress: Progress | None = None) -> nn.Module:
    """The network with random weights, none of them zero, on the device, warmed up on `copies` batches at once.

    ValueError if the weights alone do not fit in memory.
    """
    settings, device = bench.settings, bench.device
    with torch.device("meta"):
        needed = 4 * count(build_model(model))
    there = available(device)
    if there is not None and needed > there:
        raise ValueError(f"bench: the weights take {needed / 2**30:.1f} GiB, {device} has {there / 2**30:.1f} GiB")
    told = partial(progress or _silent, f"preparing {model.kind}")
    told(0, 1 + settings.warmup)
    generator = torch.Generator().manual_seed(settings.seed)
    built = build_model(model, generator=generator).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            if not parameter.any():  # published initialisations end in zeros: the output would be 0
                parameter.normal_(std=0.02, generator=generator)
        built = built.to(device)
        rows = copies * settings.batch
        x, cond = torch.zeros(rows, model.channels, *model.size, device=device), condition(model, rows, device)
        with precision(settings, device):
            for i in range(1, settings.warmup + 1):
                told(i, 1 + settings.warmup)
                built(x, torch.full((rows,), 0.5, device=device), cond)
    synchronise(device)
    told(1 + settings.warmup, 1 + settings.warmup)
    return built


def take_turns(bench: Bench, arms: dict[str, Arm], progress: Progress | None = None) -> dict[str, list[Run]]:
    """As many runs of every arm, one of each in turn: what slows the machine for a while slows all."""
    runs: dict[str, list[Run]] = {name: [] for name in arms}
    steps, repeats, began = bench.settings.steps, bench.settings.repeats or 1, time.perf_counter()
    told, done = progress or _silent, 0
    while done < repeats * len(arms) * steps:
        for name, arm in arms.items():
            total = repeats * len(arms) * steps
            runs[name].append(timed_run(bench, arm, partial(_told, told, done, total)))
            done += steps
        if bench.settings.repeats is None and done == len(arms) * steps:
            repeats = max(1, min(MOST, int(ENOUGH / (time.perf_counter() - began))))
    told("sampling", done, done)
    return runs


def _told(told: Progress, before: int, total: int, step: int, _: int) -> None:
    """A run's progress as that of all runs."""
    told("sampling", before + step, total)


def timed_run(bench: Bench, arm: Arm, told: Callable[[int, int], None]) -> Run:
    """One run of `SamplerSettings.run` from the bench's noise, the calls inside it timed.

    Waiting for an accelerator at every call slows the run, so there it is run once more without.
    """
    recipe, settings, device = bench
    model, shape, denoiser = arm.model, arm.shape, cast(Denoiser, arm.model)
    draws = SampleNoise(settings.seed, range(settings.batch), (shape.channels, *shape.size), device)
    noise, cond = draws.initial(), condition(shape, settings.batch, device)
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


def condition(model: AnyModel, rows: int, device: torch.device) -> Condition:
    """Labels that take turns; the example of a model that reads text; nothing for an unconditional one."""
    if not model.num_classes:
        return example_condition(model, rows, device)
    return Condition(label=torch.arange(rows, device=device) % model.num_classes)


def precision(settings: BenchSettings, device: torch.device) -> torch.autocast:
    """The context of all network calls."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16")


def public_name(recipe: Recipe) -> str:
    """A recipe's name without folders: "./mine.py:big" -> "mine.py:big"."""
    return Path(recipe.name).name or "unnamed"
