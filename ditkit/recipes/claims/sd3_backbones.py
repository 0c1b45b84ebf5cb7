"""SD3's comparison of backbones (Esser et al. 2024, section 5.2.3, Figure 4) at a small size.

DiT with text and image in one set of weights, CrossDiT, UViT and MMDiT train with the same steps on captioned scenes,
at equal numbers of parameters. The paper shows curves of validation loss, CLIP score and FID on CC12M; here validation
loss at its eight fixed times and a GenEval-style score of held-out prompts are measured. The small budget trains
backbones of 0.6 million parameters for 1,400 steps of 32 images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from ditkit.config import Settings
from ditkit.diffusion import CFG
from ditkit.evaluation.geneval import TAGS
from ditkit.models import AnyModel, CrossDiTSettings, JointDiTSettings, MMDiTSettings, UViTSettings, build_model
from ditkit.recipes import t2i
from ditkit.recipes.build import prepare
from ditkit.recipes.claims.backbone_curves import PAPER, RULE, judge, read_validations
from ditkit.recipes.claims.scenes import SceneStudy, finite, follow
from ditkit.recipes.load import load
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.reproduce.claim import Arm, Claim, Finding, Question, Show
from ditkit.recipes.reproduce.comparison import PAPERS

WITHIN = 0.05  # of MMDiT's parameters
GENEVAL, SAMPLE_STEPS, GUIDANCE = "geneval", 25, 2.5
SHARED = ("depth", "heads", "patch", "channels", "size", "text_width", "pooled_width", "text_length")


class BackboneBudget(Settings):
    """How much of everything; the same for every backbone."""

    steps: int = Field(1400, ge=4, description="training steps of a run")
    batch: int = Field(32, ge=1, description="images a step")
    width: int = Field(64, ge=16, multiple_of=8, description="of MMDiT; the others get as many parameters")
    depth: int = Field(4, gt=0, description="transformer blocks")
    lr: float = Field(2e-3, gt=0)
    ema: float = Field(0.99, ge=0, lt=1, description="decay of the averaged weights")
    checks: int = Field(5, ge=1, description="validation losses on the way, evenly spaced")
    per_task: int = Field(12, ge=1, description="GenEval prompts of each of six tasks")
    each: int = Field(4, ge=1, description="images of a prompt")
    chunk: int = Field(96, ge=1, description="of them, together through the network")

    @property
    def images(self) -> int:
        """Samples of a run."""
        return self.per_task * self.each * len(TAGS)


SMOKE = BackboneBudget(steps=4, batch=8, width=64, depth=2, ema=0.5, checks=2, per_task=2, each=1, chunk=12)
SMALL = BackboneBudget()
GPU = BackboneBudget(steps=6000, batch=64, ema=0.995, width=128, per_task=24)


def count(model: AnyModel) -> int:
    """Trainable parameters, without allocating them."""
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(model).parameters())


def backbones(mmdit: MMDiTSettings) -> dict[str, AnyModel]:
    """The paper's four, each as large as `mmdit`: the widths that come nearest. ValueError where none is within 5 %."""
    shared = {name: getattr(mmdit, name) for name in SHARED}
    patch = mmdit.patch // 2
    if patch * 2 != mmdit.patch:
        raise ValueError(f"UViT halves the resolution once before its transformer: patch {mmdit.patch} must be even")

    def uvit(width: int) -> AnyModel:  # its transformer sees as many tokens as the others do
        return UViTSettings(**{**shared, "patch": patch}, width=width, levels=(mmdit.width // 2,), level_blocks=1)

    make: dict[str, Callable[[int], AnyModel]] = {
        "DiT": lambda width: JointDiTSettings(**shared, width=width),
        "UViT": uvit,
        "CrossDiT": lambda width: CrossDiTSettings(**shared, width=width),
    }
    return {**{name: matched(name, of, count(mmdit), mmdit.heads) for name, of in make.items()}, "MMDiT": mmdit}


def matched(name: str, make: Callable[[int], AnyModel], wanted: int, heads: int) -> AnyModel:
    """make(width) with the number of parameters nearest to `wanted`; the width divides by 4 and by the heads."""
    step = math.lcm(4, heads)  # sines and cosines of rows and columns; heads
    low, high = 1, 2
    while count(make(high * step)) < wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(make(middle * step)) < wanted else (low, middle)
    best = min((make(k * step) for k in (low, high)), key=lambda model: abs(count(model) - wanted))
    if abs(count(best) / wanted - 1) > WITHIN:
        raise ValueError(f"{name}: no width gives {wanted:,} parameters within {WITHIN:.0%}; choose a larger width")
    return best


class BackboneStudy(SceneStudy):
    """The runs of a question."""

    def __init__(self, q: Question):
        super().__init__(q)
        self.budget: BackboneBudget = q.budget  # type: ignore[assignment]
        base = t2i.scenes().with_({"model.width": self.budget.width, "model.depth": self.budget.depth})
        self.parts = prepare(base, q.device)
        self.models = backbones(self.parts.recipe.model)  # type: ignore[arg-type]

    @cached_property
    def arms(self) -> list[Arm]:
        """Every backbone with every seed, seed by seed."""
        return [
            Arm(name, self._recipe(name, model, seed), {GENEVAL: 2 * SAMPLE_STEPS * self.budget.images})
            for seed in self.q.seeds
            for name, model in self.models.items()
        ]

    def _recipe(self, name: str, model: AnyModel, seed: int) -> Recipe:
        b = self.budget
        return self.parts.recipe.with_(
            {
                "model": model, "name": name, "title": f"{name}, seed {seed}",
                "source": "ours, after SD3 section 5.2.3",
                "training.steps": b.steps, "training.batch": b.batch, "training.lr": b.lr, "training.ema": b.ema,
                "training.warmup": b.steps // 20, "training.seed": seed, "training.log_every": max(1, b.steps // 50),
                "training.validate_every": max(1, b.steps // b.checks), "training.save_every": max(1, b.steps // 4),
                "sampling.steps": SAMPLE_STEPS, "sampling.guidance": CFG(scale=GUIDANCE),
            }
        )  # fmt: skip

    def score(self, arm: Arm, folder: Path, part: str, show: Show) -> dict[str, Any] | None:
        """{"overall", "interval", "scores", "shuffled", "step", "validations"}, averaged weights; None: not finite."""
        loaded, b = load(folder).to(self.q.device), self.budget
        if not finite(loaded):
            return None
        found = follow(loaded, b.per_task, b.each, seed=arm.seed, chunk=b.chunk)
        return {**found, "step": loaded.step, "validations": read_validations(folder)}

    def find(self, scores: Mapping[str, Mapping[str, Any]], folders: Mapping[str, Path]) -> Finding:
        """Curves, scores, and the verdict."""
        sizes = {name: count(model) for name, model in self.models.items()}
        found = {key: parts[GENEVAL] for key, parts in scores.items()}
        return judge(list(self.models), self.arms, sizes, found, folders)


CLAIM = Claim(
    name="sd3-backbones",
    paper=PAPERS["SD3"],
    table="Figure 4",
    says="at equal size MMDiT learns better than CrossDiT, UViT and DiT, which follow in this order",
    rule=RULE,
    data="scenes",
    number=PAPER,
    budgets={"smoke": SMOKE, "small": SMALL, "gpu": GPU},
    minutes={"smoke": 1, "small": 7, "gpu": 80},
    open=BackboneStudy,
)
CLAIMS = (CLAIM,)
