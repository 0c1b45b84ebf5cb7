"""SD3 without one of its text encoders (Esser et al. 2024, section 5.3.3) at a small size, on captioned scenes.

Three toy encoders stand where SD3's stand: two know the words of a prompt (CLIP-L, CLIP-G), one also their order (T5).
One model is trained as SD3 was, each encoder zeroed by itself with probability .463; its control loses the whole text
as often as the other loses all three (.463^3). Both are then sampled with every subset of the encoders, from the same
noise. What each encoder is worth is also told as validation loss, by task, which is finer than images right or wrong.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from ditkit.config import Settings
from ditkit.data import open_source
from ditkit.data.scenes import Scenes
from ditkit.diffusion import CFG
from ditkit.evaluation import Section
from ditkit.evaluation.geneval import TAGS
from ditkit.evaluation.geneval.metadata import TITLES
from ditkit.evaluation.sections import Cell, table
from ditkit.pretrained import TextSettings
from ditkit.pretrained.text_networks import Role
from ditkit.recipes import t2i
from ditkit.recipes.build import encoder, prepare
from ditkit.recipes.claims.scenes import SceneStudy, finite, follow
from ditkit.recipes.load import Loaded, load
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.reproduce.claim import UNDECIDED, Arm, Claim, Finding, Question, Show, Verdict
from ditkit.recipes.reproduce.comparison import PAPERS
from ditkit.recipes.reproduce.rules import PAIRED, Paired, gained, shown, together
from ditkit.recipes.text import open_text
from ditkit.training.validation import ValidationLoss

EACH, WHOLE = "each encoder dropped by itself", "the text dropped as a whole"
ALL, NO_T5, NONE = "all three", "without T5", "no text"
SUBSETS: dict[str, tuple[Role, ...]] = {
    ALL: (), NO_T5: ("t5",), "without CLIP-G": ("clip_g",), "without CLIP-L": ("clip_l",),
    "CLIP-L alone": ("clip_g", "t5"), "CLIP-G alone": ("clip_l", "t5"), "T5 alone": ("clip_l", "clip_g"),
}  # fmt: skip
LOSSES = "validation losses"
KEPT, WEAK = 0.8, 0.15
LEAST = 0.125  # times below it are left out of a loss: there a few draws would outweigh all others
GUIDANCE, BINS = 2.5, 8
RULE = (
    "Score: the GenEval-style share of images that show what was asked for, mean over six tasks, of held-out prompts, "
    "from the same noise for every subset of the encoders. Two parts, each decided "
    f"{PAIRED}. First: without T5 the model that was trained with its encoders dropped one by one keeps more than "
    f"{KEPT:.0%} of its score with all three. Second: averaged over the six subsets that lack an encoder, it keeps a "
    "larger share of its score than the control, whose text was dropped as a whole. Holds: both. Does not hold: the "
    "opposite of one of them, by the same measure. Undecided: all else, and where a model's score with all three is "
    f"below {WEAK:g} in any seed, since then it follows no prompts that it could cease to follow."
)


class TextBudget(Settings):
    """How much of everything; the same for both models."""

    steps: int = Field(2000, ge=2, description="training steps of a run")
    batch: int = Field(32, ge=1, description="images a step")
    size: int = Field(16, ge=16, multiple_of=4, description="side of the scenes in pixels, cut into 4 x 4 tokens")
    width: int = Field(64, ge=16, multiple_of=4, description="of the MMDiT")
    depth: int = Field(4, gt=0, description="blocks of the MMDiT")
    lr: float = Field(2e-3, gt=0)
    ema: float = Field(0.99, ge=0, lt=1, description="decay of the averaged weights")
    drop: float = Field(0.463, ge=0, le=1, description="probability of zeroing each encoder in training")
    per_task: int = Field(8, ge=1, description="GenEval prompts of each of six tasks")
    each: int = Field(3, ge=1, description="images of a prompt")
    sampler_steps: int = Field(20, ge=1, description="of a sample")
    chunk: int = Field(72, ge=1, description="samples that go through the network together")
    losses: int = Field(16, ge=1, description="held-out scenes of each task whose losses are taken")


SMOKE = TextBudget(steps=4, batch=8, width=32, depth=2, ema=0.5, per_task=1, each=1, sampler_steps=1, losses=1)
SMALL = TextBudget()
GPU = TextBudget(steps=8000, batch=64, size=32, width=128, ema=0.995, per_task=24, each=4, sampler_steps=25, losses=64)


class TextStudy(SceneStudy):
    """The runs of a question."""

    def __init__(self, q: Question):
        super().__init__(q)
        self.budget: TextBudget = q.budget  # type: ignore[assignment]
        b = self.budget
        training = {
            "steps": b.steps, "batch": b.batch, "lr": b.lr, "ema": b.ema, "warmup": b.steps // 20,
            "log_every": max(1, b.steps // 50), "validate_every": max(1, b.steps // 4),
            "save_every": max(1, b.steps // 4),
        }  # fmt: skip
        changes = {
            "text": TextSettings(kind="toy-sd3", width=48, length=12), "model.width": b.width, "model.depth": b.depth,
            "model.patch": b.size // 4, "model.size": (b.size, b.size), "data.size": b.size,
            "sampling.steps": b.sampler_steps, "sampling.guidance": CFG(scale=GUIDANCE),
            "name": "", "source": "ours, after SD3 section 5.3.3",
        }  # fmt: skip
        recipe = t2i.scenes().with_({**changes, **{f"training.{key}": value for key, value in training.items()}})
        self.parts = prepare(recipe, q.device)

    @cached_property
    def arms(self) -> list[Arm]:
        """Both models with every seed, seed by seed."""
        b = self.budget
        dropped = {
            EACH: {"objective.drop_each": b.drop, "objective.drop": 0.0},
            WHOLE: {"objective.drop_each": 0.0, "objective.drop": b.drop**3},
        }
        images = b.per_task * b.each * len(TAGS)
        parts = {name: 2.0 * b.sampler_steps * images for name in SUBSETS}
        parts[LOSSES] = (len(SUBSETS) + 1) * b.losses * len(TAGS) * BINS
        return [
            Arm(name, self._recipe(f"{name}, seed {seed}", {**changes, "training.seed": seed}), parts)
            for seed in self.q.seeds
            for name, changes in dropped.items()
        ]

    def _recipe(self, title: str, changes: Mapping[str, Any]) -> Recipe:
        return self.parts.recipe.with_({**changes, "title": title})

    def score(self, arm: Arm, folder: Path, part: str, show: Show) -> dict[str, Any] | None:
        """Of a subset of the encoders what `follow` says, of LOSSES what `losses` says; None: weights not finite."""
        loaded, b = load(folder).to(self.q.device), self.budget
        if not finite(loaded):
            return None
        if part == LOSSES:
            return losses(loaded, b.losses, arm.seed)
        loaded.recipe = leaving_out(loaded.recipe, SUBSETS[part])
        return follow(loaded, b.per_task, b.each, seed=arm.seed, chunk=b.chunk)

    def find(self, scores: Mapping[str, Mapping[str, Any]], folders: Mapping[str, Path]) -> Finding:
        """What is kept without an encoder, and the verdict."""
        found: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for arm in self.arms:
            found[arm.name].append(scores[arm.key])
        return judge(found)


def leaving_out(recipe: Recipe, roles: Sequence[Role]) -> Recipe:
    """The recipe with these encoders left out, as `--without` does it."""
    assert recipe.text is not None
    return recipe.with_({"text": recipe.text.with_(dict.fromkeys(roles, "none"))})


def losses(loaded: Loaded, per_task: int, seed: int) -> dict[str, dict[str, float]]:
    """Subset of the encoders -> task -> validation loss of held-out scenes; one noise and the same times for all."""
    recipe = loaded.recipe
    assert recipe.text is not None
    source = open_source(recipe.data.model_copy(update={"split": "test"}), captioned=True)
    assert isinstance(source, Scenes)
    rows: dict[str, list[int]] = {tag: [] for tag in TAGS}
    for i in range(len(source)):
        if len(rows[task := source.scene(i).task]) < per_task:
            rows[task].append(i)
        elif all(len(found) == per_task for found in rows.values()):
            break
    items = {tag: [source.read(i) for i in found] for tag, found in rows.items()}
    told: dict[str, dict[str, float]] = {}
    for name, roles in {**SUBSETS, NONE: recipe.text.roles}.items():
        text = open_text(leaving_out(recipe, roles).text, loaded.device)
        assert text is not None
        told[name] = {}
        for tag, mine in items.items():
            images, cond = torch.stack([item.image for item in mine]), text([item.caption for item in mine])
            loss = ValidationLoss(
                recipe.objective, encoder(loaded.codec), images, cond, bins=BINS, seed=seed, device=loaded.device
            )
            told[name][tag] = above_least(loss(loaded.model))
    return told


def above_least(found: Mapping[str, float]) -> float:
    """The mean of the losses at times from LEAST on, of {"loss", "loss_t0.0625", ...}."""
    by_time = {float(key.removeprefix("loss_t")): value for key, value in found.items() if key.startswith("loss_t")}
    return float(np.mean([value for t, value in by_time.items() if t > LEAST]))


Scores = Mapping[str, Any]  # of a run: part -> what `score` said


def overall(runs: Sequence[Scores], subset: str) -> np.ndarray:
    """The scores with a subset of the encoders, seed by seed; nan where a run diverged."""
    return np.array([math.nan if run[subset] is None else run[subset]["overall"] for run in runs])


def kept(runs: Sequence[Scores], subset: str) -> np.ndarray:
    """The share of the score that a subset keeps, seed by seed; nan where nothing is followed, or a run diverged."""
    full = overall(runs, ALL)
    return overall(runs, subset) / np.where(full > 0, full, np.nan)


def judge(found: Mapping[str, Sequence[Scores]]) -> Finding:
    """RULE. found: EACH, WHOLE -> the scores of its runs, seed by seed."""
    without = kept(found[EACH], NO_T5)
    spared = {name: np.mean([kept(runs, s) for s in SUBSETS if s != ALL], axis=0) for name, runs in found.items()}
    against = Paired.of(spared[WHOLE], spared[EACH])
    full = {name: overall(runs, ALL) for name, runs in found.items()}
    with np.errstate(divide="ignore"):
        parts = gained(np.log(without) - math.log(KEPT)), against.verdict()
    follows = all(bool((values >= WEAK).all()) for values in full.values())
    verdict: Verdict = together(*parts) if follows else UNDECIDED
    wins = 0.5 + 0.5 * (overall(found[EACH], NO_T5) - full[EACH])
    number = f"{in_percent(without)} of the score kept without T5 (win rate {in_percent(wins)})"
    reason = (
        f"With all three encoders the score is {shown(full[EACH])} ({shown(full[WHOLE])} of the control). Without T5 "
        f"{in_percent(without)} of it is kept: {parts[0]}. Over the six subsets that lack an encoder it keeps "
        f"{in_percent(spared[EACH])}, the control {in_percent(spared[WHOLE])}: {parts[1]}."
    )
    if not follows:
        reason += " A model follows too few prompts to say."
    ours = {
        "kept without T5": without.tolist(), "win rate without T5": wins.tolist(),
        "kept, mean over subsets": {name: values.tolist() for name, values in spared.items()},
        "score": {name: {s: overall(runs, s).tolist() for s in SUBSETS} for name, runs in found.items()},
    }  # fmt: skip
    paper = {"win rate without T5": {"aesthetics": 0.50, "prompt following": 0.46, "typography": 0.38}}
    sections = [*(subset_table(name, runs) for name, runs in found.items()), worth_table(found[EACH])]
    remarks = [
        "A win rate counts pairs of images of one prompt and one noise, without T5 and with: one right and the other "
        "wrong wins, else it is a draw, half a win. The paper's are votes of people over all sorts of prompts."
    ]
    return Finding(paper, ours, verdict, reason, sections, remarks, number=number, effect=against.ratio.tolist())


def in_percent(shares: np.ndarray) -> str:
    """Mean and standard deviation of shares, as "93 % ± 4"; a dash where one is not known."""
    if not len(shares) or not np.isfinite(shares).all():
        return "–"
    return f"{100 * shares.mean():.0f} %" + (f" ± {100 * shares.std(ddof=1):.0f}" if len(shares) > 1 else "")


def subset_table(name: str, runs: Sequence[Scores]) -> Section:
    """Scores of a model with every subset of the encoders, overall and by task, means over seeds."""
    told = [[run[s] for run in runs if run[s] is not None] for s in SUBSETS]
    rows: list[list[Cell]] = []
    for subset, mine in zip(SUBSETS, told, strict=True):
        by_task = [f"{np.mean([one['scores'][tag] for one in mine]):.2f}" if mine else None for tag in TAGS]
        rows.append([subset, shown(overall(runs, subset)), in_percent(kept(runs, subset)), *by_task])
    chance = [value for mine in told for one in mine for value in one["shuffled"].values()]
    note = f"± standard deviation over {len(runs)} seeds; the same prompts and noise in every row."
    note += f" The same images against other prompts: {np.mean(chance):.2f}." if chance else ""
    columns = ("encoders", "score", "kept", *(TITLES[tag] for tag in TAGS))
    return table(f"Trained with {name}", columns, rows, note)


def worth_table(runs: Sequence[Scores]) -> Section:
    """How much of what the whole text takes off the validation loss is kept, by task."""

    def share(subset: str, tag: str) -> np.ndarray:
        told = [run[LOSSES] for run in runs if run[LOSSES] is not None]
        gain = np.array([one[NONE][tag] - one[ALL][tag] for one in told])
        left = np.array([one[NONE][tag] - one[subset][tag] for one in told])
        return left / np.where(gain > 0, gain, np.nan)

    rows: list[list[Cell]] = [
        [subset, *(in_percent(share(subset, tag)) for tag in TAGS)] for subset in SUBSETS if subset != ALL
    ]
    note = (
        "The part of what the text takes off the validation loss (no text minus all three encoders) that is left. "
        "Held-out scenes, the same noise and times in every row, times above 1/8; ± standard deviation over seeds."
    )
    return table(f"Worth of the encoders, {EACH}", ("encoders", *(TITLES[tag] for tag in TAGS)), rows, note)


CLAIM = Claim(
    name="sd3-text-encoders",
    paper=PAPERS["SD3"],
    table="Section 5.3.3",
    says="a model whose text encoders were dropped one by one in training follows prompts nearly as well without T5",
    rule=RULE,
    data="scenes",
    budgets={"smoke": SMOKE, "small": SMALL, "gpu": GPU},
    minutes={"smoke": 0.5, "small": 8, "gpu": 60},
    open=TextStudy,
    number="win rate without T5: prompt following 46 %, aesthetics 50 %, typography 38 %",
)
CLAIMS = (CLAIM,)
