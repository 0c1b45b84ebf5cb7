"""SD3's preference tuning (Esser et al. 2024, appendix C; Table 5) at a small size: DPO on scenes the detector ranked.

One base is trained, or taken as it is (base=RUN); `preference_study` then tunes it by DPO, and by as many steps on the
winners alone, once a seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pydantic import Field

from ditkit.config import Settings
from ditkit.evaluation import Section
from ditkit.evaluation.generate import weights_fingerprint
from ditkit.evaluation.geneval import TAGS
from ditkit.evaluation.geneval.metadata import TITLES
from ditkit.evaluation.geneval.published import TABLE_5
from ditkit.evaluation.sections import Cell, table, text
from ditkit.recipes import t2i
from ditkit.recipes.build import prepare
from ditkit.recipes.claims.scenes import SceneStudy
from ditkit.recipes.load import Loaded, load
from ditkit.recipes.preference_study import Budget, NoPairs, preference_study
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.reproduce.claim import (
    FAILS,
    HOLDS,
    SCORING,
    UNDECIDED,
    Arm,
    Claim,
    Finding,
    Question,
    Show,
    Verdict,
)
from ditkit.recipes.reproduce.comparison import PAPERS
from ditkit.recipes.reproduce.rules import FEWEST
from ditkit.training import list_steps

NAMES = {"dpo": "DPO", "winners": "plain tuning on the winners"}
BEFORE, AFTER = "SD3 depth 38, 512 px", "SD3 depth 38, 512 px, DPO"
RULE = (
    "By the GenEval-style score (mean over six tasks) of held-out prompts after as many steps. Holds: DPO is above the "
    "base and above plain tuning on the winners with every one of at least 3 seeds. Does not hold: DPO is below the "
    "base with every one of at least 3 seeds. Undecided: all else, and always below 3 seeds or where the base is too "
    "weak to make pairs."
)


class PreferenceBudget(Settings):
    """How much of everything."""

    base: str = Field("", description="a run of t2i.scenes to tune instead of training a base; of any size")
    base_steps: int = Field(6000, ge=2, description="training steps of the base")
    batch: int = Field(64, ge=1, description="images a step of the base")
    width: int = Field(128, gt=0, description="of the MMDiT")
    depth: int = Field(4, gt=0, description="blocks of the MMDiT")
    steps: int = Field(400, ge=1, description="of each tuning")
    prompts: int = Field(48, ge=1, description="of each controlled task, to make pairs of")
    images: int = Field(8, ge=2, description="of each of them")
    test_prompts: int = Field(16, ge=1, description="of each task, held out")
    test_images: int = Field(4, ge=1, description="of each of them")
    pairs: int = Field(2000, ge=1, description="at most")


SMOKE = PreferenceBudget(
    base_steps=4, batch=8, width=32, depth=1, steps=2, prompts=2, images=2, test_prompts=1, test_images=1, pairs=8
)
SMALL = PreferenceBudget(base_steps=3000, steps=200)
GPU = PreferenceBudget()
OF_THE_BASE = ("base_steps", "batch", "width", "depth")  # settings that a finished base has already


def told(budget: Settings) -> dict[str, Any]:
    """The budget as JSON; a finished base as its recipe, sizes, steps and weights instead of its path."""
    tree = budget.model_dump(mode="json")
    if not tree["base"]:
        del tree["base"]
        return tree
    base = finished(tree["base"])
    model, training = base.recipe.model, base.recipe.training
    weights = f"{base.recipe.name}, weights {weights_fingerprint(base.model)}"
    return tree | {
        "base": weights, "base_steps": base.step, "batch": training.batch, "width": model.width, "depth": model.depth
    }  # fmt: skip


def of_result(base: str) -> bool:
    """Whether this is how `told` names a base: a result can be judged again without it, nothing can be tuned."""
    return ", weights " in base and not place(base).exists()


def place(base: str) -> Path:
    """The folder of base=RUN."""
    return Path(base).expanduser().absolute()


def finished(base: str) -> Loaded:
    """The base that base=RUN names; ValueError or CheckpointError, one line, where it is no model of scenes."""
    found = load(place(base))
    r = found.recipe
    a_run = list_steps(place(base))[-1:] == [found.step]
    if not a_run or r.text is None or r.data.source != "scenes" or r.adapter is not None or r.align is not None:
        raise ValueError(f"base={base}: {r.name or 'this'} is no run of t2i.scenes (whole, neither tuned nor aligned)")
    return found


class PreferenceStudy(SceneStudy):
    """The base, and one score of it: everything that tuning does."""

    def __init__(self, q: Question):
        super().__init__(q)
        self.budget: PreferenceBudget = q.budget  # type: ignore[assignment]
        if self.budget.base and not of_result(self.budget.base):
            twice = [key for key in q.keys if key.partition("=")[0].strip() in OF_THE_BASE]
            if twice:
                raise ValueError(f"{', '.join(twice)}: base=RUN brings its own; leave one of them out")
            base = finished(self.budget.base)
            recipe = base.recipe.with_({"training.steps": base.step})
        else:
            recipe = t2i.scenes().with_({"model.width": self.budget.width, "model.depth": self.budget.depth})
        self.parts = prepare(recipe, q.device)

    @property
    def part(self) -> str:
        """The name of the score: more seeds are another one, which takes over what is there."""
        return f"{len(self.q.seeds)} tunings"

    @cached_property
    def arms(self) -> list[Arm]:
        """The base alone; tunings are runs of `preference_study`."""
        b, n = self.budget, len(self.q.seeds)
        if b.base:
            recipe = self.parts.recipe
            return [Arm("base", recipe, {self.part: self._evaluations(n, recipe)}, run=place(b.base))]
        recipe = self.parts.recipe.with_(
            {
                "name": "base", "title": "MMDiT on scenes, base of preference tuning", "training.steps": b.base_steps,
                "training.batch": b.batch, "training.save_every": max(1, b.base_steps // 4),
                "training.validate_every": max(1, b.base_steps // 4),
            }
        )  # fmt: skip
        return [Arm("base", recipe, {self.part: self._evaluations(n, recipe)})]

    def _evaluations(self, n: int, recipe: Recipe) -> int:
        """Network evaluations of all tests, pairs and tunings; a DPO step costs about 12 of an image, the other 6."""
        b, tests = self.budget, self.budget.test_prompts * self.budget.test_images * len(TAGS)
        drawn = tests * (1 + 2 * n) + 3 * b.prompts * b.images
        return 2 * recipe.sampling.steps * drawn + 18 * n * b.steps * recipe.training.batch

    def score(self, arm: Arm, folder: Path, part: str, show: Show) -> dict[str, Any]:
        """What `preference_study` found, or {"weak": why} where the base controls no task to make pairs of."""
        b = self.budget
        study = Budget(
            steps=b.steps, tuning_prompts=b.prompts, images=b.images, test_prompts=b.test_prompts,
            test_images=b.test_images, pairs=b.pairs, force=self.q.size == "smoke",
        )  # fmt: skip
        told: list[str] = []

        def say(line: str) -> None:
            told.append(line)
            show(SCORING, 0, 1, line)

        try:
            return preference_study(folder, self.q.out / "tuned", len(self.q.seeds), study, say=say)
        except NoPairs as error:
            return {"weak": str(error)}

    def find(self, scores: Mapping[str, Mapping[str, Any]], folders: Mapping[str, Path]) -> Finding:
        """Scores beside SD3's, and the verdict."""
        found = scores[self.arms[0].key][self.part] or {"weak": "the base diverged"}
        paper = {"before": TABLE_5[BEFORE].overall, "after": TABLE_5[AFTER].overall}
        if "weak" in found:
            return Finding(paper, found, UNDECIDED, f"No model was tuned: {found['weak']}.", [])
        runs = {arm: [run["overall"] for run in found["arms"][arm]] for arm in NAMES}
        verdict, reason = decide(found["base"]["overall"], runs["dpo"], runs["winners"])
        if found["pairs"].get("forced"):
            reason = f"Smoke: pairs at random, so that tuning has something to do. {reason}"
        base = found["base"]["overall"]
        ours = {"base": base, **runs, "pairs": found["pairs"].get("pairs")}
        number = f"{base:.3f} before, {shown(runs['dpo'])} after DPO, {shown(runs['winners'])} after plain tuning"
        sections = [scores_table(found), text("In words", found["paragraph"])]
        return Finding(paper, ours, verdict, reason, sections, number=number, effect=wrong_left(base, runs["dpo"]))


