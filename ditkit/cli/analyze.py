"""`ditkit analyze`: look into a trained model; each analysis is a sub-command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from ditkit.cli.analyses import register
from ditkit.cli.keys import KEYS, Keyed
from ditkit.cli.sample import Device, Guidance, Source, What
from ditkit.cli.show import print_table

if TYPE_CHECKING:
    from ditkit.recipes.analyze_sharing import Analysis, Plan

app = typer.Typer(
    rich_markup_mode="rich",
    help="Look into a trained model: what its layers know, how it moves, what it costs, how it can share.",
    epilog="Example: ditkit analyze all runs/repa   |   ditkit analyze compare runs/sit runs/repa runs/ddt",
)

Keys = Annotated[
    list[str] | None,
    typer.Argument(help="seed=1 templates=16 sampling.steps=50 ...; see below.", metavar="[KEY=VALUE]..."),
]
Budget = Annotated[
    list[str] | None,
    typer.Option("--budget", help="Encoder runs K: 5, or 3,5,10. Default: 1 evaluation in 2, 3, 5 and 10."),
]
TradeOff = Annotated[
    bool, typer.Option("--trade-off", help="Sample with every schedule: time and quality against no sharing.")
]
Count = Annotated[int | None, typer.Option("--n", help="Images of --trade-off, for each schedule. Default: 256.")]


register(app)


class SharingKeys(Keyed):
    """`--templates 16` is another spelling of templates=16, and so on for what this analysis adds."""

    keys: ClassVar = {**KEYS, "templates": "templates", "reach": "reach", "data": "data"}


@app.command("sharing", cls=SharingKeys)
def sharing(
    what: What,
    keys: Keys = None,
    budget: Budget = None,
    trade_off: TradeOff = False,
    n: Count = None,
    guidance: Guidance = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder. Default: RUN/sharing/..., where `sample --sharing` looks.")
    ] = None,
    source: Source = None,
    device: Device = "auto",
) -> None:
    """Measure how DDT's encoder can be shared between sampling steps: schedules for K encoder runs, and a report.

    The recipe's sampler, or the one you choose, samples a few templates; the self-conditions s of all its evaluations
    are compared, and the velocities that older s would give. dp:K is the best schedule by the similarity of s (DDT's
    dynamic programme), velocity:K by the error in the velocity. `ditkit sample RUN --sharing dp:K` then uses them.

    --trade-off samples --n images without sharing and with the uniform and both solved schedules of every budget, in
    one run: time, change of the images, Frechet distance to the real images; a table, and a plot in the report.

    Further keys, as KEY=VALUE or --KEY VALUE: templates (8), reach (evaluations that velocity:K may use an s again; all
    of up to 100, beyond that 4 N / K of the smallest K), seed, steps, solver, interval, weights, step, size, chunk,
    codec, sampling.* as in `ditkit sample`; of the trade-off classes, real, split, data.*, data (real images),
    classifier.* as in `ditkit evaluate`.

    Example: ditkit analyze sharing runs/ddt --budget 5 --budget 10 --guidance 2 --trade-off
    """
    from ditkit.cli.progress import bars
    from ditkit.recipes.analyze_sharing import analyze, make_plan
    from ditkit.recipes.build import pick_device

    words = [k for k in keys or [] if not k.startswith("data=")]
    data = next((k.partition("=")[2] for k in keys or [] if k.startswith("data=")), None)
    plan = make_plan(
        what, words, {"n": n, "guidance": guidance}, pick_device(device),
        budgets=_numbers(budget or ()), trade_off=trade_off, source=source, data=data, out=out,
    )  # fmt: skip
    with bars() as bar:
        for note in plan.notes:
            bar.say(note)
        found = analyze(plan, bar)
    _print(plan, found, stored=out is None)


def _numbers(texts: list[str] | tuple[()]) -> list[int]:
    """["3,5", "10"] -> [3, 5, 10]. ValueError, one line, for what is no whole number."""
    words = [word.strip() for text in texts for word in text.split(",")]
    if wrong := [word for word in words if not word.removeprefix("-").isdecimal()]:
        raise ValueError(f"--budget {wrong[0]!r}: give whole numbers, such as --budget 5 or --budget 3,5,10")
    return [int(word) for word in words]


def _print(plan: Plan, found: Analysis, stored: bool) -> None:
    """The schedules, the trade-off if measured, where the files are, and what to do next."""
    from ditkit.recipes.sampling import describe_sampler, describe_weights
    from ditkit.recipes.sharing_page import compared, trade_off_columns, trade_off_rows

    there = " (measured before)" if found.reused else ""
    facts = found.findings.measured.facts
    typer.echo(f"weights    {describe_weights(plan.loaded)}")
    typer.echo(f"sampler    {describe_sampler(plan.sampling)}: {facts['evaluations']} evaluations")
    typer.echo(f"statistics {facts['templates']} templates, {facts['seconds']:g} s{there}")
    for made in found.findings.schedules:
        typer.echo(f"{made.rule:10s} {', '.join(map(str, made.encode))}")
    if (tried := found.findings.trade_off) is not None:
        columns = trade_off_columns(tried)
        typer.echo("")
        print_table(columns, trade_off_rows(tried), right=tuple(range(1, len(columns))))
        for line in compared(tried):
            typer.echo(line)
    typer.echo(f"schedules  {plan.folder}{os.sep}*.json")
    typer.echo(f"report     {found.report}")
    use = found.fifth.rule if stored else plan.folder / f"{found.fifth.rule.replace(':', '-')}.json"
    typer.echo(f"next       {plan.place.command('sample')} --sharing {use}")
    if tried is None:
        typer.echo(f"           {plan.place.command('analyze', 'sharing')} --trade-off   (what each gains and costs)")
