"""A training Job on random data in memory: what a cache would hand out, without one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ditkit.align import Aligner
from ditkit.data import to_float
from ditkit.models import build_model
from ditkit.pretrained import (
    PretrainedMissing,
    TeacherSettings,
    ViTSettings,
    load_teacher,
    sample_posterior,
    vit_settings,
)
from ditkit.protocols import Condition, Features, Noise
from ditkit.recipes.benches.bench import condition
from ditkit.recipes.recipe import Recipe
from ditkit.training.state import Job

FACTOR = 8  # pixels a side of a latent number, where the codec is not asked
DIFFERENT = 4  # batches that take turns
WIDTHS = {"small": 384, "vit-s": 384, "large": 1024, "vit-l": 1024, "giant": 1536, "vit-g": 1536, "vith": 1280}


class RandomBatch(NamedTuple):
    """images: uint8 pixels, or moments (b, 2c, h, w) of latents in half precision; features: one a teacher."""

    images: Tensor
    features: tuple[Features, ...] = ()


def random_job(recipe: Recipe, folder: Path, device: torch.device, seed: int = 0) -> Job:
    """The recipe's network, objective and projectors as a run has them, on data that are drawn here once.

    Latents come as moments and teachers' tokens beside them, in half precision, as a cache hands them out.
    """
    settings = recipe.training
    model = build_model(recipe.model, generator=torch.Generator().manual_seed(settings.seed)).to(device)
    widths = teacher_widths(recipe)
    aligner = None
    if recipe.align is not None:
        generator = torch.Generator().manual_seed(settings.seed + 1)
        aligner = Aligner(recipe.align, recipe.model.width, widths, recipe.model.grid, generator=generator).to(device)
    pixels = recipe.codec.kind == "pixels"
    made = [random_batch(recipe, widths, seed + i) for i in range(DIFFERENT)]

    def encode(images: Tensor, noise: Noise) -> Tensor:
        if pixels:
            return to_float(images)
        moments = images.float()
        rows, channels, *size = moments.shape
        return sample_posterior(moments, noise.normal("posterior", (rows, channels // 2, *size)), 1.0, 0.0)

    def batches(start: int) -> Iterator[RandomBatch]:
        return itertools.islice(itertools.cycle(made), start % DIFFERENT, None)

    def told(batch: RandomBatch) -> Condition:
        return condition(recipe.model, len(batch.images), torch.device("cpu"))

    return Job(
        model, recipe.objective, encode, batches, told, settings, folder, device, aligner=aligner, check_latents=False
    )


def random_batch(recipe: Recipe, widths: tuple[int, ...], seed: int) -> RandomBatch:
    """A batch of the recipe's size; pairs hold the channels of two images."""
    model, rows = recipe.model, recipe.training.batch
    generator = torch.Generator().manual_seed(seed)
    pair = 2 if recipe.data.pairs == "both" else 1
    if recipe.codec.kind == "pixels":
        shape = (rows, pair * model.channels, *model.size)
        return RandomBatch(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))
    mean = torch.randn(rows, pair * model.channels, *model.size, generator=generator)
    moments = torch.cat([mean, torch.full_like(mean, 0.1)], dim=1).half()
    grid = model.grid
    features = (torch.randn(rows, grid[0] * grid[1], width, generator=generator).half() for width in widths)
    return RandomBatch(moments, tuple(Features(tokens, tokens.mean(1), grid) for tokens in features))


def image_side(recipe: Recipe) -> tuple[int, int]:
    """(H, W) of the images whose latents the network takes: eight pixels a latent, but for pixels themselves."""
    factor = 1 if recipe.codec.kind == "pixels" else FACTOR
    return recipe.model.size[0] * factor, recipe.model.size[1] * factor


def teacher_widths(recipe: Recipe) -> tuple[int, ...]:
    """Widths of the recipe's teachers, none of them downloaded: of published ones what their names say."""
    return tuple(teacher_width(teacher, recipe) for teacher in recipe.teachers)


def teacher_width(teacher: TeacherSettings, recipe: Recipe) -> int:
    """Width of one teacher's tokens; a published base model's 768 where its name says no size."""
    if teacher.kind in ("toy", "selftaught"):
        try:
            return load_teacher(teacher).width
        except PretrainedMissing:
            return untrained(recipe).width
    found = (width for word, width in WIDTHS.items() if word in teacher.source.lower())
    return next(found, 1024 if teacher.kind in ("mae", "clip", "siglip") else 768)


def untrained(recipe: Recipe) -> ViTSettings:
    """The vision transformer that `ditkit teacher` would train on the recipe's images."""
    return vit_settings(image_side(recipe), recipe.model.channels if recipe.codec.kind == "pixels" else 3)
