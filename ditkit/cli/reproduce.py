"""`ditkit reproduce`: re-test a claim of a paper, with a verdict that was not decided beforehand."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ditkit.cli.train import Device

if TYPE_CHECKING:
    from ditkit.recipes.reproduce import Plan

ALL = "all"


def reproduce(
    name: Annotated[str | None, typer.Argument(help="A claim, or all; none: list them.", metavar="[NAME]")] = None,
    keys: Annotated[
        list[str] | None, typer.Argument(help="steps=800 images=500 ...: of the budget.", metavar="[KEY=VALUE]...")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="digits, scenes, a folder of images or a .parquet file.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Repetitions, with seeds 0, 1, ...; 3 can decide.")] = 1,
    budget: Annotated[
        str, typer.Option("--budget", help="smoke (it runs), small (minutes on two cores) or gpu.")
    ] = "small",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder. Default: runs/reproduce/NAME-BUDGET. Of all: one with a folder for each."),
    ] = None,
    pool: Annotated[
        Path | None, typer.Option("--pool", help="Folder of runs that claims share. Default: pool, beside --out.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Re-test a claim of a paper: runs, scores, and a verdict by a rule that was fixed beforehand.

    Says how many runs and minutes it will take before it starts. Writes result.json and report.html; every run is a run
    folder like any other. The same command continues an interrupted study; more --seeds add to a finished one.
    `ditkit reproduce all` runs every claim that has use for the data, and writes claims.md.

    Example: ditkit reproduce repa-gain --seeds 3
    """
    if name is None:
        if data or out or pool or seeds != 1 or budget != "small":
            raise ValueError("name the claim to re-test: ditkit reproduce NAME (ditkit reproduce lists them)")
        listing()
        return
    if "=" in name:
        raise ValueError(f"{name!r}: the claim's name comes first: ditkit reproduce NAME {name}")
    (run_all if name == ALL else run)(name, Asked(keys or (), data, seeds, budget, out, pool, device))


@dataclass(frozen=True)
class Asked:
    """What the options say."""

    keys: Sequence[str]
    data: str | None
    seeds: int
    budget: str
    out: Path | None
    pool: Path | None
    device: str

    @property
    def words(self) -> dict[str, Any]:
        """The arguments of `ask`."""
        from ditkit.recipes.build import pick_device

        told = {"keys": self.keys, "data": self.data, "seeds": self.seeds, "size": self.budget, "out": self.out}
        return {**told, "pool": self.pool, "device": pick_device(self.device)}


def run(name: str, asked: Asked) -> None:
    """Plan, say so, do it, and print the verdict."""
    from ditkit.cli.progress import bars
    from ditkit.recipes.claims import ask
    from ditkit.recipes.reproduce import carry_out, make_plan

    question = ask(name, **asked.words)
    with bars() as bar:
        plan = make_plan(question)
        for line in plan.lines():
            bar.say(line)
        result, page = carry_out(plan, Rest(bar, plan), bar.say)
    typer.echo(f"{result.claim}: {result.verdict}")
    typer.echo(result.reason)
    typer.echo(f"result   {page.with_name('result.json')}")
    typer.echo(f"report   {page}")


def run_all(name: str, asked: Asked) -> None:
    """The same of every claim; ends with an error where one failed, after the others are done."""
    from ditkit.cli.progress import bars
    from ditkit.cli.show import print_table
    from ditkit.recipes.claims import CLAIMS, ask_all
    from ditkit.recipes.reproduce.whole import carry_out_all, plan_all, write_ledger

    questions, left_out = ask_all(**asked.words)
    with bars() as bar:
        whole = plan_all(questions, left_out, bar.say)
        for line in whole.lines():
            bar.say(line)
        results = carry_out_all(whole, lambda plan: Rest(bar, plan), bar.say)
    print_table(["claim", "verdict", "ours"], [[r.claim, r.verdict, r.our_number] for r in results.values()])
    typer.echo(f"ledger   {write_ledger(whole.questions[0].out.parent, whole, CLAIMS)}")
    if whole.failed:
        told = "; ".join(f"{failed}: {why}" for failed, why in whole.failed.items())
        raise RuntimeError(f"{len(whole.failed)} of {len(questions)} claims failed: {told}")


class Rest:
    """Progress of a stage, with the time that everything left takes: the plan's estimate, corrected by what it took."""

    def __init__(self, show: Callable[..., None], plan: Plan):
        self.show, self.seconds = show, plan.seconds
        self.start = {
            "training": plan.trained / max(1, plan.runs),
            "scoring": plan.scored / max(1, plan.scores),
        }
        self.done = dict(self.start)
        self.began = time.monotonic()

    def left(self) -> float:
        """Seconds."""
        shares = {k: (self.done[k] - s) / (1 - s) if s < 1 else 1.0 for k, s in self.start.items()}
        expected, total = sum(self.seconds[k] * shares[k] for k in shares), sum(self.seconds.values())
        slower = (time.monotonic() - self.began) / expected if expected > 0.02 * total else 1.0
        return slower * (total - expected)

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Stage `stage` has finished `done` of `total`."""
        if stage in self.done:
            self.done[stage] = max(self.done[stage], done / max(1, total))
        self.show(stage, done, total, f"{note}  all of it: about {self.left():.0f} s left".strip())


def listing() -> None:
    """Every claim: name, source, what it says, minutes of each budget."""
    from ditkit.cli.show import print_table
    from ditkit.recipes.claims import CLAIMS

    rows = []
    for claim in CLAIMS.values():
        cost = ", ".join(f"{size} {minutes:g}" for size, minutes in claim.minutes.items())
        rows.append([claim.name, f"{claim.paper}, {claim.table}", claim.says, claim.data, cost])
    print_table(["claim", "paper", "says", "data", "about minutes (two idle cores, one seed)"], rows)
