"""Sampling paths: how straight they are, and how far few steps end from many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field

from ditkit.analysis.straightness import (
    ROUNDING,
    Flow,
    Straightness,
    at_once,
    least_error,
    observed_order,
    step_errors,
    straightness,
    travel,
)
from ditkit.config import Settings
from ditkit.diffusion import CFG, SampleNoise
from ditkit.evaluation import Panel, Series
from ditkit.evaluation.sections import Cell, number
from ditkit.recipes.analyses.analysis import Analysis, Bar, Found, Ints, Shown, Table, Words
from ditkit.recipes.analyses.noised import picked
from ditkit.recipes.analyses.subject import Subject
from ditkit.recipes.analyses.verdicts import Standing, ranked, side_by_side
from ditkit.recipes.analyses.words import of, plus_minus, standard_error
from ditkit.recipes.text import Captioned

Solver = Literal["euler", "heun"]
SOLVERS: tuple[Solver, ...] = ("euler", "heun")
UNSURE = 1e-3  # relative L2 that the fine run may be off one of half its steps
NEAR = 4  # step counts within this factor of the fine run's say nothing of the order
NOTE = (
    "Straightness as in rectified flow (Liu et al., arXiv 2209.03003): the mean over t of |(x_1 - x_0) - v|^2, here "
    "over |x_1 - x_0|^2; 0 is straight at even speed. It depends on how the path is timed, the length and the turning "
    "do not. Error: L2 distance from the latents of the fine run, over their norm; order: slope of its logarithm over "
    "that of the steps, where they are at most a quarter of the fine run's and the error is at most 1, more than "
    "rounding (1e-5) and four times what the fine run differs by from one of half its steps."
)


class PathSettings(Settings):
    """What is travelled. The fine run is Heun's, and the reference of the others."""

    paths: int = Field(32, ge=2, description="sampling paths")
    fine: int = Field(128, ge=8, description="steps of the fine run")
    counts: Ints = Field((1, 2, 4, 8, 16, 32), description="numbers of steps that are compared with it")
    solvers: Words = Field(SOLVERS, description="euler, heun")
    guidance: float | None = Field(None, ge=0, description="classifier-free guidance scale; None: none")


class SolverErrors(Settings):
    """Relative L2 errors and their standard errors, network evaluations a sample, and the order that is observed."""

    steps: list[int]
    evaluations: list[int]
    errors: list[float]
    spread: list[float]
    order: float | None


class PathResult(Settings):
    """times: of the fine run, falling; deviation: |chord - v|^2 there over |chord|^2; turn_rate: degrees per t.

    reference_error: relative L2 distance of the fine run from one of half its steps. straightness_each: of the paths.
    """

    paths: int
    fine: int
    watched: str
    conditioned: str
    reference_error: float
    straightness_each: list[float]
    guidance: float | None
    straightness: float
    straightness_error: float | None
    length: float
    length_error: float
    turn: float
    turn_error: float
    times: list[float]
    deviation: list[float]
    turn_rate: list[float]
    solvers: dict[str, SolverErrors]


def flow_of(subject: Subject, rows: torch.Tensor, guidance: float | None) -> Flow:
    """The ODE of these test images' labels or captions. ValueError where there is nothing to guide by."""
    loaded, test = subject.loaded, subject.test
    cond = test.cond.index(rows).to(loaded.device)
    guided = None if guidance in (None, 1) else CFG(scale=guidance)  # type: ignore[arg-type]
    if guided is not None and not len(cond):
        raise ValueError("guidance: the model has no classes to guide by: leave it out")
    if guided is not None and isinstance(test.cond, Captioned):
        guided = guided.against(test.cond.text([""]).to(loaded.device))  # as sampling does
    return Flow(loaded.model, cond, loaded.path, loaded.prediction, guided)  # type: ignore[arg-type]


def check(settings: PathSettings) -> None:
    """ValueError, one line, for solvers or counts that cannot be."""
    if wrong := [name for name in settings.solvers if name not in SOLVERS]:
        raise ValueError(f"solvers {wrong[0]!r}: choose from {', '.join(SOLVERS)}")
    if wrong_counts := [n for n in settings.counts if not 1 <= n < settings.fine]:
        raise ValueError(f"counts {wrong_counts[0]}: give numbers of steps from 1 to below fine={settings.fine}")


