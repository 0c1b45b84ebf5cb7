"""What a training run will take before it begins: memory, disk and time, each with what it assumes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ditkit.pretrained import CodecSettings
from ditkit.recipes.benches.frozen import DEPTHS
from ditkit.recipes.benches.peaks import stated_peak
from ditkit.recipes.benches.products import training_flops
from ditkit.recipes.benches.random_job import image_side, teacher_widths
from ditkit.recipes.memory import Frozen, Memory, encoding_bytes, training_memory
from ditkit.recipes.recipe import Recipe
from ditkit.training.optim import pieces

CPU_GMACS = 50  # a second and core: assumed, not measured
SHARES = {True: 0.35, False: 0.2}  # of a GPU's stated peak; with bf16 and compiled blocks, without: assumed
SD_VAE_BYTES = 4 * 83_653_863  # SD's autoencoder, float32
HALF = 2  # bytes of a number in a cache


class Rate(NamedTuple):
    """Training speed of one process: TFLOP/s, and how that is known."""

    tflops: float
    how: str


@dataclass(frozen=True)
class Estimate:
    """memory: bytes of each process. flops: of an image. seconds: of the whole run. disk: of the checkpoints kept.

    cache: bytes of what `ditkit encode` would write of these images. assumed: a line about everything not measured.
    """

    memory: Memory
    flops: float
    images_a_second: float
    seconds: float
    processes: int
    how: str
    disk: int
    cache: int | None = None
    images: int | None = None
    assumed: tuple[str, ...] = field(default=())

    @property
    def device_hours(self) -> float:
        """Hours of all devices together."""
        return self.processes * self.seconds / 3600


def estimate(
    recipe: Recipe, rate: Rate, *, processes: int = 1, images: int | None = None, from_cache: bool = False
) -> Estimate:  # fmt: skip
    """Memory, disk and time of training `recipe` on `processes` devices, each of which has this `rate`.

    images: in the data, for the size of their cache. from_cache: codec and teachers are not needed any more.
    Nothing is downloaded or loaded: frozen networks are taken to be of their published sizes. ValueError for a batch
    that does not divide over the processes.
    """
    training = recipe.training
    if training.batch % processes:
        raise ValueError(f"training.batch={training.batch} does not divide over {processes} processes")
    widths = teacher_widths(recipe)
    rows = max(stop - start for start, stop in pieces(training.batch // processes, training))
    frozen = Frozen() if from_cache else published_frozen(recipe, widths, rows)
    memory = training_memory(recipe, widths, frozen, processes)
    flops = training_flops(recipe.model, recipe.align, widths)
    online = 0.0 if from_cache else teacher_flops(recipe, widths)
    images_a_second = processes * rate.tflops * 1e12 / (flops + online)
    kept = training.keep_last + 1  # the newest is written before the oldest goes
    if training.keep_every:
        kept += training.steps // training.keep_every
    return Estimate(
        memory=memory,
        flops=flops,
        images_a_second=images_a_second,
        seconds=training.steps * training.batch / images_a_second,
        processes=processes,
        how=rate.how,
        disk=kept * memory.checkpoint,
        cache=None if images is None else images * cache_bytes(recipe, widths),
        images=images,
        assumed=tuple(assumptions(recipe, processes, from_cache)),
    )


def published_frozen(recipe: Recipe, widths: tuple[int, ...], rows: int) -> Frozen:
    """Codec and teachers at their published sizes: SD's autoencoder, vision transformers of these widths."""
    weights = SD_VAE_BYTES if has_network(recipe.codec) else 0
    weights += sum(4 * transformer_numbers(width) for width in widths)
    return Frozen(weights, encoding_bytes(recipe.codec, image_side(recipe), rows))


def has_network(codec: CodecSettings) -> bool:
    """Whether latents come from an autoencoder."""
    return codec.kind not in ("pixels", "toy")


def transformer_numbers(width: int) -> int:
    """Weights of a vision transformer's blocks: 12 width^2 each; of an unknown width it has as many as are usual."""
    return 12 * width**2 * DEPTHS.get(width, 12)


