"""`ditkit convert`: published files, runs and model folders into each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ditkit.cli.keys import FAMILIES, Keyed

if TYPE_CHECKING:
    from ditkit.recipes.sampling import Choices

Command = Keyed
ADAPTERS = {"lora": "ditkit", "diffusers-lora": "diffusers"}  # --to -> layout


Input = Annotated[
    Path, typer.Argument(help="A run, a model folder, or a published file (with --source).", metavar="INPUT")
]
Output = Annotated[
    Path,
    typer.Argument(
        help="A new model folder, or with --to a new .safetensors or .pt file (diffusers: a folder).", metavar="OUTPUT"
    ),
]
Keys = Annotated[
    list[str] | None, typer.Argument(help="weights=raw step=1000 ...; see below.", metavar="[KEY=VALUE]...")
]
Source = Annotated[str | None, typer.Option("--source", help=f"Family of a published file: {FAMILIES}.")]
To = Annotated[
    str | None,
    typer.Option(
        "--to",
        help="The published layout to write: one of the families above, or diffusers: the folder of a "
        "StableDiffusion3Pipeline. Of a run that trains a LoRA: lora (a folder), diffusers-lora (a file).",
    ),
]


def convert(what: Input, output: Output, keys: Keys = None, source: Source = None, to: To = None) -> None:
    """Turn a run or a published file into a model folder, or (with --to) a model into a published file.

    A model folder opens with `ditkit sample FOLDER` and `ditkit.load(FOLDER)`. Nothing is overwritten, and a file
    appears complete or not at all. A model that a family's code cannot represent is refused, with the reason.

    Further keys, as KEY=VALUE or --KEY VALUE: weights=ema|raw, step (of a run), heads, patch, encoder-blocks and
    align-depth (of a published file of unpublished size), shape.size=[64,64] (native latent size of a diffusers or DDT
    file).

    Example: ditkit convert SiT-XL-2-256x256.pt models/sit-xl --source sit

    Example: ditkit convert runs/mine mine.safetensors --to sit

    Example: ditkit convert sd3_medium.safetensors models/sd3 --source sd3

    Example: ditkit convert runs/mine pipelines/mine --to diffusers

    Example: ditkit convert runs/tuned tuned.safetensors --to diffusers-lora
    """
    from ditkit.config import override
    from ditkit.recipes.build import pick_device
    from ditkit.recipes.converting import not_at_hand, to_folder, to_published
    from ditkit.recipes.sampling import Choices, describe_doubts, describe_weights, open_model, split

    own, sampler_keys = split(keys or [])
    known = (*FAMILIES.split(", "), "diffusers", *ADAPTERS)
    if to is not None and to not in known:
        raise ValueError(f"--to {to}: no such layout; choose from {', '.join(known)}")
    if sampler_keys:
        raise ValueError(f"{sampler_keys[0]}: nothing is sampled; leave it out (recipe.json in the folder may change)")
    if to in ADAPTERS:
        return write_adapter(what, output, ADAPTERS[to], override(Choices(), own))
    loaded = open_model(what, source, override(Choices(), own), pick_device("cpu"))
    notes = to_folder(loaded, output) if to is None else to_published(loaded, to, output)
    typer.echo(f"weights  {describe_weights(loaded)}")
    for note in (*describe_doubts(loaded), *notes):
        typer.echo(f"note     {note}")
    form = "folder" if to is None else "pipeline" if to == "diffusers" else f"{to} file"
    typer.echo(f"{form:8s} {output}")
    if to is None:
        typer.echo(f"next     ditkit sample {output}{not_at_hand(loaded)}")


def write_adapter(run: Path, output: Path, layout: str, choices: Choices) -> None:
    """The adapter of a run as a file or folder of its own."""
    from ditkit.recipes.adapters import export_adapter

    typer.echo(f"adapter  {export_adapter(run, output, layout=layout, weights=choices.weights, step=choices.step)}")
    typer.echo(f"written  {output}")