@torch.no_grad()
def measure(subject: Subject, settings: PathSettings, bar: Bar) -> Found:
    """Travel finely, then again in few steps."""
    check(settings)
    rows = picked(subject, settings.paths)
    flow, n = flow_of(subject, rows, settings.guidance), len(rows)
    shape, device = subject.test.latents.shape[1:], subject.loaded.device
    size = at_once(shape.numel(), settings.fine, subject.asked.batch)
    seen: list[Straightness] = []
    errors: dict[str, list[torch.Tensor]] = {name: [] for name in settings.solvers}
    spent: dict[str, tuple[int, ...]] = {}
    half: list[torch.Tensor] = []
    for start in range(0, n, size):
        part = slice(start, min(start + size, n))
        noise = SampleNoise(subject.asked.seed, range(part.start, part.stop), shape, device=device).initial()
        found, latents = travel(flow.of(part), noise, settings.fine)
        seen.append(straightness(found))
        half.append(step_errors(flow.of(part), noise, latents, "heun", (settings.fine // 2,)).errors)
        for name in settings.solvers:
            off = step_errors(flow.of(part), noise, latents, name, settings.counts)
            errors[name].append(off.errors)
            spent[name] = off.evaluations
        bar("sampling paths", part.stop, n)
    whole, turn = Straightness.join(seen), Straightness.join(seen).turn.sum(1)
    reference, s = float(torch.cat(half).mean()), whole.s
    return Found(
        PathResult(
            paths=n, fine=settings.fine, watched=subject.watched, conditioned=subject.test.conditioned,
            reference_error=reference, guidance=settings.guidance, straightness=s.value,
            straightness_error=s.error, straightness_each=s.each.tolist(), length=float(whole.length.mean()),
            length_error=standard_error(whole.length), turn=float(turn.mean()), turn_error=standard_error(turn),
            times=whole.times.tolist(), deviation=whole.deviation_at.tolist(), turn_rate=whole.turn_rate.tolist(),
            solvers={
                name: solver_errors(settings, torch.cat(errors[name]), spent[name], reference)
                for name in settings.solvers
            },
        )
    )  # fmt: skip


def solver_errors(
    settings: PathSettings, errors: torch.Tensor, evaluations: tuple[int, ...], reference: float
) -> SolverErrors:
    """errors (B, K) of each path and count as numbers; reference: what the fine run itself is off."""
    means = errors.mean(0).tolist()
    far = [i for i, count in enumerate(settings.counts) if count * NEAR <= settings.fine]
    order = observed_order([settings.counts[i] for i in far], [means[i] for i in far], least_error(reference))
    spread = [standard_error(column) for column in errors.T]
    return SolverErrors(
        steps=list(settings.counts), evaluations=list(evaluations), errors=means, spread=spread, order=order
    )


def show(found: Mapping[str, Found]) -> Shown:
    """Deviation and turning over t, error over evaluations."""
    results: dict[str, PathResult] = {name: f.result for name, f in found.items()}  # type: ignore[misc]
    deviations = [Series(name or "paths", r.times, r.deviation) for name, r in results.items()]
    turns = [
        Series(name or "paths", [(a + b) / 2 for a, b in zip(r.times, r.times[1:], strict=False)], r.turn_rate)
        for name, r in results.items()
    ]
    errors = [
        Series(f"{of(name)}{solver}", e.evaluations, e.errors, limits=limits(e))
        for name, r in results.items()
        for solver, e in r.solvers.items()
    ]
    panels = [
        Panel("Deviation from straight, even travel", deviations, "t", "|chord - v|² / |chord|²"),
        Panel("Turning", turns, "t", "degrees per unit of t"),
        Panel("Error against evaluations", errors, "network evaluations", "relative L2", log_y=True),
    ]
    rows: list[list[Cell]] = [
        [f"{of(name)}{solver}", n, spent, error, spread]
        for name, r in results.items()
        for solver, e in r.solvers.items()
        for n, spent, error, spread in zip(e.steps, e.evaluations, e.errors, e.spread, strict=True)
    ]
    table = Table(("solver", "steps", "evaluations", "relative L2 error", "standard error"), rows)
    said = [line for name, r in results.items() for line in said_of(name, r)]
    levels = {name: Standing(r.straightness, each=r.straightness_each) for name, r in results.items()}
    said += side_by_side(ranked("In S (bent or uneven travel)", levels, short, lowest=True))
    first = next(iter(results.values()))
    of_what = f"Probability-flow ODE from noise to data, of {first.watched}, with {first.conditioned}. "
    return Shown(said, panels, {"Error against step count": table}, note=of_what + NOTE)


def short(value: float) -> str:
    """Three digits."""
    return number(value, 3)


def limits(e: SolverErrors) -> list[tuple[float, float]]:
    """One standard error either way, above 0 for a logarithmic axis."""
    return [(max(v - s, v / 100), v + s) for v, s in zip(e.errors, e.spread, strict=True)]


def said_of(name: str, r: PathResult) -> list[str]:
    """Straightness, where paths bend, and the cost of few steps."""
    guided = f" under guidance {r.guidance:g}" if r.guidance not in (None, 1) else ""
    most = max(range(len(r.turn_rate)), key=r.turn_rate.__getitem__)
    said = [
        f"{of(name)}straightness S{guided} is {plus_minus(r.straightness, r.straightness_error)} of the squared "
        f"distance (0: straight, evenly travelled) over {r.paths} paths; they are {longer(r.length)} straight lines "
        f"and turn by {plus_minus(r.turn, r.turn_error)} degrees in all, fastest at t = {r.times[most]:.2g}."
    ]
    for solver, e in r.solvers.items():
        if not e.steps:
            continue
        order = "" if e.order is None else f"; observed order {e.order:.2f}"
        if e.order is None and sum(n * NEAR <= r.fine for n in e.steps) > 1:
            order = "; no order: too few of the errors are below 100 % and above rounding and what the fine run is off"
        ends = [f"{number(100 * e.errors[i], 3)} % in {e.steps[i]} step{'s' * (e.steps[i] > 1)}" for i in (0, -1)]
        said.append(f"{of(name)}{solver} ends off the fine run by {' and '.join(dict.fromkeys(ends))}{order}.")
    off = f"{of(name)}the fine run, {r.fine} steps of Heun, ends {short(100 * r.reference_error)} % off one of half"
    said.append(f"{off} as many{': a larger fine=N is surer' if r.reference_error > UNSURE else ''}.")
    return said


def longer(length: float) -> str:
    """How much longer than straight lines, where that is more than rounding."""
    return f"{short(100 * (length - 1))} % longer than" if length - 1 > ROUNDING else "as long as"


ANALYSIS = Analysis("path", "Sampling paths", PathSettings, PathResult, measure, show)
