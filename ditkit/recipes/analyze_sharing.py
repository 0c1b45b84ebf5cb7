"""`ditkit analyze sharing`: measure a run, solve schedules, try them, and write everything into one folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field

from ditkit.config import Settings, dump, nearest, override
from ditkit.data import ImageSource, open_source
from ditkit.diffusion import SamplerSettings, Sharing, uniform_schedule
from ditkit.diffusion.sharing import check_budget
from ditkit.evaluation import Report, Request, write_report
from ditkit.evaluation.generate import latent_shape
from ditkit.evaluation.sections import json_block
from ditkit.files import write_text
from ditkit.recipes.environment import environment
from ditkit.recipes.load import Loaded
from ditkit.recipes.measure_sharing import choose_reach, obtain
from ditkit.recipes.place import check_writable
from ditkit.recipes.sampling import (
    SHORT,
    Choices,
    check_codec,
    choose_request,
    choose_sampler,
    describe_sampler,
    describe_weights,
    open_model,
    sharing_place,
    split,
)
from ditkit.recipes.scoring import Judging, check_belongs, choose_judging
from ditkit.recipes.sharing import SOLVED, Measured, Place, check_shareable, write_schedule
from ditkit.recipes.sharing_page import SharingFindings, sharing_sections, summary
from ditkit.recipes.trade_off import TradeOff, appoint, measure_trade_off, read_trade_off

DEFAULT_N = 256
SHARES = (2, 3, 5, 10)  # default budgets: one encoder run in so many evaluations
JUDGING = ("data", "classifier", "real", "protocol")
TRADE_OFF = "trade-off.json"
Bar = Callable[..., None]


class AnalysisChoices(Settings):
    """What `ditkit analyze sharing` measures on, beside the choices of the sampler."""

    templates: int = Field(8, ge=1, description="sampling runs that s is compared along (DDT: 8)")
    reach: int | None = Field(
        None, ge=1, description="evaluations that a velocity:K schedule may use an s again; None: all up to 100"
    )


@dataclass(frozen=True)
class Plan:
    """Everything that was asked, checked before anything is computed. request: None without a trade-off."""

    loaded: Loaded
    sampling: SamplerSettings
    place: Place
    folder: Path
    budgets: tuple[int, ...]
    templates: int
    seed: int
    reach: int
    request: Request | None
    judging: Judging | None
    source: ImageSource | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Analysis:
    """What was found, and where it is."""

    findings: SharingFindings
    files: tuple[Path, ...]
    report: Path
    reused: bool

    @property
    def fifth(self) -> Sharing:
        """The DP schedule whose budget is nearest to one encoder run in five."""
        solved = [s for s in self.findings.schedules if s.rule.startswith("dp:")]
        return min(solved, key=lambda s: abs(s.budget - s.evaluations / 5))


def make_plan(
    what: Path, keys: Sequence[str], given: dict, device: torch.device, *,
    budgets: Sequence[int], trade_off: bool, source: str | None, data: str | None, out: Path | None,
) -> Plan:  # fmt: skip
    """Sort the command line's words and check them. One-line errors, before anything is computed."""
    own_keys, judging_keys, rest = sort_keys(keys)
    own, (chosen, sampler_keys) = override(AnalysisChoices(), own_keys), split(rest)
    choices = override(Choices(), chosen).with_({key: value for key, value in given.items() if value is not None})
    if choices.sharing is not None:
        raise ValueError("sharing is what is measured here: leave --sharing out, name budgets with --budget")
    if not trade_off and (unused := [*judging_keys, *(["--n"] if choices.n else []), *(["--data"] if data else [])]):
        raise ValueError(f"{unused[0]} says how the trade-off is measured: give --trade-off too, or leave it out")
    loaded = open_model(what, source, choices, device)
    sampling, notes = choose_sampler(loaded, choices, sampler_keys, what)
    sampling = sampling.model_copy(update={"sharing": None})
    steps = check_shareable(loaded, sampling)
    wanted = tuple(sorted(set(budgets or default_budgets(steps))))
    for budget in wanted:
        check_budget(steps, budget)
    reach = choose_reach(steps, wanted, own.reach)
    place = sharing_place(what, loaded, choices, sampler_keys)
    request, judging, images = None, None, None
    if trade_off:
        check_codec(loaded)
        # other noise than the templates', so that no schedule is tried on what it was made from
        request = choose_request(loaded, choices.with_({"seed": choices.seed + 1}), DEFAULT_N)
        if request.n < 2:
            raise ValueError(f"--n {request.n}: distances are of 2 images at least, and mean little of few")
        judging = choose_judging(judging_keys, data, loaded.recipe)
        notes = [*notes, *check_belongs(loaded, judging)]
        images = real_images(loaded, judging, request)
    folder = out or place.folder(loaded, sampling)
    check_writable(folder)
    return Plan(
        loaded, sampling, place, folder, wanted, own.templates, choices.seed, reach, request, judging, images,
        tuple(notes),
    )  # fmt: skip


