"""`ditkit analyze NAME MODEL` for every analysis, and `ditkit analyze compare MODEL MODEL ...`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from ditkit.cli.keys import FAMILIES, KEYS, Keyed
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
OWN = {  # name -> its own keys, which a test holds to its settings
    "layers": ("t", "blocks", "probe", "epochs", "probe_batch", "lr", "k", "prepare"),
    "progress": ("t", "blocks", "checkpoints", "probe", "k", "prepare"),
    "spatial": ("t", "blocks"),
    "maps": ("t", "blocks", "shown"),
    "spectrum": ("t", "blocks", "images", "samples"),
    "path": ("paths", "fine", "counts", "solvers", "guidance"),
    "attention": ("t", "images", "history"),
    "cost": (),
}
COMMON = """
Numbers, drawings and what is seen go to RUN/analysis and into RUN/report.html (published files: ./analysis/NAME). What
was measured before on the same weights with the same settings is not measured again.

Keys, as KEY=VALUE or --KEY VALUE: {own}n (images looked at, 500), train (images that probes learn from, 2000), seed,
batch, teachers=A,B (folders, names, hub ids; default: the recipe's), data.* (default: the recipe's data),
weights=ema|raw, step (of a run), codec, heads, patch, encoder-blocks (published files). docs/analysis.md explains them.

Example: ditkit analyze {name} runs/repa --n 1000
"""

Keys = Annotated[list[str] | None, typer.Argument(help="n=1000 seed=1 ...; see below.", metavar="[KEY=VALUE]...")]
Data = Annotated[str | None, typer.Option("--data", help="Images: a folder, .parquet, digits. Default: the run's.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder. Default: RUN/analysis.")]
Only = Annotated[str | None, typer.Option("--only", help="Analyses, with commas. Default: all.")]
IMAGES = ("n", "train", "seed", "batch", "teachers")


class AnalysisKeys(Keyed):
    """`--t 0.1,0.5` is another spelling of t=0.1,0.5, and so on for what analyses add."""

    keys: ClassVar = {
        **{key: value for key, value in KEYS.items() if key != "steps"},
        **{key.replace("_", "-"): key for key in (*IMAGES, *(key for keys in OWN.values() for key in keys))},
    }


def register(app: typer.Typer) -> None:
    """Add a sub-command for each analysis, one for all of them, and compare."""
    for name, help_line in NAMES.items():
        own = f"its own {', '.join(OWN[name]).replace('_', '-')}; " if OWN[name] else ""
        told = f"{help_line}\n{COMMON.format(name=name, own=own)}"
        app.command(name, cls=AnalysisKeys, help=told)(_command(name))
    everything = f"All of them that fit the model: {', '.join(NAMES)}.\n"
    own = "those of each (`ditkit analyze layers --help`); "
    app.command("all", cls=AnalysisKeys, help=everything + COMMON.format(name="all", own=own))(_command(""))
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
                _say(analysis.title, analysis.show({"": found[analysis.name]}).alone.said)
        typer.echo(f"numbers    {plan.folder}")
        typer.echo(f"report     {report(plan)}")

    return command


def compare(
    what: Annotated[
        list[str],
        typer.Argument(help="Runs, model folders, SOURCE:FILE (published); then KEY=VALUE.", metavar="MODEL MODEL..."),
    ],
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
    from ditkit.recipes.analyses.perform import choose, make_plan, perform, shared, together
    from ditkit.recipes.analyses.perform import compare as side_by_side
    from ditkit.recipes.build import pick_device
    from ditkit.recipes.place import check_writable

    models, keys = [w for w in what if "=" not in w], [w for w in what if "=" in w]
    if len(models) < 2:
        raise ValueError("compare needs two models at least: ditkit analyze compare runs/sit runs/repa")
    analyses, where = choose(_names(only)), pick_device(device)
    check_writable(out.parent)
    plans = []
    for name, (family, path) in zip(_apart([_source(m)[1] for m in models]), map(_source, models), strict=True):
        plans.append(make_plan(path, keys, analyses, where, source=family, data=data, name=name))
    plans = together(plans)
    with bars() as bar:
        found = [perform(plan, analyses, bar, bar.say) for plan in plans]
    for analysis, of_all in shared(plans, found):
        _say(analysis.title, analysis.show(of_all).said)
    typer.echo(f"report     {side_by_side(plans, found, out)}")


def _source(model: str) -> tuple[str | None, Path]:
    """ "sit:SiT-XL.pt" -> (family of a published file, path); a run or model folder has no family."""
    family, colon, path = model.partition(":")
    known = colon and not Path(model).exists() and family in FAMILIES.split(", ")
    return (family, Path(path)) if known else (None, Path(model))


def _names(only: str | None) -> list[str]:
    return [name.strip() for name in (only or "").split(",") if name.strip()]


def _apart(models: Sequence[Path]) -> list[str]:
    """A name for each model: as much of the end of its path as tells them all apart."""
    whole = [model.resolve().parts for model in models]
    for depth in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-depth:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    return [str(model) for model in models]  # one of them twice, which is refused


def _say(title: str, lines: Sequence[str]) -> None:
    typer.echo(f"\n{title}")
    for line in lines:
        typer.echo(f"  {line}")
