"""`ditkit analyze NAME MODEL` for every analysis, and `ditkit analyze compare MODEL MODEL ...`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from ditkit.cli.keys import KEYS, Keyed
from ditkit.cli.sample import Device, Source, What

# name -> help; a test holds this to recipes.analyses.ANALYSES, which needs torch to be read
NAMES = {
    "layers": "What each block knows at each time: a linear probe, CKNNA, CKA and mutual k-NN with teachers.",
    "progress": "The same over the checkpoints of a run.",
    "spatial": "Spatial structure of tokens in each block: near and distant similarity, contrast, regions.",
    "maps": "Feature maps: the first three principal components of tokens as colours.",
    "spectrum": "Frequency content of velocity, hidden states and DDT's s over t, and of samples.",
    "path": "Straightness of sampling paths, and error against step count.",
    "attention": "Entropy of attention, largest logits and activation norms, over training where it was kept.",
    "cost": "Parameters, the papers' multiply-accumulates and true floating point operations.",
}
COMMON = """
Numbers, drawings and what is seen go to RUN/analysis and into RUN/report.html (published files: ./analysis/NAME). What
was measured before on the same weights with the same settings is not measured again.

Keys, as KEY=VALUE or --KEY VALUE: n (held-out images, 500), train (images that probes learn from, 2000), seed, batch,
teachers=A,B (folders, names, hub ids; default: the recipe's), data.* (default: the recipe's data), weights=ema|raw,
step (of a run), codec, heads, patch, encoder-blocks (published files); and this analysis's own: {own}

Example: ditkit analyze {name} runs/repa --n 1000
"""

Keys = Annotated[list[str] | None, typer.Argument(help="n=1000 seed=1 ...; see below.", metavar="[KEY=VALUE]...")]
Data = Annotated[str | None, typer.Option("--data", help="Images: a folder, .parquet, digits. Default: the run's.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder. Default: RUN/analysis.")]
Only = Annotated[str | None, typer.Option("--only", help="Analyses, with commas. Default: all.")]
OWN = (
    *("t", "blocks", "probe", "k", "teachers", "n", "train", "batch", "seed"),
    *("steps", "prepare", "checkpoints", "images", "history", "paths", "fine", "counts", "solvers", "samples", "shown"),
)


class AnalysisKeys(Keyed):
    """`--t 0.1,0.5` is another spelling of t=0.1,0.5, and so on for what analyses add."""

    keys: ClassVar = {**KEYS, **{name: name for name in OWN}}


def register(app: typer.Typer) -> None:
    """Add a sub-command for each analysis, one for all of them, and compare."""
    for name, help_line in NAMES.items():
        app.command(
            name, cls=AnalysisKeys, help=f"{help_line}\n{COMMON.format(name=name, own='see docs/analysis.md')}"
        )(_command(name))
    everything = f"All of them that fit the model: {', '.join(NAMES)}.\n"
    app.command("all", cls=AnalysisKeys, help=everything + COMMON.format(name="all", own="those of each"))(_command(""))
    app.command("compare", cls=AnalysisKeys)(compare)


def _command(name: str):
    """The function behind `ditkit analyze NAME`; "" does all."""

    def command(
        what: What, keys: Keys = None, data: Data = None, source: Source = None, out: Out = None, only: Only = None,
        device: Device = "auto",
    ) -> None:  # fmt: skip
        from ditkit.cli.progress import bars
        from ditkit.recipes.analyses.perform import choose, make_plan, perform, report
        from ditkit.recipes.build import pick_device

        if name and only is not None:
            raise ValueError(f"--only chooses among all: ditkit analyze all {what} --only {only}")
        analyses = choose([name] if name else _names(only))
        plan = make_plan(what, keys or [], analyses, pick_device(device), source=source, data=data, out=out)
        with bars() as bar:
            found = perform(plan, analyses, bar, bar.say)
        for analysis in analyses:
            if analysis.name in found:
                _say(analysis.title, analysis.show({"": found[analysis.name]}).said)
        typer.echo(f"numbers    {plan.folder}")
        typer.echo(f"report     {report(plan)}")

    return command


def compare(
    what: Annotated[list[str], typer.Argument(help="Runs or model folders, then KEY=VALUE.", metavar="MODEL MODEL...")],
    only: Only = None,
    data: Data = None,
    out: Annotated[Path, typer.Option("--out", help="The page.")] = Path("compare.html"),
    device: Device = "auto",
) -> None:
    """Put models side by side: the same analyses of each, on the same images, in one page.

    What a run has been analysed for before with the same settings is not measured again. Keys as in the other
    sub-commands. Images are the first model's, unless --data names others; teachers are those of all, unless named.

    Example: ditkit analyze compare runs/sit runs/repa runs/ddt --only layers,spectrum --n 1000
    """
    from ditkit.cli.progress import bars
    from ditkit.recipes.analyses.perform import choose, make_plan, perform, together
    from ditkit.recipes.analyses.perform import compare as side_by_side
    from ditkit.recipes.build import pick_device

    models, keys = [Path(w) for w in what if "=" not in w], [w for w in what if "=" in w]
    if len(models) < 2:
        raise ValueError("compare needs two models at least: ditkit analyze compare runs/sit runs/repa")
    analyses, where = choose(_names(only)), pick_device(device)
    named = zip(models, _apart(models), strict=True)
    plans = together([make_plan(model, keys, analyses, where, data=data, name=name) for model, name in named])
    with bars() as bar:
        found = {plan.subject.name: perform(plan, analyses, bar, bar.say) for plan in plans}
    for analysis in analyses:
        of_all = {name: results[analysis.name] for name, results in found.items() if analysis.name in results}
        if len(of_all) > 1:
            _say(analysis.title, analysis.show(of_all).said)
    typer.echo(f"report     {side_by_side(found, analyses, out)}")


def _names(only: str | None) -> list[str]:
    return [name.strip() for name in (only or "").split(",") if name.strip()]


def _apart(models: Sequence[Path]) -> list[str]:
    """A name for each model: the folder's, with its parent's where two are alike."""
    names = [m.resolve().name for m in models]
    return [n if names.count(n) == 1 else f"{m.resolve().parent.name}/{n}" for n, m in zip(names, models, strict=True)]


def _say(title: str, lines: Sequence[str]) -> None:
    typer.echo(f"\n{title}")
    for line in lines:
        typer.echo(f"  {line}")