def sort_keys(keys: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """KEY=VALUE words: (of this analysis, of the real side of the trade-off, as of `sample`). ValueError for others."""
    own: list[str] = []
    judging: list[str] = []
    rest: list[str] = []
    known = {*AnalysisChoices.model_fields, *JUDGING, *Choices.model_fields, *SHORT, "sampling"}
    for key in keys:
        first = key.partition("=")[0].partition(".")[0].strip()
        if "=" in key and first not in known:
            raise ValueError(f"{first}: unknown key{nearest(first, known)}")
        (own if first in AnalysisChoices.model_fields else judging if first in JUDGING else rest).append(key)
    return own, judging, rest


def real_images(loaded: Loaded, judging: Judging, request: Request) -> ImageSource:
    """The real images at size and channels of the images that will be made."""
    _, height, width = latent_shape(loaded, request)
    channels = loaded.codec.channels if loaded.recipe.codec.kind == "pixels" else 3
    size = (height * loaded.codec.factor, width * loaded.codec.factor)
    return open_source(judging.data.model_copy(update={"size": size, "channels": channels}))


def default_budgets(steps: int) -> list[int]:
    """Encoder runs for about 1 evaluation in 2, 3, 5 and 10."""
    return sorted({max(1, round(steps / share)) for share in SHARES})


def solve(measured: Measured, budgets: Sequence[int]) -> list[Sharing]:
    """The schedules of every solved kind and budget, budgets ascending."""
    return [measured.schedule(kind, budget) for budget in budgets for kind in SOLVED]


def uniform(measured: Measured, budget: int) -> Sharing:
    """The uniform schedule for the same evaluations."""
    encode = tuple(uniform_schedule(measured.evaluations, budget))
    return Sharing(rule=f"uniform:{budget}", evaluations=measured.evaluations, encode=encode)


def analyze(plan: Plan, bar: Bar) -> Analysis:
    """Measure (or find stored), solve, try where asked, and write schedules, numbers and report.html."""
    measured, reused = obtain(
        plan.loaded, plan.sampling, plan.templates, plan.seed, plan.place.size, plan.folder, bar, plan.reach
    )  # fmt: skip
    found = solve(measured, plan.budgets)
    files = [write_schedule(sharing, plan.folder) for sharing in found]
    tried = read_trade_off(plan.folder / TRADE_OFF) if reused else None
    if plan.request is not None:
        tried = try_out(plan, measured, found, bar)
        files.append(write_text(plan.folder / TRADE_OFF, dump(tried, "json")))
    findings = SharingFindings(measured, found, tried)
    report = write_report(page(plan, findings), plan.folder / "report.html")
    return Analysis(findings, tuple(files), report, reused)


def try_out(plan: Plan, measured: Measured, found: Sequence[Sharing], bar: Bar) -> TradeOff:
    """The trade-off of uniform and solved schedules of every budget."""
    assert plan.request is not None and plan.judging is not None and plan.source is not None
    everything = [*(uniform(measured, budget) for budget in plan.budgets), *found]
    judges = appoint(plan.source, plan.judging, plan.loaded.device, bar)
    told = describe_sampler(plan.sampling)
    return measure_trade_off(plan.loaded, plan.sampling, everything, plan.request, judges, bar, told=told)


def page(plan: Plan, findings: SharingFindings) -> Report:
    """The report of one analysis."""
    loaded = plan.loaded
    title = f"Encoder sharing: {loaded.recipe.title or loaded.recipe.name}"
    lines = [f"{describe_weights(loaded)}; {describe_sampler(plan.sampling)}.", *summary(findings)]
    facts = environment(loaded.device, seed=plan.seed)
    sections = [
        *sharing_sections(findings),
        json_block("Recipe", loaded.recipe.model_dump(mode="json"), "Show the resolved recipe"),
        json_block("Environment", facts, "Show versions and machine"),
    ]
    return Report(title, lines, sections, "Made by ditkit. Numbers are as measured.")
