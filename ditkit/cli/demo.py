"""`ditkit demo`: teacher, SiT and SiT + REPA on real digits, scored and shown on one page; minutes on two cores."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the runs and report.html.")] = Path("runs/demo"),
    smoke: Annotated[
        bool, typer.Option("--smoke", help="A few steps of everything: proves that it runs.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of teacher, models and samples.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Train a teacher, SiT and SiT + REPA on scikit-learn's digits; sample, score, write report.html.

    No download. An interrupted demo continues where it was.

    Example: ditkit demo --out runs/demo
    """
    from ditkit.cli.progress import bars
    from ditkit.recipes.build import pick_device
    from ditkit.recipes.demo import SMOKE, Budget, run_demo

    if smoke and out == Path("runs/demo"):
        out = Path("runs/demo-smoke")
    with bars() as bar:
        report = run_demo(out, SMOKE if smoke else Budget(), pick_device(device), bar, seed)
    typer.echo(str(report.resolve()))
