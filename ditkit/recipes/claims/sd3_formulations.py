"""SD3's study of flow formulations (Esser et al. 2024, section 5.1, Tables 1 and 2) at a small size.

Rows of Table 1 train the same small MMDiT on captioned, labelled images. Where the paper takes CLIP score and FID on
CLIP features, class agreement and the Frechet distance in the features of a small classifier serve, which was trained
on the same images and on nothing else. Settings are ranked as in the paper: repeated non-dominated sorting in each of
six samplers x {averaged, raw} weights (and each seed, where the paper has two data sets), averaged.

The small budget trains all rows and scores averaged weights alone. The smoke budget keeps 8 rows, spread over the
paper's ranks: two of rf/lognorm, the best of every other family, plain rf, the paper's last.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from ditkit.config import Settings
from ditkit.data import DataError, DataSettings, ImageSource
from ditkit.diffusion.formulations import SAMPLERS, TABLE1, formulation, sampler
from ditkit.evaluation import (
    ClassifierSettings,
    FewSamples,
    Moments,
    Reference,
    Request,
    extract,
    make_reference,
    read_images,
    read_rows,
)
from ditkit.evaluation.generate import decode_latents, evaluating, sample_latents
from ditkit.evaluation.metrics.agreement import agreement
from ditkit.recipes import t2i
from ditkit.recipes.build import prepare, validation_source
from ditkit.recipes.claims.formulation_ranks import RULE, judge
from ditkit.recipes.load import Loaded, load
from ditkit.recipes.prompts import data_prompts
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.reproduce.claim import Arm, Claim, Finding, Question, Show
from ditkit.recipes.reproduce.comparison import PAPERS
from ditkit.recipes.reproduce.judges import kept_classifier
from ditkit.recipes.reproduce.pool import pool_of
from ditkit.training import list_steps

WORDS = (6, 77)  # of a prompt, fewest and most


class FormulationBudget(Settings):
    """How much of everything; the same for every row."""

    steps: int = Field(400, ge=2, description="training steps of a run")
    batch: int = Field(64, ge=1, description="images a step")
    width: int = Field(64, gt=0, description="of the MMDiT")
    depth: int = Field(3, gt=0, description="blocks of the MMDiT")
    heads: int = Field(4, gt=0)
    lr: float = Field(1e-3, gt=0, description="after a warm-up of a tenth of the steps")
    ema: float = Field(0.98, ge=0, lt=1, description="decay of the averaged weights")
    images: int = Field(192, ge=2, description="samples of each sampler setting; the paper has 1,000")
    chunk: int = Field(192, ge=1, description="of them, together through the network")
    classifier_steps: int = Field(500, ge=1, description="of the classifier that judges")
    rows: tuple[str, ...] = Field(tuple(row.name for row in TABLE1), min_length=3, description="formulations")
    raw: bool = Field(True, description="score the raw weights too, as the paper does, not the averaged alone")


FEW = (
    *("rf/lognorm(0.00,1.00)", "rf/lognorm(1.00,0.60)", "rf/mode(1.29)", "eps/linear"),
    *("edm(0.00,0.60)", "rf", "v/cos", "edm(-1.20,1.20)"),
)
SMOKE = FormulationBudget(
    steps=4, batch=16, width=32, depth=1, ema=0.5, images=20, chunk=20, classifier_steps=20, rows=FEW, raw=False
)
SMALL = FormulationBudget(steps=300, lr=3e-3, images=96, chunk=96, raw=False)
GPU = FormulationBudget(width=96, steps=1000, ema=0.99, images=1000, chunk=250)

PARTS: dict[str, tuple[int, float, str]] = {
    f"{steps} steps, guidance {scale:g}, {weights}": (steps, scale, weights)
    for weights in ("ema", "raw")
    for steps, scale in SAMPLERS
}


def parts_of(budget: FormulationBudget) -> dict[str, tuple[int, float, str]]:
    """The sampler settings that are scored: name -> (steps, guidance scale, weights)."""
    return {part: setting for part, setting in PARTS.items() if budget.raw or setting[2] == "ema"}


def evaluations(part: str) -> int:
    """Network evaluations of one sample; guidance doubles them."""
    steps, scale, _ = PARTS[part]
    return steps * (1 if scale == 1 else 2)


class FormulationStudy:
    """The runs of a question, and the classifier that judges them."""

    def __init__(self, q: Question):
        self.budget: FormulationBudget = q.budget  # type: ignore[assignment]
        self.q = q
        for name in self.budget.rows:
            formulation(name)
        self.parts = prepare(base(self.budget, q.images), q.device)
        self.held_out = validation_source(self.parts.recipe, self.source)
        self.prompts, self.labels = data_prompts(self.held_out, self.budget.images)
        if len(self.source.classes) < 2 or not self.labels:
            raise DataError(f"data {q.data!r}: {q.claim.name} judges by classes; use class folders or a label column")
        self.fitted = self.parts.recipe.with_({"text.length": self.words, "model.text_length": self.words})
        self._loaded: tuple[tuple[str, int, str], Loaded] | None = None

    @property
    def source(self) -> ImageSource:
        """The training images."""
        return self.parts.source

    @property
    def words(self) -> int:
        """Words of the longest prompt, within reason."""
        return min(max(WORDS[0], *(len(prompt.split()) for prompt in self.prompts)), WORDS[1])

    @property
    def data(self) -> dict[str, Any]:
        """Source, images, classes and fingerprint."""
        size = "x".join(map(str, self.source.size))
        found = {"source": self.q.origin, "size": size, "training": len(self.source), "held out": len(self.held_out)}
        return {**found, "classes": len(self.source.classes), "fingerprint": self.source.fingerprint}

    @cached_property
    def arms(self) -> list[Arm]:
        """Every row with every seed, seed by seed."""
        steps = self.budget.steps
        each = {part: self.budget.images * evaluations(part) for part in parts_of(self.budget)}
        changes = {
            "training.steps": steps, "training.batch": self.budget.batch, "training.lr": self.budget.lr,
            "training.ema": self.budget.ema, "training.warmup": steps // 10, "training.save_every": max(1, steps // 2),
            "training.validate_every": max(1, steps // 2), "training.log_every": max(1, steps // 20),
            "training.keep_last": 3,
        }  # fmt: skip
        return [
            Arm(
                name,
                self.fitted.with_(
                    {**changes, "training.seed": seed, "name": name, "title": f"{name}, seed {seed}",
                     "objective": formulation(name).model_copy(update={"drop": 0.1})}
                ),
                each,
            )
            for seed in self.q.seeds
            for name in self.budget.rows
        ]  # fmt: skip

    @property
    def shelf(self) -> str:
        """Its own: other budgets and images have other runs."""
        return f"{self.q.shelf}-{self.source.fingerprint[:8]}"

    def begin(self, show: Show) -> None:
        """Train the classifier on the training images, and look at them in its features."""
        training, steps = read_images(self.source), self.budget.classifier_steps
        pool = pool_of(self.q, self.shelf)
        classes = self.source.classes
        self.classifier = kept_classifier(pool, training, classes, self.held_out, steps, self.q.device, show)
        self.reference: Reference = make_reference(self.classifier, training[0])

    def score(self, arm: Arm, folder: Path, part: str, show: Show) -> dict[str, Any]:
        """{"agreement", "frechet", "step"} of one sampler setting; the scores are None where an image is not finite."""
        steps, scale, weights = PARTS[part]
        chosen = best_step(folder)
        loaded = self.load(folder, chosen, weights)
        n, known = self.budget.images, len(self.prompts)
        request = Request(
            n=n, prompts=tuple(self.prompts[i % known] for i in range(n)), mode="prompts", seed=arm.seed,
            labels=tuple(self.labels[i % known] for i in range(n)), chunk=min(self.budget.chunk, n), decode=64,
        )  # fmt: skip
        how, parts = sampler(loaded.recipe.objective, steps, scale), []  # type: ignore[arg-type]
        with evaluating(loaded.model):
            for chunk in range(request.chunks):
                latents, _ = sample_latents(loaded, how, request, chunk, self.q.device)
                if not torch.isfinite(latents).all():
                    return {"agreement": None, "frechet": None, "step": chosen}
                parts.append(decode_latents(loaded, request, chunk, latents))
        images = torch.cat(parts)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FewSamples)  # the page says it once
            distance = self.reference.frechet(Moments.of(extract(self.classifier, images)))
        seen = agreement(self.classifier.probabilities(images), torch.tensor(request.labels))
        return {"agreement": seen, "frechet": distance, "step": chosen}

    def load(self, folder: Path, step: int, weights: str) -> Loaded:
        """A checkpoint, with the codec and the text encoder that are here already."""
        wanted = (str(folder), step, weights)
        if self._loaded is None or self._loaded[0] != wanted:
            loaded = load(folder, weights, step=step).to(self.q.device)
            loaded.__dict__ |= {"codec": self.parts.codec}
            self._loaded = (wanted, loaded)
        return self._loaded[1]

    def find(self, scores: Mapping[str, Mapping[str, Any]], folders: Mapping[str, Path]) -> Finding:
        """Ranks beside the paper's, and the verdict."""
        found = judge(self.budget.rows, self.arms, parts_of(self.budget), scores)
        width = 2 * ClassifierSettings().width
        few = (
            f"{self.budget.images} images are no more than the {width} features: Fréchet distances are biased upwards."
        )
        return replace(found, remarks=(*found.remarks, few)) if self.budget.images <= width else found


