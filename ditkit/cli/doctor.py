"""`ditkit doctor`: look at recipe, data, codec, teachers, memory and disk before a run."""

from __future__ import annotations

import typer

from ditkit.cli.train import (
    Codec,
    Command,
    Data,
    Device,
    Out,
    Overrides,
    Size,
    Spec,
    Steps,
    Teacher,
    run_folder,
    set_keys,
)

__all__ = ["Command", "doctor"]
COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    recipe: Spec, overrides: Overrides = None, data: Data = None, out: Out = None, size: Size = None,
    codec: Codec = None, teacher: Teacher = None, steps: Steps = None, device: Device = "auto",
) -> None:  # fmt: skip
    """Check what `ditkit train` with the same words would do: every image, codec, teachers, sizes, memory, disk.

    Nothing is written. Exit code 0 if nothing fails, 1 if something does; warnings do not count.

    As there: --start PATH names weights to begin from, --text ENCODER (toy, toy-sd3, clip, sd3, sd3:SOURCE, ...) what
    reads the captions, --data pairs.jsonl data.pairs=both pairs of images.

    Example: ditkit doctor repa.sit_s_2 --data ./my_images --codec pixels --teacher runs/teacher
    """
    from rich.console import Console
    from rich.markup import escape

    from ditkit.cli.progress import bars
    from ditkit.pretrained import PretrainedMissing
    from ditkit.recipes.build import pick_device
    from ditkit.recipes.choose import choose
    from ditkit.recipes.inspect import Finding, inspect

    keys, found = overrides or [], []
    try:
        chosen = choose(recipe, keys, data=data, size=size, codec=codec, teachers=teacher or (), steps=steps)
    except PretrainedMissing as error:  # a teacher that is not there keeps nothing else from being looked at
        found.append(Finding("fail", "teacher", str(error)))
        chosen = choose(recipe, keys, data=data, size=size, codec=codec, teachers=("none",), steps=steps)
    folder, where = out or run_folder(recipe, chosen), pick_device(device)
    with bars() as bar:
        found += inspect(chosen, folder, where, set_keys(keys), lambda done, n: bar("looking at images", done, n))
    console = Console(highlight=False, soft_wrap=True)
    for one in found:
        console.print(f"[{COLOURS[one.level]}]{one.level:4}[/]  {one.topic:8}  {escape(one.text)}")
    counts = {level: sum(one.level == level for one in found) for level in COLOURS}
    if counts["fail"]:
        typer.echo(f"ditkit: {counts['fail']} of {len(found)} checks failed; mend them before training", err=True)
        raise typer.Exit(1)
    typer.echo(f"ready to train in {folder}" + (f" ({counts['warn']} warnings)" if counts["warn"] else ""))