def wrong_left(base: float, tuned: list[float]) -> list[float]:
    """Images that are not as asked after tuning over those before, by seed."""
    return [(1 - score) / (1 - base) if base < 1 else math.nan for score in tuned]


def decide(base: float, dpo: list[float], winners: list[float]) -> tuple[Verdict, str]:
    """RULE. Scores of the base, and of both tunings by seed."""
    over_base = sum(d > base for d in dpo)
    over_both = sum(d > base and d > w for d, w in zip(dpo, winners, strict=True))
    reason = (
        f"Overall score {base:.3f} before, {shown(dpo)} after DPO and {shown(winners)} after as many steps on the "
        f"winners alone; DPO is above the base in {over_base} of {len(dpo)} seeds, above both in {over_both}."
    )
    if len(dpo) >= FEWEST and over_both == len(dpo):
        return HOLDS, reason
    return (FAILS if len(dpo) >= FEWEST and all(d < base for d in dpo) else UNDECIDED), reason


def shown(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def scores_table(found: Mapping[str, Any]) -> Section:
    """Base and tunings, overall and by task, with SD3's row before and after DPO."""

    def cells(name: str, runs: list[dict[str, Any]]) -> list[Cell]:
        by_task = [shown([run["tasks"][tag] for run in runs]) for tag in TAGS]
        return [name, shown([run["overall"] for run in runs]), *by_task]

    rows = [cells("base", [found["base"]]), *(cells(title, found["arms"][arm]) for arm, title in NAMES.items())]
    for name in (BEFORE, AFTER):
        rows.append([f"paper: {name}", f"{TABLE_5[name].overall:.2f}", *(f"{v:.2f}" for v in TABLE_5[name].tasks)])
    columns = ("", "overall", *(TITLES[tag] for tag in TAGS))
    note = "± standard deviation over seeds. The paper's rows: its Table 5, on GenEval's own prompts and detectors."
    return table("Scores", columns, rows, note)


CLAIM = Claim(
    name="sd3-dpo",
    paper=PAPERS["SD3"],
    table="Table 5",
    says="tuning on preferred images by DPO makes a model follow its prompts better",
    rule=RULE,
    data="scenes",
    budgets={"smoke": SMOKE, "small": SMALL, "gpu": GPU},
    minutes={"smoke": 1, "small": 25, "gpu": 60},
    open=PreferenceStudy,
    told=told,
    number="GenEval 0.68 to 0.71 (depth 38, 512 pixels)",
)
CLAIMS = (CLAIM,)
