"""How fast the frozen networks are: codec and teachers that fill a cache, extractor and metrics that score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from ditkit.align import compute_targets
from ditkit.data import to_float
from ditkit.evaluation.metrics import frechet_distance, kernel_distance, precision_recall
from ditkit.models import token_side
from ditkit.protocols import ViewingExtractor
from ditkit.recipes.benches.bench import Bench, Progress, precision, silent, take_turns
from ditkit.recipes.benches.frozen import frozen_codec, frozen_extractor, frozen_teacher
from ditkit.recipes.benches.random_job import image_side
from ditkit.recipes.stopwatch import seconds_of, spread

NEIGHBOURS = 3  # of precision and recall
SUBSETS, SUBSET = 100, 1000  # of the kernel distance


def encoding(bench: Bench, progress: Progress | None = None) -> dict:
    """Codec and teachers on random images of the size that the recipe's latents need: images a second of each."""
    recipe, settings, device = bench.recipe, bench.settings, bench.device
    model, told = recipe.model, progress or silent
    told("preparing networks", 0, 1)
    codec = frozen_codec(recipe.codec, model.channels, device)
    teachers = [frozen_teacher(teacher, recipe, device) for teacher in recipe.teachers]
    told("preparing networks", 1, 1)
    factor = codec.network.factor
    channels = model.channels if recipe.codec.kind == "pixels" else 3  # autoencoders see colours
    side = tuple(length * factor for length in model.size)
    images = random_images(settings.seed, (bench.batch, channels, *side)).to(device)
    grid = (side[0] // (token_side(model) * factor), side[1] // (token_side(model) * factor))
    policy = recipe.align.grid if recipe.align is not None else "resize_image"
    work: dict[str, Callable[[], object]] = {
        "codec": lambda: codec.network.encode(to_float(images)),
        **{
            f"teacher {i}": partial(compute_targets, [teacher.network], images, grid, policy)
            for i, teacher in enumerate(teachers, 1)
        },
    }
    seconds = timed_calls(bench, work, "encoding", told)
    rates = {name: bench.batch / found["median"] for name, found in seconds.items()}
    named = {"codec": codec.what, **{f"teacher {i}": teacher.what for i, teacher in enumerate(teachers, 1)}}
    return {
        "image": [channels, *side],
        "grid": list(grid),
        "parts": {
            name: {"what": named[name], "seconds_a_batch": seconds[name], "images_a_second": rates[name]}
            for name in work
        },
        "images_a_second": 1 / sum(1 / rate for rate in rates.values()),
    }


def evaluating(bench: Bench, progress: Progress | None = None) -> dict:
    """The extractor on random images of the recipe's size, and metrics on random features: seconds of each."""
    recipe, settings, device = bench.recipe, bench.settings, bench.device
    told = progress or silent
    told("preparing networks", 0, 1)
    extractor = frozen_extractor(settings.extractor, device)
    told("preparing networks", 1, 1)
    side = image_side(recipe)
    images = random_images(settings.seed, (bench.batch, 3, *side))
    network = extractor.network
    look = network.views if isinstance(network, ViewingExtractor) else network
    seen = timed_calls(bench, {"extractor": lambda: look(images)}, "features", told)["extractor"]
    real, fake = (random_features(settings.seed + i, settings.samples, settings.width) for i in range(2))
    pieces: dict[str, Callable[[], object]] = {
        "Frechet distance": lambda: frechet_distance(real.mean(0), real.T.cov(), fake.mean(0), fake.T.cov()),
        "kernel distance": lambda: kernel_distance(real, fake, subsets=SUBSETS, subset_size=min(SUBSET, len(real))),
        "precision and recall": lambda: precision_recall(real, fake, NEIGHBOURS),
    }
    metrics = {}
    for i, (name, work) in enumerate(pieces.items()):
        told("metrics", i, len(pieces))
        metrics[name] = seconds_of(work, torch.device("cpu"))[0]
    told("metrics", len(pieces), len(pieces))
    return {
        "extractor": extractor.what,
        "image": [3, *side],
        "seconds_a_batch": seen,
        "images_a_second": bench.batch / seen["median"],
        "features": [settings.samples, settings.width],
        "seconds_of_metrics": metrics,
    }


def timed_calls(
    bench: Bench, work: Mapping[str, Callable[[], object]], stage: str, told: Progress
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Seconds of each piece of work, all taking turns after `warmup` calls; under the bench's precision."""
    settings, device = bench.settings, bench.device

    def once(call: Callable[[], object], _: Callable[[int, int], None]) -> float:
        with torch.no_grad(), precision(settings, device):
            return seconds_of(call, device)[0]

    for call in list(work.values()) * settings.warmup:
        once(call, lambda *_: None)
    runs = take_turns(
        settings.with_({"steps": 1}), {name: partial(once, call) for name, call in work.items()}, told, stage
    )
    return {name: found for name, seconds in runs.items() if (found := spread(seconds)) is not None}


def random_images(seed: int, shape: tuple[int, ...]) -> Tensor:
    """uint8 noise."""
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def random_features(seed: int, rows: int, width: int) -> Tensor:
    """Normal numbers (rows, width), float64, of a full covariance where there are rows enough."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64) / width**0.5
    return torch.randn(rows, width, generator=generator, dtype=torch.float64) @ mix
