"""DDT's reason for sharing: s hardly changes from one step of sampling to the next, and REPA's part in that."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ditkit.analysis.sharing import Templates, draw_templates, state_similarity
from ditkit.analysis.templates import unshared
from ditkit.diffusion import SharedEncoder
from ditkit.evaluation import Panel, Section
from ditkit.evaluation.sections import curves, table
from ditkit.protocols import Decoupled
from ditkit.recipes.claims.ddt_arms import DDT, DDT_ALONE, ddt, ddt_alone
from ditkit.recipes.load import Loaded
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED, Finding, Verdict
from ditkit.recipes.reproduce.comparison import PAPERS, Table, Trial, claim
from ditkit.recipes.reproduce.measures import Measure, Quality
from ditkit.recipes.reproduce.rules import FEWEST, PAIRED, Paired, percent, shown
from ditkit.recipes.reproduce.shown import scores, series
from ditkit.recipes.reproduce.testbed import Testbed

ALIKE = 0.95  # cosine of s from one evaluation to the next
NEARER = 0.1  # 1 - cosine to the next evaluation, at most so much of 1 - cosine to another image
EVALUATIONS, TEMPLATES = 50, 64
OTHER_NOISE = 1000  # added to the seed: not the noise that samples are judged from


@dataclass(frozen=True)
class Alikeness:
    """How alike s is along sampling runs, as mean cosines over templates and tokens.

    {"times": t of each evaluation, "next": to the one after, by evaluation, "lag": over all pairs so many evaluations
    apart, from 1, "images": between two images at one evaluation, mean over evaluations}.
    """

    step: int
    evaluations: int = EVALUATIONS
    templates: int = TEMPLATES

    @property
    def name(self) -> str:
        """alikeness@STEP, evaluations and templates."""
        return f"alikeness@{self.step}, {self.evaluations} evaluations, {self.templates} templates"

    def cost(self, bed: Testbed) -> float:
        """Two runs."""
        return 2.0 * self.evaluations * self.templates

    def __call__(self, bed: Testbed, folder: Path, seed: int) -> dict[str, Any]:
        """Along runs of the averaged weights without guidance, from noise of their own."""
        loaded = bed.load(folder, self.step)
        sampler = loaded.recipe.sampling.model_copy(update={"steps": self.evaluations, "guidance": None})
        model = cast(Decoupled, loaded.model)
        drawn = draw_templates(model, self.templates, seed + OTHER_NOISE)
        found = state_similarity(model, sampler, drawn, path=loaded.path, prediction=loaded.prediction)
        cosines = found.similarity.numpy()
        lags = [float(np.diagonal(cosines, -lag).mean()) for lag in range(1, len(cosines))]
        return {
            "times": rounded(found.times), "next": rounded(np.diagonal(cosines, -1)), "lag": rounded(lags),
            "images": between_images(loaded, sampler, drawn),
        }  # fmt: skip


def rounded(values: Any) -> list[float]:
    """Numbers for JSON, no finer than float32 tells them."""
    return [round(float(v), 9) for v in values]


@torch.no_grad()
def between_images(loaded: Loaded, sampler: Any, drawn: Templates) -> float:
    """Mean cosine of s between neighbouring templates, token by token, at the same evaluation."""
    model = cast(Decoupled, loaded.model)
    sampler, everywhere = unshared(model, sampler, loaded.path, loaded.prediction)
    seen: list[float] = []

    def observe(index: int, x: Tensor, t: Tensor, s: Tensor) -> None:
        unit = F.normalize(s.float(), dim=-1)
        seen.append(float((unit * unit.roll(1, 0)).sum(-1).mean()))

    shared = SharedEncoder(model, everywhere, observe)
    sampler.run(
        shared, drawn.noise, drawn.cond, path=loaded.path, prediction=loaded.prediction, noise_source=drawn.draws()
    )
    return float(np.mean(seen))


def measured(bed: Testbed) -> list[Trial]:
    """DDT with and without REPA in its encoder."""
    measures: list[Measure] = [Quality(bed.budget.steps), Alikeness(bed.budget.steps)]
    return [Trial(DDT, ddt(bed), measures), Trial(DDT_ALONE, ddt_alone(bed), measures)]


@dataclass(frozen=True)
class Seen:
    """What was measured of one trial, seed by seed: 1 - cosine to the next evaluation, and to another image."""

    next: np.ndarray
    images: np.ndarray

    @classmethod
    def of(cls, found: Table, trial: str) -> Seen:
        """Runs that diverged are nan."""
        rows = found.of(trial, Alikeness(found.bed.budget.steps))
        following = [1 - float(np.mean(row["next"])) if row else np.nan for row in rows]
        return cls(np.array(following), np.array([1 - row["images"] if row else np.nan for row in rows]))

    def alike(self) -> Verdict:
        """The rule of ddt-similarity."""
        if len(self.next) < FEWEST or not np.isfinite(self.next).all():
            return UNDECIDED
        good = (self.next <= 1 - ALIKE) & (self.next <= NEARER * self.images)
        return HOLDS if good.all() else UNDECIDED if good.any() else FAILS


def facts_of(found: Table, seen: dict[str, Seen]) -> dict[str, Any]:
    """Everything measured, for `ours`."""
    measure = Alikeness(found.bed.budget.steps)
    return {
        name: {
            "cosine to the next": (1 - each.next).tolist(), "cosine to another image": (1 - each.images).tolist(),
            "cosine from first to last": [row["lag"][-1] if row else None for row in found.of(name, measure)],
        }
        for name, each in seen.items()
    }  # fmt: skip


def sections_of(found: Table, seen: dict[str, Seen]) -> list[Section]:
    """Curves of cosines over time and over distance in evaluations, then the numbers."""
    measure = Alikeness(found.bed.budget.steps)
    over_time, over_lag = [], []
    for name in seen:
        rows = [row for row in found.of(name, measure) if row]
        if rows:
            over_time.append(series(name, rows[0]["times"][:-1], list(np.array([r["next"] for r in rows]).T)))
            over_lag.append(
                series(name, list(range(1, 1 + len(rows[0]["lag"]))), list(np.array([r["lag"] for r in rows]).T))
            )
    panels = [
        Panel("From one evaluation to the next", over_time, "t (1: noise)", "mean cosine of s"),
        Panel("Over more evaluations", over_lag, "evaluations apart", "mean cosine of s"),
    ]
    note = f"{measure.templates} sampling runs of {measure.evaluations} Euler steps without guidance."
    rows = [
        [name, shown(1 - each.next, 5), shown(1 - each.images), shown(each.next / each.images)]
        for name, each in seen.items()
    ]
    head = ("", "to the next evaluation", "to another image", "1 - cosine, next over other image")
    found_scores = scores(found, found.bed.budget.steps)
    return [curves("How alike s is", panels, note), table("Mean cosines of s", head, rows), found_scores]


def judge_alike(found: Table) -> Finding:
    """Whether s of DDT as the paper trains it, with REPA, is alike from evaluation to evaluation."""
    seen = {trial.name: Seen.of(found, trial.name) for trial in found.trials}
    own = seen[DDT]
    near, far = shown(1 - own.next, 4), shown(1 - own.images)
    told = f"cosine {near} to the next of {EVALUATIONS} evaluations, {far} to another image"
    reason = f"With REPA: mean {told}. Without REPA: {shown(1 - seen[DDT_ALONE].next, 4)} to the next."
    return Finding(
        {"cosine to the next": "drawn only"}, facts_of(found, seen), own.alike(), reason, sections_of(found, seen),
        number=told,
    )  # fmt: skip


def judge_repa(found: Table) -> Finding:
    """Whether s is more alike with REPA than without."""
    seen = {trial.name: Seen.of(found, trial.name) for trial in found.trials}
    pair = Paired.of(seen[DDT].next, seen[DDT_ALONE].next)
    scaled = Paired.of(seen[DDT].next / seen[DDT].images, seen[DDT_ALONE].next / seen[DDT_ALONE].images)
    told = f"1 - cosine to the next evaluation {percent(pair.ratio)} with REPA"
    reason = (
        f"1 - cosine, {pair.words('with REPA', 'without')} Relative to that between images: {percent(scaled.ratio)}."
    )
    ours = {**facts_of(found, seen), "with over without": pair.ratio.tolist(), "relative": scaled.ratio.tolist()}
    return Finding(
        {"with against without REPA": "not measured"}, ours, pair.verdict(), reason, sections_of(found, seen),
        number=told, effect=pair.ratio.tolist(),
    )  # fmt: skip


SIMILARITY = claim(
    "ddt-similarity",
    (PAPERS["DDT"], "section 4.3, figure"),
    "the encoder's self-condition s is much alike in adjacent steps of sampling",
    f"Holds: in every seed, over {EVALUATIONS} evaluations of a DDT with REPA, the mean cosine of s from one to the "
    f"next is at least {ALIKE}, and 1 - cosine is at most {NEARER:.0%} of that between two images at the same "
    "evaluation. Does not hold: in no seed. Undecided: else, or fewer than 3 seeds.",
    trials=measured,
    judge=judge_alike,
    number="near 1 (drawn, no number)",
    minutes=3,
)
REPA_PART = claim(
    "ddt-similarity-repa",
    (PAPERS["DDT"], "section 4"),
    "REPA, which holds the encoder to one representation of the clean image, makes s more alike over adjacent steps",
    f"Holds: 1 - the mean cosine of s from one of {EVALUATIONS} evaluations to the next is smaller with REPA in the "
    f"encoder than without, {PAIRED}. Does not hold: it is larger by the same measure. Undecided: else.",
    trials=measured,
    judge=judge_repa,
    number="argued, no number",
    minutes=3,
)
CLAIMS = (SIMILARITY, REPA_PART)
