"""The demo's part about encoder sharing: where DDT's encoder may rest, and what that gains and costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ditkit.config import dump
from ditkit.diffusion import Sharing
from ditkit.evaluation import Request, Section, make_request
from ditkit.files import write_text
from ditkit.recipes.analyze_sharing import solve, uniform
from ditkit.recipes.load import Loaded, load
from ditkit.recipes.measure_sharing import obtain
from ditkit.recipes.sampling import describe_sampler
from ditkit.recipes.sharing import Place, write_schedule
from ditkit.recipes.sharing_page import KINDS, SPACES, SharingFindings, different, sharing_sections
from ditkit.recipes.trade_off import ROUNDS, Judge, TradeOff, measure_trade_off, read_trade_off

TEMPLATES = 8  # as in the paper, and as `ditkit analyze sharing` has it: what the demo measured serves there too
KEPT = "demo-trade-off.json"
STAGE = "sharing"  # first word of its progress stages
Bar = Callable[..., None]


@dataclass(frozen=True)
class Trial:
    """What is tried: encoder runs of each schedule, and images made with each."""

    budgets: Sequence[int]
    images: int
    seed: int


def sharing_seconds(trial: Trial, sample: float) -> dict[str, float]:
    """Seconds of each progress stage of `share`, where one image without sharing takes `sample` seconds."""
    schedules = len(KINDS) * len(trial.budgets)
    made = max(trial.images, ROUNDS * min(trial.images, Request(n=1).chunk))
    stages = {"similarity": 0.1, "velocity": 3.0, "trade-off": sample * made * (1 + 0.45 * schedules)}
    return {f"{STAGE}: {name}": seconds for name, seconds in {**stages, "distances": 0.4 * schedules}.items()}


def share(
    folder: Path, trial: Trial, judges: Mapping[str, Judge], accuracy: float | None, device: torch.device, bar: Bar
) -> SharingFindings:
    """Measure the run in `folder`, solve its schedules and try them; all of it is kept there and found again.

    judges: feature spaces, the one that sentences tell of last; accuracy: of the classifier among them.
    """
    loaded = load(folder).to(device)
    sampling = loaded.recipe.sampling
    size = loaded.recipe.model.size
    place = Place(folder, size).folder(loaded, sampling)

    def shown(stage: str, done: int, total: int, note: str = "") -> None:
        bar(f"{STAGE}: {stage}", done, total, note)

    measured, _ = obtain(loaded, sampling, TEMPLATES, trial.seed, size, place, shown)
    solved = solve(measured, trial.budgets)
    for sharing in solved:
        write_schedule(sharing, place)
    everything = [*(uniform(measured, budget) for budget in trial.budgets), *solved]
    # other noise than the templates', so that no schedule is tried on what it was made from
    request = make_request(trial.images, loaded.recipe.model.num_classes, "balanced", seed=trial.seed + 1)
    tried = kept(place / KEPT, everything, request, judges)
    if tried is None:
        tried = try_out(loaded, everything, request, (judges, accuracy), shown)
        write_text(place / KEPT, dump(tried, "json"))
    return SharingFindings(measured, solved, tried)


def try_out(
    loaded: Loaded, schedules: Sequence[Sharing], request: Request,
    judges: tuple[Mapping[str, Judge], float | None], bar: Bar,
) -> TradeOff:  # fmt: skip
    """The trade-off of these schedules with the recipe's own sampler."""
    sampling = loaded.recipe.sampling
    return measure_trade_off(loaded, sampling, schedules, request, judges, bar, told=describe_sampler(sampling))


def kept(file: Path, schedules: Sequence[Sharing], request: Request, judges: Mapping[str, Judge]) -> TradeOff | None:
    """What `share` wrote, if it is of these schedules, images and judges; weights and sampler are the folder's."""
    found = read_trade_off(file)
    if found is None:
        return None
    asked = {
        "images": request.n,
        "seed": request.seed,
        "labels": request.mode,
        "spaces": {name: judge.extractor.id for name, judge in judges.items()},
        "real": next(iter(judges.values())).reference.fingerprint,
    }
    same = all(getattr(found, name) == value for name, value in asked.items())
    return found if same and [p.sharing for p in found.points] == list(schedules) else None


def sections(found: SharingFindings) -> list[Section]:
    """The sections of `ditkit analyze sharing`, with titles that say so among other sections."""
    return [replace(s, title=f"Encoder sharing: {_small(s.title)}") for s in sharing_sections(found)]


def headline(name: str, t: TradeOff) -> str:
    """One sentence: speed and its prediction at about 1 encoder run in 5, and what every schedule of it loses."""
    budget = min((p.sharing.budget for p in t.points if p.sharing), key=lambda k: abs(k - t.evaluations / 5))
    points, space = different(t, budget), list(t.spaces)[-1]
    speeds = sorted(p.speedup for _, p in points)
    times = f"{speeds[0]:.2f}" if f"{speeds[0]:.2f}" == f"{speeds[-1]:.2f}" else f"{speeds[0]:.2f} to {speeds[-1]:.2f}"
    losses = []
    for kinds, p in points:
        lost = p.distances[space]
        limits = "" if lost.more_interval is None else " (95 % limits {:+.2g} to {:+.2g})".format(*lost.more_interval)
        losses.append(f"{lost.more:+.2g}{limits} with {' = '.join(KINDS[k] for k in kinds)}")
    return (
        f"Encoder sharing: with its encoder at {budget} of {t.evaluations} steps {name} samples {times} times as fast "
        f"(multiply-accumulates predict {points[0][1].predicted:.2f}); the Fréchet distance in "
        f"{SPACES.get(space, space)}, {t.unshared.distances[space].value:.3g} without sharing, changes by "
        f"{', by '.join(losses)}; {t.images:,} images."
    )


def _small(title: str) -> str:
    return title[:1].lower() + title[1:]