def base(budget: FormulationBudget, images: DataSettings) -> Recipe:
    """The recipe that all rows share."""
    captioned = images.model_copy(update={"caption": "a photo of a {class}"})
    return t2i.digits().with_(
        {
            "source": "ours, after SD3 section 5.1", "data": captioned, "model.width": budget.width,
            "model.depth": budget.depth, "model.heads": budget.heads, "training.batch": budget.batch,
        }
    )  # fmt: skip


def best_step(folder: Path) -> int:
    """The checkpoint with the lowest validation loss of the averaged weights (SD3 section 5.1); the last if none is."""
    steps = list_steps(folder)
    loss = {
        row["step"]: row["validation_loss"] for row in read_rows(folder / "metrics.jsonl") if "validation_loss" in row
    }
    known = [step for step in steps if math.isfinite(loss.get(step) or math.nan)]
    return min(known, key=lambda step: loss[step], default=steps[-1])


CLAIM = Claim(
    name="sd3-formulations",
    paper=PAPERS["SD3"],
    table="Table 1",
    says="rectified flow with logit-normal(0, 1) times beats uniform times and the other formulations",
    rule=RULE,
    data="digits",
    budgets={"smoke": SMOKE, "small": SMALL, "gpu": GPU},
    minutes={"smoke": 2, "small": 10, "gpu": 120},
    open=FormulationStudy,
    number="average rank of logit-normal(0, 1) 1.54, uniform 5.67 (61 formulations)",
)
CLAIMS = (CLAIM,)
