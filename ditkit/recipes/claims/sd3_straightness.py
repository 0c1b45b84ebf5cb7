"""Larger models sample along straighter paths, and lose less with few steps (SD3, Table 6)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ditkit.analysis.straightness import Flow, Straightness, at_once, step_errors, straightness, travel
from ditkit.diffusion import philox_normal
from ditkit.diffusion.noise import stream_id
from ditkit.evaluation import Panel, Section
from ditkit.evaluation.sections import Cell, curves, table
from ditkit.models import Condition
from ditkit.recipes.claims.baselines import sit
from ditkit.recipes.reproduce.claim import Finding
from ditkit.recipes.reproduce.comparison import PAPERS, Table, Trial, claim
from ditkit.recipes.reproduce.measures import Measure, Quality
from ditkit.recipes.reproduce.rules import PAIRED, Paired, gained, percent, shown, together
from ditkit.recipes.reproduce.shown import series
from ditkit.recipes.reproduce.testbed import Testbed

SIZES = ("small", "medium", "large")
COUNTS, MANY = (5, 10, 20), 50  # the paper's numbers of steps, and those that they are compared with
PATHS, FINE = 64, 64
PAPER = {
    "lost at 5, 10, 20 steps, %": {"depth 15": [4.30, 0.86, 0.21], "30": [3.59, 0.70, 0.24], "38": [2.71, 0.14, 0.08]},
    "path length": {"depth 15": 191.13, "30": 187.96, "38": 185.96},
}


@dataclass(frozen=True)
class Straight:
    """Sampling paths of a checkpoint's averaged weights, from the same noise under the same labels in every run.

    The score, means over PATHS paths of FINE steps of Heun's method: "length", of the path over the straight distance;
    "travelled", the sum of |v| dt, as the paper has it; "straightness", Liu et al.'s S over the squared chord; "error",
    by number of Euler steps: relative L2 distance from where the fine path ends.
    """

    step: int

    @property
    def name(self) -> str:
        """straight@STEP, the paths and their steps."""
        return f"straight@{self.step}, {PATHS} paths of {FINE} steps, {','.join(map(str, COUNTS))}"

    def cost(self, bed: Testbed) -> float:
        """Heun's method evaluates twice a step."""
        return PATHS * (2 * FINE + sum(COUNTS))

    @torch.no_grad()
    def __call__(self, bed: Testbed, folder: Path, seed: int) -> dict[str, float | list[float]]:
        """Noise of the run's seed, labels in turn; float64 outside the network."""
        loaded = bed.load(folder, self.step)
        shape = (loaded.recipe.model.channels, *loaded.recipe.model.size)
        noise = torch.stack([philox_normal(seed, (stream_id("straightness"), i), shape) for i in range(PATHS)])
        noise = noise.double().to(bed.device)
        labels = (torch.arange(PATHS) % loaded.recipe.model.num_classes).to(bed.device)
        flow = Flow(loaded.model, Condition(label=labels), loaded.path, loaded.prediction)  # type: ignore[arg-type]
        paths, errors = [], []
        size = at_once(2 * noise[0].numel(), FINE, bed.budget.chunk)
        for start in range(0, PATHS, size):
            rows = slice(start, min(start + size, PATHS))
            travelled, latents = travel(flow.of(rows), noise[rows], FINE)
            paths.append(straightness(travelled))
            errors.append(step_errors(flow.of(rows), noise[rows], latents, "euler", COUNTS).errors)
        found = Straightness.join(paths)
        span = float(found.times[0] - found.times[-1])
        return {
            "length": float(found.length.mean()),
            "travelled": float((found.length * found.chord.sqrt() * span).mean()),
            "straightness": found.s.value,
            "error": torch.cat(errors).mean(0).tolist(),
        }


def measured(bed: Testbed) -> list[Trial]:
    """SiT in three sizes after the usual number of steps, sampled in few steps and in many."""
    step = bed.budget.steps
    measures: list[Measure] = [Straight(step), *(Quality(step, n) for n in (*COUNTS, MANY))]
    return [Trial(size, sit(bed, size), measures) for size in SIZES]


def lost(found: Table, size: str, steps: int) -> np.ndarray:
    """Share of the class agreement with MANY steps that so few lose, seed by seed."""
    few, many = (found.values(size, Quality(found.bed.budget.steps, n), "agreement") for n in (steps, MANY))
    return 1 - few / np.maximum(many, 1e-6)


def change(found: Table, size: str, steps: int) -> np.ndarray:
    """The Fréchet distance with so few steps over that with MANY, seed by seed."""
    few, many = (found.distance(size, found.bed.budget.steps, n) for n in (steps, MANY))
    return Paired.of(few, many).ratio


def ends_off(found: Table, size: str) -> np.ndarray:
    """(seeds, COUNTS): how far few steps end off the fine path's end; nan where a run diverged."""
    rows = found.of(size, Straight(found.bed.budget.steps))
    return np.array([(row or {}).get("error", [np.nan] * len(COUNTS)) for row in rows], float)


