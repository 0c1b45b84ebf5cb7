"""What `ditkit evaluate` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from ditkit.cli.show import print_table

if TYPE_CHECKING:
    from ditkit.recipes.load import Loaded
    from ditkit.recipes.score_files import Scores


def print_scores(scores: Scores) -> None:
    """Space, score, value, limits, and what real images reach; then the protocols."""
    from ditkit.evaluation.named import NAMED
    from ditkit.recipes.score_files import describe_protocols

    lines: list[tuple] = []
    for name, space in scores.spaces.items():
        for score in space.scores:
            real = scores.classifier_accuracy if score.metric == "agreement" else space.floor.get(score.metric)
            limits = "" if score.interval is None else f"{score.interval[0]:.4g} to {score.interval[1]:.4g}"
            cells = (name, score.metric, f"{score.value:.4g}", limits, "" if real is None else f"{real:.4g}")
            lines.append((*cells, score.better))
    print_table(("space", "score", "value", "95 %", "real half/half", "better"), lines, right=(2, 3, 4))
    if scores.classifier_accuracy is not None:
        typer.echo(f"classifier {scores.classifier_accuracy:.1%} of held-out real images named correctly")
    if scores.unusable:
        more = ", ..." if scores.unusable > len(scores.unusable_paths) else ""
        names = ", ".join(scores.unusable_paths) + more
        typer.echo(f"left out   {scores.unusable} real images that cannot be used: {names}")
    if scores.weights is not None:
        typer.echo(f"weights    {scores.weights}")
    for line in describe_protocols(scores):
        typer.echo(f"protocol   {line}")
    protocols = {score.protocol.name for space in scores.spaces.values() for score in space.scores}
    for name in sorted(protocols & NAMED.keys()):
        if NAMED[name].caution:
            typer.echo(f"beware     {name}: {NAMED[name].caution}")


def print_classes(scores: Scores) -> None:
    """One line a class: its kernel distance in every space, and agreement."""
    columns = [(name, metric) for name, space in scores.spaces.items() for metric in space.classes]
    if not columns:
        typer.echo("by class   nothing: samples and real images must both have labels")
        return
    found = [scores.spaces[name].classes[metric] for name, metric in columns]
    classes = list(dict.fromkeys(name for values in found for name in values))
    lines = [(name, *(f"{values[name]:.4g}" if name in values else "" for values in found)) for name in classes]
    typer.echo("")
    print_table(
        ("class", *(f"{name} {metric}" for name, metric in columns)), lines, right=tuple(range(1, len(columns) + 1))
    )


def print_published(scores: Scores, loaded: Loaded) -> None:
    """The recipe's published rows under the measured one, and what to think of the differences."""
    from ditkit.recipes.published_scores import COLUMNS, published_table, scored

    table = published_table(loaded.recipe, scores, scored(loaded))
    if table is None:
        return
    typer.echo("")
    print_table(("", *COLUMNS), table.lines, right=tuple(range(1, len(COLUMNS) + 1)))
    for remark in table.remarks:
        typer.echo(f"published  {remark}")


def print_comparison(scores: Scores, other: Scores, force: bool, ignore: Sequence[str] = ()) -> None:
    """Every score of both, and which is better; ValueError where the protocols differ but in `ignore`."""
    from ditkit.recipes.score_files import compare_scores

    lines = compare_scores(scores, other, force, ignore)
    cells = [(space, metric, f"{there:.4g}", f"{here:.4g}", verdict) for space, metric, there, here, verdict in lines]
    there, here = (f"{s.what} ({s.weights})" if s.weights else s.what for s in (other, scores))
    typer.echo(f"\nthere: {there}\nhere:  {here}")
    if unclear := sum(line[-1].startswith("unclear") for line in lines):
        typer.echo(
            f"noise: {unclear} of {len(lines)} gaps are unclear, within what other samples of the same weights make"
        )
    print_table(("space", "score", "there", "here", "here is"), cells, right=(2, 3))