def teacher_flops(recipe: Recipe, widths: tuple[int, ...]) -> float:
    """Operations of the teachers' forward passes on one image: 2 for each of their weights and tokens."""
    tokens = recipe.model.grid[0] * recipe.model.grid[1]
    return sum(2.0 * tokens * transformer_numbers(width) for width in widths)


def cache_bytes(recipe: Recipe, widths: tuple[int, ...]) -> int:
    """Of one image in a cache of half precision: moments (mean and deviation; uint8 for pixels), tokens, embeddings."""
    model = recipe.model
    numbers = model.channels * model.size[0] * model.size[1]
    tokens = model.grid[0] * model.grid[1]
    found = 2 * HALF * numbers if has_network(recipe.codec) else numbers
    found += sum(HALF * tokens * width + 4 * width for width in widths)
    if recipe.text is not None:
        shape: Any = model
        found += HALF * shape.text_length * shape.text_width + 4 * shape.pooled_width
    return found


def assumptions(recipe: Recipe, processes: int, from_cache: bool) -> list[str]:
    """What the numbers leave out."""
    lines = []
    if recipe.training.compile:
        lines.append("memory: as without training.compile, which needs less")
    if has_network(recipe.codec) and not from_cache:
        lines.append("time: without the autoencoder, which takes longer than training from a cache (ditkit encode)")
    if processes > 1:
        lines.append(f"time: {processes} devices as fast as {processes} single ones: no time for communication")
    lines.append("time: data are never waited for; no validation, scores or checkpoints")
    return lines


# ---------------------------------------------------------------------------------------------------- rates


def measured_rate(file: Path, recipe: Recipe) -> Rate:
    """The rate in a result file of `ditkit bench train`; ValueError, one line, for any other file."""
    try:
        found: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        arm = found["results"]["arms"]["chosen"]
        rate, precision = float(arm["tflops_a_second"]), arm["settings"]["precision"]
        device, batch = found["environment"]["device"], found["settings"]["batch"]
        where = f"{found['recipe']} on {device}, {precision}, batch {batch}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f": {error.strerror}" if isinstance(error, OSError) else " is no result of `ditkit bench train`"
        raise ValueError(f"--bench: {file}{reason}") from None
    other = "" if precision == recipe.training.precision else f" (this run is {recipe.training.precision})"
    return Rate(rate, f"measured: {rate:.4g} TFLOP/s, {where}{other}")


def assumed_rate(recipe: Recipe, device: torch.device, gpu: str | None = None, share: float | None = None) -> Rate:
    """The rate of a device by its name (gpu: of a card that is not here) and an assumed share of its stated peak.

    ValueError for a card whose peak is not known.
    """
    training = recipe.training
    name = gpu or (torch.cuda.get_device_name(device) if device.type == "cuda" else "")
    if not name:
        cores = torch.get_num_threads()
        rate = 2 * CPU_GMACS * cores / 1000 * (share or 1.0)
        how = f"assumed: {CPU_GMACS} GMACs a second on each of {cores} CPU cores; measure: ditkit bench train"
        return Rate(rate, how)
    dtype = "tf32" if training.tf32 and training.precision == "fp32" else training.precision
    peak = stated_peak(name, dtype)
    if peak is None:
        raise ValueError(f"--gpu {name}: no peak is known of it; measure there (ditkit bench train) and give --bench")
    part = share or SHARES[training.precision == "bf16" and training.compile]
    how = f"assumed: {100 * part:.0f} % of {peak[0]:.4g} TFLOP/s ({peak[1]}); measure: ditkit bench train"
    return Rate(part * peak[0], how)


def cpu_hours(gmacs: float) -> tuple[float, int]:
    """(hours, cores) of so many multiply-accumulates on this machine's CPU, by the assumed rate."""
    cores = torch.get_num_threads()
    return gmacs / (CPU_GMACS * cores * 3600), cores


def fits(memory: Memory, there: float | None) -> bool | None:
    """Whether it fits with a tenth to spare; None where nobody knows what is there."""
    return None if there is None or math.isinf(there) else memory.total <= 0.9 * there