def pages(found: Table) -> list[Section]:
    """By size, and by number of steps."""
    step = found.bed.budget.steps
    straight = Straight(step)
    blocks: list[float] = [trial.recipe.model.depth for trial in found.trials]
    errors = {size: ends_off(found, size) for size in SIZES}

    def of_sizes(key: str) -> list:
        return [series(key, range(1, len(SIZES) + 1), [found.values(size, straight, key) for size in SIZES])]

    panels = [
        Panel("class agreement lost, share", [
            series(size, COUNTS, [lost(found, size, n) for n in COUNTS]) for size in SIZES
        ], "steps"),
        Panel(f"Fréchet distance over that of {MANY} steps", [
            series(size, COUNTS, [change(found, size, n) for n in COUNTS])
            for size in SIZES
        ], "steps"),
        Panel("distance from the fine path's end", [
            series(size, COUNTS, list(errors[size].T)) for size in SIZES
        ], "steps", log_y=True),
        Panel("path length over straight distance", of_sizes("length"), "size: small, medium, large"),
    ]  # fmt: skip
    rows: list[list[Cell]] = []
    for size, depth in zip(SIZES, blocks, strict=True):
        path = [shown(found.values(size, straight, key), 4) for key in ("length", "travelled", "straightness")]
        few = [f"{shown(100 * lost(found, size, n))} %" for n in COUNTS]
        distances = [shown(found.distance(size, step, n)) for n in (COUNTS[0], MANY)]
        rows.append([size, depth, *path, *few, *distances])
    columns = (
        "", "blocks", "length / distance", "travelled", "S", *(f"lost, {n} steps" for n in COUNTS),
        f"FD, {COUNTS[0]} steps", f"FD, {MANY} steps",
    )  # fmt: skip
    note = (
        f"After {step} training steps; Euler. Lost: of the class agreement with {MANY} steps. Travelled: the sum of "
        f"|v| dt. S: Liu et al.'s. FD: Fréchet distance, geometric mean of both spaces."
    )
    return [
        curves("Few steps", panels, "Bars: from the least to the most over seeds."),
        table("Scores", columns, rows, note),
    ]


def judge(found: Table) -> Finding:
    """The largest model against the smallest: excess length of its paths, and what few steps lose."""
    straight = Straight(found.bed.budget.steps)
    excess = {size: found.values(size, straight, "length") - 1 for size in SIZES}
    length = Paired.of(np.maximum(excess["large"], 1e-9), np.maximum(excess["small"], 1e-9))
    loss = {size: lost(found, size, COUNTS[0]) for size in SIZES}
    parts = {"straighter": length.verdict(), "loses less": gained(loss["small"] - loss["large"])}
    told = {size: f"{shown(100 * excess[size])} %" for size in SIZES}
    less = {size: f"{shown(100 * loss[size])} %" for size in SIZES}
    number = (
        f"paths {', '.join(told.values())} longer than straight (small, medium, large); {COUNTS[0]} steps lose "
        f"{', '.join(less.values())} of class agreement"
    )
    reason = (
        f"Paths of the large model bend {percent(length.ratio)} against the small one's (excess length {told['large']} "
        f"and {told['small']}): {parts['straighter']}. With {COUNTS[0]} steps instead of {MANY} the large model loses "
        f"{less['large']} of its class agreement, the small one {less['small']}: {parts['loses less']}."
    )
    ours = {
        "excess length": {size: excess[size].tolist() for size in SIZES},
        "travelled": {size: found.values(size, straight, "travelled").tolist() for size in SIZES},
        "lost": {size: {n: lost(found, size, n).tolist() for n in COUNTS} for size in SIZES},
        "parts": parts,
    }
    return Finding(
        PAPER, ours, together(*parts.values()), reason, pages(found), remarks(found), number, length.ratio.tolist()
    )


def remarks(found: Table) -> list[str]:
    """What few steps lose by other measures, which decide nothing, and the paper's path length."""
    step, few = found.bed.budget.steps, COUNTS[0]
    off = {size: ends_off(found, size)[:, 0] for size in SIZES}
    rise = {size: change(found, size, few) - 1 for size in SIZES}
    far = {size: found.values(size, Straight(step), "travelled") for size in SIZES}

    def each(values: dict[str, np.ndarray], unit: float = 100, sign: str = " %") -> str:
        return ", ".join(f"{shown(unit * values[size])}{sign}" for size in SIZES)

    lines = [
        f"By measures that do not decide (small, medium, large): {few} steps end {each(off)} off the fine path's end, "
        f"and change the Fréchet distance by {each(rise)}.",
        f"The paper's path length, the sum of |v| dt, is {each(far, 1, '')}; more contrast makes it longer.",
    ]
    if all((lost(found, size, few) <= 0).all() for size in SIZES):
        lines.append(f"No model loses class agreement with {few} steps: few steps make samples more typical here.")
    return lines


STRAIGHTNESS = claim(
    "sd3-straightness",
    (PAPERS["SD3"], "Table 6"),
    "larger models sample along straighter paths and lose less with few sampling steps",
    "Holds: at the usual number of training steps, of the large model against the small one, (1) the sampling paths' "
    f"excess length over the straight distance is smaller, {PAIRED}; and (2) the share of the class agreement with "
    f"{MANY} Euler steps that {COUNTS[0]} steps lose is smaller, by the same measure without logarithms. Does not "
    "hold: the opposite of one of them by the same measure. Undecided: else.",
    trials=measured,
    judge=judge,
    number="5 steps lose 4.30, 3.59, 2.71 % of CLIP score at depth 15, 30, 38; path length 191.1, 188.0, 186.0",
    minutes=7,
)
CLAIMS = (STRAIGHTNESS,)
