"""`ditkit demo`: teacher, SiT, SiT + REPA and DDT on real digits, scored, on one page; minutes on two cores."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the runs and report.html.")] = Path("runs/demo"),
    smoke: Annotated[bool, typer.Option("--smoke", help="A few steps of everything: proves that it runs.")] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of teacher, models and samples.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Train a teacher, SiT, SiT + REPA and DDT on scikit-learn's digits; sample, score, share, write report.html.

    Share: DDT's encoder rests at most steps; the report shows what that gains and costs.

    No download. An interrupted demo continues where it was.

    Example: ditkit demo --out runs/demo
    """
    from ditkit.cli.progress import bars
    from ditkit.recipes.build import pick_device
    from ditkit.recipes.demo import SMOKE, Budget, expected_seconds, run_demo
    from ditkit.recipes.place import check_writable
    from ditkit.training.files import prepare

    if smoke and out == Path("runs/demo"):
        out = Path("runs/demo-smoke")
    check_writable(out)
    prepare(out)
    budget = SMOKE if smoke else Budget()
    with bars() as bar:
        report = run_demo(out, budget, pick_device(device), Whole(bar, expected_seconds(budget)), seed)
    typer.echo(str(report.resolve()))


class Whole:
    """Progress of a stage, and of all stages together: each weighs what it took on an idle machine."""

    def __init__(self, show: Callable[..., None], weights: Mapping[str, float]):
        self.show, self.weights = show, weights
        self.done = dict.fromkeys(weights, 0.0)
        self.began = time.monotonic()

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Stage `stage` has finished `done` of `total`; the note gains the share and remaining time of everything."""
        self.done[stage] = done / max(total, 1)
        share = sum(w * self.done[name] for name, w in self.weights.items()) / sum(self.weights.values())
        left = (time.monotonic() - self.began) * (1 / share - 1) if share > 0 else sum(self.weights.values())
        everything = f"demo {share:.0%}, about {left:.0f} s left"
        self.show(stage, done, total, f"{note}  {everything}" if note else everything)
