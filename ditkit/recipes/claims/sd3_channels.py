"""SD3's channels of the codec (Esser et al. 2024, section 5.2.1, Table 3, Figure 10), with codecs of our own.

Codecs of the same images with more and more latent channels, one of each a seed, and in the latents of each a small
and a medium SiT. The most channels are as many as the grey or colour values of the pixels in one latent cell, 16 at
most; then a half and a quarter of them (the paper: 4, 8 and 16). Samples and reconstructions are judged in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ditkit.evaluation import Panel, read_images
from ditkit.evaluation.metrics import psnr
from ditkit.evaluation.sections import Cell, curves, table
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.reconstruct import BEST, Reconstruction, remade
from ditkit.recipes.reproduce.claim import Arm, Claim, Finding
from ditkit.recipes.reproduce.comparison import PAPERS, Comparison, Table, Trial, claim
from ditkit.recipes.reproduce.measures import Measure, Quality, distance
from ditkit.recipes.reproduce.rules import PAIRED, Paired, percent, shown, together
from ditkit.recipes.reproduce.shown import scores, series
from ditkit.recipes.reproduce.testbed import Testbed
from ditkit.training.codec_settings import CodecTraining

MOST = 16  # channels: the paper's
SIZES = ("small", "medium")
TRAINED = 0.3  # steps of a codec, of the budget's: there are nine of them
AT_ONCE = 32  # images that go through a codec together


@dataclass(frozen=True)
class Restored:
    """The codec of a run on held-out images: distances to the training images, as Quality's, and PSNR in dB.

    step: a checkpoint of the run; which one, makes no difference to its codec.
    """

    step: int

    @property
    def name(self) -> str:
        """The codec is the run's own, and all held-out images are taken."""
        return "reconstruction"

    def cost(self, bed: Testbed) -> float:
        """A codec takes about as long as a few evaluations of the model."""
        return 4.0 * len(bed.held_out)

    def __call__(self, bed: Testbed, folder: Path, seed: int) -> dict[str, float]:
        """The mean of the posterior is decoded, as for rFID."""
        codec = bed.load(folder, self.step).codec
        images, labels = read_images(bed.held_out)
        parts = images.expand(-1, 3, -1, -1).split(AT_ONCE)
        asked = Reconstruction()
        again = bed.as_data(torch.cat([remade(codec, part, asked, [*range(len(part))], bed.device) for part in parts]))
        found = psnr(images, again).clamp(max=BEST)
        return {**bed.judge(again, labels), "psnr": float(found.mean())}


