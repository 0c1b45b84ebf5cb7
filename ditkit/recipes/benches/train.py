"""How fast training is: the real Job and the real steps, where their time goes, and how near the machine's ceiling."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from ditkit.recipes.benches.bench import Bench, Progress, awaken, silent, take_turns
from ditkit.recipes.benches.laps import PARTS, Laps, watch_job, watch_state
from ditkit.recipes.benches.peaks import device_peak
from ditkit.recipes.benches.products import products, products_seconds, square_rate, training_flops
from ditkit.recipes.benches.random_job import random_job, teacher_widths
from ditkit.recipes.build import Parts, build_job, prepare
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.stopwatch import runs_ahead, seconds_of, spread, synchronise
from ditkit.training.ahead import pinned
from ditkit.training.log import Clock, Log, peak_memory
from ditkit.training.loop import forward_backward, update
from ditkit.training.precision import hasten, matmul_precision
from ditkit.training.readings import Reading, Row
from ditkit.training.report import note, report
from ditkit.training.settings import TrainSettings
from ditkit.training.state import Job, State

CHOSEN, PLAIN, PRODUCTS = "chosen", "plain fp32", "products alone"
ENDLESS = 10**9  # steps of a run that is never at its end
EAGER = {"precision": "fp32", "tf32": False, "compile": False, "float8": False}  # what `plain` means
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Turn(NamedTuple):
    """Some steps of one side: seconds of each while nobody waits, seconds a step of each part, the peak in bytes."""

    seconds: float
    parts: dict[str, float]
    peak: float | None


class Side:
    """One way to train, ready to do steps; `lines` is what was said while it was made ready."""

    def __init__(self, job: Job, device: torch.device):
        before = allocated(device)
        self.device, self.laps, self.lines = device, Laps(device), list[str]()
        self.settings, self.loss = job.settings, float("nan")
        watch_job(job, self.laps)
        self.state, self.log = State.fresh(job), Log(job.folder)
        watch_state(self.state, self.laps)
        self.lines += hasten(job.model, job.settings)
        self.batches: Iterator = pinned(job.batches(0), device)
        self.clock = Clock(device)
        self.steps(1)
        self.own = allocated(device) - before  # the other side's tensors lie there too

    def step(self) -> None:
        """One step as `fit` does it."""
        state, laps = self.state, self.laps
        batch = laps.lap("data", lambda: next(self.batches))
        totals = laps.lap("backward", lambda: forward_backward(state, batch))
        laps.lap("optimizer", lambda: update(state, state.team.agree(Reading.of(totals))))
        laps.lap("logging", self.tell)
        self.clock.step("optimizer")

    def tell(self) -> None:
        """What `fit` does with a step's numbers."""
        note(self.state, self.log, self.see)
        report(self.state, self.clock, self.log)

    def see(self, step: int, values: Row) -> None:
        """The numbers of a step, when they have arrived."""
        self.loss = values["loss"]

    def steps(self, count: int, told: Callable[[int, int], None] | None = None) -> None:
        """Some steps, with the run's own switches on."""
        with matmul_precision(self.settings.tf32):
            for i in range(1, count + 1):
                self.step()
                if told is not None:
                    told(i, count)

    def turn(self, count: int, told: Callable[[int, int], None]) -> Turn:
        """`count` steps; on an accelerator once more with laps, for which it is waited at every part."""
        others = allocated(self.device) - self.own
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.laps.seconds.clear()
        self.laps.on = not runs_ahead(self.device)
        seconds = seconds_of(lambda: self.steps(count, told), self.device)[0] / count
        peak = torch.cuda.max_memory_allocated(self.device) - others if self.device.type == "cuda" else None
        if not self.laps.on:
            self.laps.on = True
            self.steps(count)
        self.laps.on = False
        return Turn(seconds, {name: spent / count for name, spent in self.laps.seconds.items()}, peak)


def training(bench: Bench, progress: Progress | None = None) -> dict:
    """Steps of the recipe's training: images a second, the parts of a step, peak memory, shares of peak and ceiling.

    With `compare`, plain eager fp32 steps of the same model take turns with them; so do the matrix products alone.
    """
    settings, device, told = bench.settings, bench.device, progress or silent
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        parts = prepare(bench.recipe, device) if settings.data else None
        recipe = parts.recipe if parts else bench.recipe
        wanted = {CHOSEN: recipe.training}
        if settings.compare:
            wanted[PLAIN] = recipe.training.with_(EAGER)
        sides: dict[str, Side] = {}
        for name, training in wanted.items():
            told(f"preparing {name}", 0, 1 + settings.warmup)
            sides[name] = Side(make_job(recipe, training, parts, folder / name.replace(" ", "-"), bench), device)
            sides[name].steps(settings.warmup, partial(_warming, told, f"preparing {name}"))
            told(f"preparing {name}", 1 + settings.warmup, 1 + settings.warmup)
        turns: dict[str, Callable] = {name: partial(_turn, side, settings.steps) for name, side in sides.items()}
        found = products(recipe.model, recipe.training.batch) if settings.ceiling else None
        if found:
            turns[PRODUCTS] = lambda _: _alone(found, recipe.training, device)
        runs = take_turns(settings, turns, told, "training")
        square = _square(recipe.training, device) if found else None
        return results(bench, recipe, sides, runs, square)


