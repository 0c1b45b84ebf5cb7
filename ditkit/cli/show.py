"""`ditkit show`: list the recipes, print one, compare two, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ditkit.models import AnyModel
    from ditkit.recipes import Published, Recipe

HIDDEN = {"name", "title", "source", "published", "notes", "unpublished"}  # not part of what is trained


def show(
    recipe: Annotated[
        str | None, typer.Argument(help="dit.xl_2_256, mine.yaml, ./mine.py:big, a run; none: all")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="training.lr=2e-4 ...", metavar="[KEY=VALUE]...")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The resolved recipe (or the list) as JSON.")] = False,
    diff: Annotated[str | None, typer.Option("--diff", help="Another recipe: print what differs.")] = None,
    cost: Annotated[
        bool, typer.Option("--cost", help="Parameters, GMACs of a forward pass, training compute.")
    ] = False,
    find: Annotated[str, typer.Option("--find", help="List only recipes whose name or title holds this text.")] = "",
) -> None:
    """Print recipes: all of them, one resolved, two compared, or what one costs.

    Example: ditkit show sit.xl_2_256 --diff repa.xl_2_256
    """
    from ditkit.recipes import recipe as find_recipe

    if recipe is None:
        if diff:
            raise ValueError("--diff compares two recipes: ditkit show dit.xl_2_256 --diff sit.xl_2_256")
        listing(find, as_json=json, cost=cost)
        return
    if is_paper(recipe) and not (overrides or diff or find):
        listing("", paper=recipe, as_json=json, cost=cost)
        return
    if find:
        raise ValueError("--find searches the list of recipes: leave out the recipe's name")
    if diff and cost and json:
        raise ValueError("--json prints one thing: --diff or --cost, not both")
    chosen = find_recipe(recipe, overrides or ())
    if diff:
        other = find_recipe(diff)
        print_diff(chosen, other, as_json=json)
        if cost:
            print_costs([chosen, other], as_json=False)
    elif cost:
        print_costs([chosen], as_json=json)
    elif json:
        from ditkit.config import dump

        typer.echo(dump(chosen, "json"), nl=False)
    else:
        print_recipe(chosen)


def is_paper(word: str) -> bool:
    """Whether this is what stands before the dot in names of recipes: sd3."""
    from ditkit.recipes import RECIPES

    return any(name.startswith(f"{word}.") for name in RECIPES)


def listing(find: str, *, paper: str = "", as_json: bool, cost: bool) -> None:
    """All recipes (of a paper) as a table: name, title, parameters, steps, best published scores, source.

    Scores are FID without and with guidance, or GenEval where there is no FID.
    """
    from ditkit.recipes import RECIPES
    from ditkit.recipes import recipe as find_recipe

    names = [name for name in RECIPES if name.startswith(f"{paper}.") or not paper]
    found = [r for name in names if find.lower() in (name + (r := find_recipe(name)).title).lower()]
    if not found:
        raise ValueError(f"no recipe's name or title holds {find!r} (ditkit show lists all)")
    if cost:
        print_costs(found, as_json=as_json)
    elif as_json:
        told = ({"name": r.name, "title": r.title, "source": r.source} for r in found)
        _print_json([{**one, "fid": _scores(r), "geneval": _geneval(r)} for one, r in zip(told, found, strict=True)])
    else:
        lines = [(r.name, r.title, _parameters(r.model), f"{r.training.steps:,}", *_cells(r), r.source) for r in found]
        print_table(
            ("recipe", "title", "parameters", "steps", "FID", "FID guided", "source"), lines, right=(2, 3, 4, 5)
        )


def print_recipe(recipe: Recipe) -> None:
    """The recipe as YAML, unpublished values marked, then its notes and published scores."""
    from ditkit.config import dump

    typer.echo(f"# {recipe.name}: {recipe.title}\n# source: {recipe.source}")
    typer.echo(_marked(dump(recipe, exclude=HIDDEN), recipe.unpublished))
    for note in recipe.notes:
        typer.echo(f"note: {note}")
    if not recipe.published:
        own = not recipe.source or recipe.source.startswith(("ours", "from "))
        why = "this recipe is not of a paper" if own else "the paper gives no score for it"
        typer.echo(f"published: no row; {why}")
        return
    lines = [_published_line(p) for p in recipe.published]
    names = ["table", "steps", "sampler", "guidance", "FID", "sFID", "IS", "prec.", "rec.", "acc.", "decoder", "note"]
    if any(p.geneval is not None for p in recipe.published):
        names.insert(4, "GenEval")
        scores = ["" if p.geneval is None else f"{p.geneval:g}" for p in recipe.published]
        lines = [(*line[:4], score, *line[4:]) for line, score in zip(lines, scores, strict=True)]
    print_table(names, lines, right=(1, *range(4, len(names) - 2)))


def print_diff(a: Recipe, b: Recipe, *, as_json: bool) -> None:
    """Dotted keys in which two recipes differ; names, notes and published scores are left out."""
    from ditkit.config import diff

    rows = diff(a, b, ignore=HIDDEN)
    if as_json:
        _print_json([row._asdict() for row in rows])
    elif not rows:
        typer.echo(f"{a.name} and {b.name} train and sample the same")
    else:
        print_table(("key", a.name, b.name), [(key, _cell(x), _cell(y)) for key, x, y in rows])


def print_costs(recipes: list[Recipe], *, as_json: bool) -> None:
    """Parameters, GMACs of one forward pass and of sampling one image, training compute (batch x steps x 3 passes)."""
    from ditkit.analysis.cost import cost

    spend = cache(cost)
    lines = []
    for r in recipes:
        spent = spend(r.model)
        training = 3 * spent.gmacs * r.training.batch * r.training.steps  # backward is about two forwards (DiT, sec. 5)
        known = "training" not in r.unpublished  # a converted file does not tell how it was trained
        trained = (r.training.steps, training) if known else (None, None)
        lines.append((r.name, spent.trainable, round(spent.gmacs, 2), *trained))
    names = ("recipe", "parameters", "GMACs", "steps", "training GMACs")
    if as_json:
        _print_json([dict(zip(names, line, strict=True)) for line in lines])
    else:
        cells = [
            (n, f"{p:,}", f"{g:.2f}", *(("unknown",) * 2 if s is None else (f"{s:,}", f"{t:.3g}")))
            for n, p, g, s, t in lines
        ]
        print_table(names, cells, right=(1, 2, 3, 4))
        typer.echo(
            "GMACs: multiply-accumulates of one forward pass of one image (papers write Gflops); codec not counted"
        )


@cache
def _parameters(settings: AnyModel) -> str:
    """Trainable parameters as the papers print them: 675M, 8.06B."""
    import torch

    from ditkit.models import build_model

    with torch.device("meta"):
        count = sum(p.numel() for p in build_model(settings).parameters() if p.requires_grad)
    return f"{count / 1e6:.3g}M" if count < 1e9 else f"{count / 1e9:.3g}B"


def _scores(recipe: Recipe) -> tuple[str, str]:
    """The best published FID without and with guidance, of 50,000 images (COCO: 40,192)."""
    rows = [p for p in recipe.published if p.images >= 40_000 and not p.table.endswith("README")]
    plain = [p.fid for p in rows if p.fid and p.sampling.guidance is None]
    guided = [p.fid for p in rows if p.fid and p.sampling.guidance is not None]
    return (f"{min(plain):g}" if plain else "", f"{min(guided):g}" if guided else "")


def _geneval(recipe: Recipe) -> str:
    """The best published GenEval score."""
    found = [p.geneval for p in recipe.published if p.geneval is not None]
    return f"{max(found):g}" if found else ""


def _cells(recipe: Recipe) -> tuple[str, str]:
    """Scores in two cells of the list."""
    plain, guided = _scores(recipe)
    best = _geneval(recipe)
    return (plain, guided) if plain or guided or not best else ("", f"GenEval {best}")


def _published_line(p: Published) -> tuple[str, ...]:
    from ditkit.diffusion import SkipLayer

    g = p.sampling.guidance
    guidance = "" if g is None else f"{g.scale:g}"
    if isinstance(g, SkipLayer):
        guidance += f", {g.skip_scale:g} without blocks {g.blocks}"
    elif g is not None and (g.low, g.high) != (0.0, 1.0):
        left, right = "[]" if g.closed else "()"
        guidance += f" on {left}{g.low:g}, {g.high:g}{right}"
    if g is not None and not isinstance(g, SkipLayer) and g.channels:
        guidance += f", {g.channels} channels"
    scores = (p.fid, p.sfid, p.inception_score, p.precision, p.recall, p.accuracy)
    note = "; ".join(
        x for x in (p.note, "" if p.images == 50_000 else f"{p.images:,} images", "" if p.exact else "≈") if x
    )
    form = f" {p.sampling.options['form']}" if "form" in p.sampling.options else ""
    if p.sampling.sharing is not None:
        form += f" {p.sampling.sharing.rule}"
    decoder = p.decoder.rpartition("sd-vae-")[2]
    return (
        p.table, f"{p.steps:,}", f"{p.sampling.solver} {p.sampling.steps}{form}", guidance,
        *("" if s is None else f"{s:g}" for s in scores), decoder, note,
    )  # fmt: skip


def _marked(text: str, unpublished: tuple[str, ...]) -> str:
    """YAML with "# ours" behind each key that the paper never gave (and so all below it)."""
    lines: list[str] = []
    path: list[str] = []
    for line in text.splitlines():
        body = line.lstrip(" -")
        depth = (len(line) - len(body)) // 2
        path = [*path[:depth], body.partition(":")[0]]
        mark = "  # not (fully) published: ours" if ".".join(path) in unpublished else ""
        lines.append(line + mark)
    return "\n".join(lines)


def _cell(value: object) -> str:
    return "-" if value is None else str(value)


def _print_json(value: object) -> None:
    import json

    typer.echo(json.dumps(value, indent=2))


def print_table(names: Sequence[str], lines: Sequence[Sequence], right: tuple[int, ...] = ()) -> None:
    """A plain table: as wide as the terminal when there is one, never cut when piped."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=400)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(names):
        table.add_column(name, justify="right" if i in right else "left", overflow="fold")
    for line in lines:
        table.add_row(*(escape(str(cell)) for cell in line))
    console.print(table)
