"""The images of a question, and what is made of them once for all claims: recipes, teachers, codecs, and the judges.

Quality is the Frechet distance to the training images in two feature spaces that no model here was trained against:
that of a small classifier (it shares neither labels' loss nor weights with the self-supervised teacher of REPA), and
that of a convolutional network with random weights (nobody trained it). Class agreement is the share of samples that
the classifier takes for what they were asked to be.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from ditkit.align import AlignSettings
from ditkit.config import Settings, fingerprint
from ditkit.data import DataError, ImageSource, open_source
from ditkit.diffusion import SamplerSettings
from ditkit.evaluation import (
    FewSamples,
    Moments,
    extract,
    generate,
    make_reference,
    make_request,
    read_images,
    read_rows,
)
from ditkit.evaluation.metrics.agreement import agreement
from ditkit.evaluation.random_features import RandomFeatures
from ditkit.pretrained import CodecSettings, TeacherSettings
from ditkit.protocols import Extractor
from ditkit.recipes import digits, own_codec
from ditkit.recipes.build import prepare, validation_source
from ditkit.recipes.load import Loaded, load
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.reproduce.claim import JUDGES, Question, Show
from ditkit.recipes.reproduce.judges import kept_classifier
from ditkit.recipes.reproduce.pool import Pool, pool_of
from ditkit.recipes.teach import teach
from ditkit.training.codec_settings import CodecTraining
from ditkit.training.teacher import TeacherTraining

Shape = tuple[int, int, int]  # width, depth, heads
SPACES = ("classifier", "random")


class LedgerBudget(Settings):
    """How much of everything; one budget for all claims on images with classes, so that they can share runs."""

    steps: int = Field(400, ge=4, description="training steps of most runs")
    long: int = Field(800, ge=4, description="of the baselines, whose curves are read")
    every: int = Field(100, ge=1, description="steps between checkpoints, all of which stay")
    batch: int = Field(64, ge=1, description="images a step")
    lr: float = Field(4e-3, gt=0, description="constant")
    ema: float = Field(0.98, ge=0, lt=1, description="decay of the averaged weights, which are sampled")
    small: Shape = Field((32, 3, 2), description="width, depth, heads of the small model")
    medium: Shape = Field((64, 4, 4), description="of the medium one, which most claims train")
    large: Shape = Field((96, 6, 4), description="of the large one")
    patch: int = Field(2, ge=1, description="side of a token in pixels or latents")
    latents: bool = Field(False, description="train in the latents of our own codec, not in pixels")
    codec_channels: int = Field(4, ge=1, description="of the latents")
    codec_steps: int = Field(1000, ge=1, description="training steps of a codec")
    teacher_steps: int = Field(600, ge=1, description="training steps of the teacher")
    classifier_steps: int = Field(500, ge=1, description="of the classifier that judges")
    images: int = Field(400, ge=2, description="samples of a score")
    sampler_steps: int = Field(16, ge=1, description="Euler steps of a sample; no guidance")
    chunk: int = Field(100, ge=1, description="samples that go through the network together")
    precision: str = Field("fp32", description="of the trainings: fp32, bf16")

    @property
    def checkpoints(self) -> list[int]:
        """Steps of the checkpoints of a run of `steps`."""
        return sorted({*range(self.every, self.steps + 1, self.every), self.steps})


SMOKE = LedgerBudget(
    steps=4, long=8, every=2, batch=8, ema=0.5, small=(16, 2, 2), medium=(32, 3, 2), large=(32, 4, 2), codec_steps=4,
    teacher_steps=4, classifier_steps=4, images=12, sampler_steps=2, chunk=12,
)  # fmt: skip
SMALL = LedgerBudget()
GPU = LedgerBudget(
    steps=40_000, long=80_000, every=10_000, batch=256, lr=2e-4, ema=0.9995, small=(384, 12, 6), medium=(768, 12, 12),
    large=(1024, 24, 16), codec_steps=20_000, teacher_steps=20_000, classifier_steps=5000, images=10_000,
    sampler_steps=50, chunk=500, precision="bf16",
)  # fmt: skip
BUDGETS = {"smoke": SMOKE, "small": SMALL, "gpu": GPU}


class Testbed:
    """Images under a budget. Recipes name teachers and codecs that `begin` makes; then samples can be judged.

    size: (height, width) in pixels, where it is to be other than that of the images.
    """

    def __init__(self, q: Question, size: tuple[int, int] | None = None):
        self.q, self.device = q, q.device
        self.budget: LedgerBudget = q.budget  # type: ignore[assignment]
        data = q.images.model_copy(update={"size": size}) if size else q.images
        self.parts = prepare(digits.sit().with_({"data": data, "model.patch": self.budget.patch}), q.device)
        self.source: ImageSource = self.parts.source
        if len(self.source.classes) < 2:
            raise DataError(f"data {q.data!r}: {q.claim.name} judges by classes; use class folders or a label column")
        self.wanted: dict[str, TeacherTraining | CodecTraining] = {}

    @cached_property
    def shelf(self) -> str:
        """Part of the pool: all claims with these images and judges have it in common.

        Runs, teachers and codecs name what else of the budget they depend on.
        """
        judged = {"images": self.budget.images, "classifier_steps": self.budget.classifier_steps}
        return f"images-{self.source.fingerprint[:8]}-{fingerprint(LedgerBudget(**judged))[:8]}"

    @property
    def pool(self) -> Pool:
        """Where its runs, teachers, codecs and the classifier that judges are."""
        return pool_of(self.q, self.shelf)

    @property
    def data(self) -> dict[str, Any]:
        """Source, size, images, classes and fingerprint of the images; no path."""
        facts = {"source": self.q.origin, "size": "x".join(map(str, self.source.size)), "training": len(self.source)}
        return {**facts, "classes": len(self.source.classes), "fingerprint": self.source.fingerprint}

    def sit(self, size: str = "medium", changes: Mapping[str, Any] | None = None) -> Recipe:
        """SiT of a size ("small", "medium", "large") under the budget; changes: dotted keys of the recipe."""
        b = self.budget
        shape = dict(zip(("model.width", "model.depth", "model.heads"), getattr(b, size), strict=True))
        training = {
            "steps": b.steps, "batch": b.batch, "lr": b.lr, "ema": b.ema, "save_every": b.every,
            "keep_every": b.every, "validate_every": b.every, "log_every": max(1, b.every // 10),
            "precision": b.precision,
        }  # fmt: skip
        fixed = {"name": "", "source": "ours: the ledger", "sampling.steps": b.sampler_steps}
        recipe = self.parts.recipe.with_({**fixed, **shape, **{f"training.{k}": v for k, v in training.items()}})
        if b.latents:
            recipe = self.in_latents(recipe, b.codec_channels)
        return recipe.with_(changes or {})

    def in_latents(
        self, recipe: Recipe, channels: int, patch: int = 1, *, steps: int | None = None, seed: int = 0
    ) -> Recipe:
        """The recipe in the latents of a codec of so many channels, which `begin` trains; patch: in latent cells.

        steps, seed: of the codec's training; none: the budget's.
        """
        training = CodecTraining(channels=channels, steps=steps or self.budget.codec_steps, seed=seed)
        training = training.fitted(self.source.size)
        name = f"codec-{channels}-{training.steps}" + (f"-seed{seed}" if seed else "")
        place = self._want(name, training)
        side = training.factor or 1
        return recipe.with_(
            {
                "codec": CodecSettings(kind="kl", source=str(place)), "model.channels": channels, "model.patch": patch,
                "model.size": tuple(s // side for s in self.source.size),
            }
        )  # fmt: skip

    def aligned(self, recipe: Recipe, teacher_steps: int | None = None, **align: Any) -> Recipe:
        """The recipe with REPA: at 2/5 of the depth, lambda 0.5, towards our own teacher of so many training steps.

        align: fields of AlignSettings that are to be other.
        """
        steps = self.budget.teacher_steps if teacher_steps is None else teacher_steps
        place = self._want(f"teacher-{steps}", TeacherTraining(steps=steps, warmup=min(20, steps // 2)))
        width = max(64, 2 * recipe.model.width)
        settings = {"depth": max(1, round(0.4 * recipe.model.depth)), "weight": 0.5, "projector_width": width, **align}
        teacher = TeacherSettings(kind="selftaught", source=str(place))
        return recipe.with_({"align": AlignSettings(**settings), "teachers": (teacher,)})

    def _want(self, name: str, training: TeacherTraining | CodecTraining) -> Path:
        self.wanted[name] = training
        return self.pool.made(name)

    def begin(self, show: Show) -> None:
        """Make the teachers and codecs that recipes have asked for, and train the classifier that judges."""
        for name, training in self.wanted.items():
            with self.pool.hold(name, wait=True):
                self._make(name, training, show)
        images, labels = read_images(self.source)
        self.classifier = kept_classifier(
            self.pool, (images, labels), self.source.classes, self.held_out, self.budget.classifier_steps, self.device,
            show,
        )  # fmt: skip
        judges: tuple[Extractor, ...] = (self.classifier, RandomFeatures(images.shape[1]))
        self.spaces = dict(zip(SPACES, judges, strict=True))
        self.references = {name: make_reference(space, images) for name, space in self.spaces.items()}

    def _make(self, name: str, training: TeacherTraining | CodecTraining, show: Show) -> None:
        folder = self.pool.made(name)
        if isinstance(training, CodecTraining):
            source = open_source(self.parts.recipe.data.model_copy(update={"channels": 3, "size": self.source.size}))
            own_codec.make_codec(
                source, training, folder, device=self.device, bar=lambda *_: None, say=lambda _: None,
                progress=lambda step, _: show(JUDGES, step, training.steps, name),
            )  # fmt: skip
        elif not folder.exists():
            teach(
                self.source, training, folder, device=self.device,
                progress=lambda step, _: show(JUDGES, step, training.steps, name),
            )  # fmt: skip

    @cached_property
    def held_out(self) -> ImageSource:
        """Images that no model has seen."""
        return validation_source(self.parts.recipe, self.source)

    def load(self, folder: Path, step: int, weights: str = "ema") -> Loaded:
        """A checkpoint of a run, on the device."""
        return load(folder, weights, step=step).to(self.device)

    def sample(
        self, loaded: Loaded, *, sampler: SamplerSettings | None = None, n: int | None = None, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """(uint8 images, labels): the budget's number, balanced over the classes, each drawn from (seed, index)."""
        n = n or self.budget.images
        request = make_request(
            n, loaded.recipe.model.num_classes, "balanced", seed=seed, chunk=min(n, self.budget.chunk)
        )
        made = generate(loaded, sampler or loaded.recipe.sampling, request, device=self.device)
        assert isinstance(made.images, Tensor) and made.labels is not None
        return self.as_data(made.images), made.labels

    def as_data(self, images: Tensor) -> Tensor:
        """Samples of a codec in colours, as grey as the data are."""
        grey = self.source.channels == 1 and images.shape[1] == 3
        return images.float().mean(1, keepdim=True).round().to(torch.uint8) if grey else images

    def judge(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Frechet distance in either space, and class agreement."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FewSamples)  # the page says it once
            found = {
                name: self.references[name].frechet(Moments.of(extract(space, images)))
                for name, space in self.spaces.items()
            }
        return {**found, "agreement": agreement(self.classifier.probabilities(images), labels)}


def validation_loss(folder: Path, step: int) -> float | None:
    """The averaged weights' validation loss at a step, as the run wrote it down."""
    for row in read_rows(folder / "metrics.jsonl"):
        if row.get("step") == step and "validation_loss" in row:
            return row["validation_loss"]
    return None