def make_job(recipe: Recipe, training: TrainSettings, parts: Parts | None, folder: Path, bench: Bench) -> Job:
    """The Job of one side, on the recipe's own data or on random ones; no weight of its network is zero."""
    folder.mkdir()
    endless = training.with_({"steps": ENDLESS, "validate_every": None})
    recipe = recipe.model_copy(update={"training": endless})
    if parts is None:
        job = random_job(recipe, folder, bench.device, bench.settings.seed)
    else:
        job = build_job(replace(parts, recipe=recipe), folder)
    awaken(job.model.cpu(), torch.Generator().manual_seed(bench.settings.seed))
    job.model.to(bench.device)
    return job


def _warming(told: Progress, stage: str, step: int, steps: int) -> None:
    told(stage, step, steps + 1)


def _turn(side: Side, steps: int, told: Callable[[int, int], None]) -> Turn:
    return side.turn(steps, told)


def _alone(found, training: TrainSettings, device: torch.device) -> Turn:
    """The matrix products of a step alone."""
    with matmul_precision(training.tf32):
        return Turn(products_seconds(found, device, DTYPES[training.precision]), {}, None)


def _square(training: TrainSettings, device: torch.device) -> dict:
    """What one large product reaches."""
    with matmul_precision(training.tf32):
        side, rate = square_rate(device, DTYPES[training.precision])
    return {"side": side, "tflops_a_second": rate}


def results(bench: Bench, recipe: Recipe, sides: dict[str, Side], runs: dict[str, list[Turn]], square: dict | None):
    """What the file holds of these turns."""
    training, device = recipe.training, bench.device
    flops = training_flops(recipe.model, recipe.align, teacher_widths(recipe)) * training.batch
    peak = device_peak(device, "tf32" if training.tf32 and training.precision == "fp32" else training.precision,
                       bench.settings.peak)  # fmt: skip
    alone = spread(turn.seconds for turn in runs.get(PRODUCTS, ()))
    arms = {name: side_facts(side, runs[name], flops) for name, side in sides.items()}
    chosen = arms[CHOSEN]["seconds_a_step"]["median"]
    share = None if peak is None else 100 * flops / chosen / 1e12 / peak[0]
    found: dict = {
        "training": training.model_dump(mode="json"),
        "data": "the recipe's" if bench.settings.data else "random, in memory",
        "flops_a_step": flops,
        "arms": arms,
        "peak": None if peak is None else {"tflops": peak[0], "source": peak[1], "percent": share},
        "products": alone and {
            "seconds_a_step": alone,
            "percent": 100 * alone["median"] / chosen,
            "square": square,
            "square_percent": square and 100 * flops / chosen / 1e12 / square["tflops_a_second"],
        },
        "process_peak_gib": peak_memory(device),
    }  # fmt: skip
    if PLAIN in arms:
        plain = arms[PLAIN]["seconds_a_step"]
        found["speedup"] = {
            "median": plain["median"] / chosen,
            "least": plain["least"] / arms[CHOSEN]["seconds_a_step"]["least"],
            "turns": spread(a.seconds / b.seconds for a, b in zip(runs[PLAIN], runs[CHOSEN], strict=True)),
        }
    return found


def side_facts(side: Side, turns: list[Turn], flops: float) -> dict:
    """Times, rates and parts of one side."""
    seconds = spread(turn.seconds for turn in turns)
    assert seconds is not None
    peaks = [turn.peak for turn in turns if turn.peak is not None]
    settings = side.settings
    return {
        "settings": {key: getattr(settings, key) for key in (*EAGER, "backend", "compile_mode")},
        "said": side.lines,
        "seconds_a_step": seconds,
        "images_a_second": spread(settings.batch / turn.seconds for turn in turns),
        "tflops_a_second": flops / seconds["median"] / 1e12,
        "parts": {name: spread(turn.parts.get(name, 0.0) for turn in turns) for name in PARTS},
        "peak_memory_gib": max(peaks) / 2**30 if peaks else None,
        "loss": side.loss if math.isfinite(side.loss) else None,
    }


def allocated(device: torch.device) -> int:
    """Bytes of tensors on a GPU; 0 elsewhere."""
    synchronise(device)
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