def channels_of(bed: Testbed) -> list[int]:
    """A quarter, a half, and all of the values that the pixels of a latent cell hold, MOST at most."""
    factor = CodecTraining().fitted(bed.source.size).factor or 1
    most = min(MOST, factor**2 * bed.source.channels)
    return sorted({max(1, most // 4), max(1, most // 2), most})


def name_of(size: str, channels: int) -> str:
    """A trial: "small, 4 channels"."""
    return f"{size}, {channels} channel{'s' * (channels > 1)}"


def in_codec(bed: Testbed, recipe: Recipe, channels: int, seed: int) -> Recipe:
    """The recipe in the latents of the seed's own codec of so many channels."""
    return bed.in_latents(recipe, channels, steps=max(1, round(TRAINED * bed.budget.codec_steps)), seed=seed)


def measured(bed: Testbed) -> list[Trial]:
    """Both sizes in the latents of every codec; the codecs are scored with the first size."""
    step, short = bed.budget.steps, {"training.steps": bed.budget.steps}
    found = []
    for size in SIZES:
        for channels in channels_of(bed):
            asked: list[Measure] = [Quality(step)] if size != SIZES[0] else [Quality(step), Restored(step)]
            recipe = in_codec(bed, bed.sit(size, short), channels, bed.q.seeds[0])
            found.append(Trial(name_of(size, channels), recipe, asked))
    return found


class OwnCodecs(Comparison):
    """A comparison whose every seed has its own codecs."""

    def _arm(self, trial: Trial, seed: int) -> Arm:
        arm = super()._arm(trial, seed)
        return replace(arm, recipe=in_codec(self.bed, arm.recipe, trial.recipe.model.channels, seed))


def judge(found: Table) -> Finding:
    """Reconstructions by channels, and what more channels do to samples of a small and of a larger model."""
    counts, step = channels_of(found.bed), found.bed.budget.steps
    rows = {c: found.of(name_of(SIZES[0], c), Restored(step)) for c in counts}
    restored = {c: np.array([distance(row) for row in at]) for c, at in rows.items()}
    decibels = {c: found.values(name_of(SIZES[0], c), Restored(step), "psnr") for c in counts}
    better = [Paired.of(restored[b], restored[a]) for a, b in pairwise(counts)]
    made = {size: [found.distance(name_of(size, c), step) for c in counts] for size in SIZES}
    ratio = {size: Paired.of(at[-1], at[0]) for size, at in made.items()}
    larger = Paired.of(ratio[SIZES[1]].ratio, ratio[SIZES[0]].ratio)
    codecs = together(*(pair.verdict() for pair in better))
    few, most = counts[0], counts[-1]
    reason = (
        f"Reconstructions with {', '.join(map(str, counts))} channels: distance "
        f"{', '.join(shown(restored[c]) for c in counts)}, PSNR {', '.join(shown(decibels[c]) for c in counts)} dB: "
        f"{codecs}. {most} channels instead of {few} change the distance of the {SIZES[0]} model's samples by "
        f"{percent(ratio[SIZES[0]].ratio)} and of the {SIZES[1]} model's by {percent(ratio[SIZES[1]].ratio)}: "
        f"{larger.verdict()}."
    )
    lines: list[list[Cell]] = [[c, shown(restored[c]), shown(decibels[c])] for c in counts]
    panel = Panel("Samples", [series(s, counts, at) for s, at in made.items()], "latent channels", "distance", True)
    ours: dict[str, Any] = {
        "channels": counts,
        "reconstruction": {"distance": [restored[c].tolist() for c in counts],
                           "psnr": [decibels[c].tolist() for c in counts]},
        "samples": {size: [row.tolist() for row in at] for size, at in made.items()},
    }  # fmt: skip
    paper = {
        "channels": [4, 8, 16], "FID": [2.41, 1.56, 1.06], "perceptual similarity": [0.85, 0.68, 0.45],
        "SSIM": [0.75, 0.79, 0.86], "PSNR": [25.12, 26.40, 28.62], "figure 10": "curves only",
    }  # fmt: skip
    note = f"± standard deviation over {len(found.seeds)} seeds, each with its own codecs."
    told = (
        f"PSNR {', '.join(shown(decibels[c]) for c in counts)} dB with {', '.join(map(str, counts))} channels; samples "
        f"{percent(ratio[SIZES[0]].ratio)} ({SIZES[0]}), {percent(ratio[SIZES[1]].ratio)} ({SIZES[1]})"
    )
    return Finding(
        paper, ours, together(codecs, larger.verdict()), reason,
        [table("Reconstructions", ("channels", "distance", "PSNR, dB"), lines, note),
         curves("Samples by channels", [panel], "Geometric mean of the Fréchet distances in both spaces."),
         scores(found, step)],
        number=told, effect=larger.ratio.tolist(),
    )  # fmt: skip


_SHARED = claim(
    "sd3-channels",
    (PAPERS["SD3"], "Table 3, Figure 10"),
    "more latent channels reconstruct better; samples gain from them where the model is large enough",
    "Holds: with every doubling of the channels the distance of reconstructions is smaller, and the ratio of the "
    "distance of samples with the most channels to that with the fewest is smaller for the medium model than for the "
    f"small one; each {PAIRED}. Does not hold: one of these is the other way round by that measure. Undecided: else. "
    "The distance is the geometric mean of the Fréchet distances in both spaces.",
    trials=measured,
    judge=judge,
    number="4, 8, 16 channels: FID of reconstructions 2.41, 1.56, 1.06, PSNR 25.12, 26.40, 28.62; samples: curves only",
    minutes=8,
)
CHANNELS: Claim = replace(_SHARED, open=lambda q: OwnCodecs(q, measured, judge))
CLAIMS = (CHANNELS,)
