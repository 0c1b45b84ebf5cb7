"""`ditkit data`: make a data set better; each step is a sub-command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ditkit.cli.train import Device

app = typer.Typer(
    rich_markup_mode="rich",
    help="Make a data set better: synthetic captions.",
    epilog="Example: ditkit data caption ./my_images --model Salesforce/blip-image-captioning-base",
)


@app.callback()
def _group() -> None:
    """A group of one is a group too: `ditkit data caption`, not `ditkit data`."""


@app.command("caption")
def caption(
    data: Annotated[str, typer.Argument(help="A folder of images, a .parquet file, or a folder of them.")],
    model: Annotated[str, typer.Option("--model", help="Image-to-text model of transformers: a hub id or a folder.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="JSONL table. Default: beside the images, where training finds it.")
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", help="Question or beginning, for models that take one.")] = "",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images at a time.")] = 8,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Length of a caption, at most.")] = 64,
    beams: Annotated[int, typer.Option("--beams", min=1, help="1: greedy; more: beam search.")] = 1,
    device: Device = "auto",
) -> None:
    """Write a synthetic caption for every image with an image-to-text model (BLIP, GIT, ViT-GPT2, LLaVA, ...).

    Training then shows synthetic and original captions half and half, as SD3's did (data.synthetic_share). Interrupt it
    when you like: the same command goes on. Images that cannot be captioned are listed beside the table, with reasons.

    Example: ditkit data caption ./my_images --model Salesforce/blip-image-captioning-base
    """
    from ditkit.cli.progress import bars
    from ditkit.data import DataError, Folder, Parquet, caption_all, check_free, open_source, synthetic_path
    from ditkit.pretrained import load_captioner
    from ditkit.recipes.build import pick_device

    source, where = open_source(data), pick_device(device)
    if not isinstance(source, (Folder, Parquet)):
        raise DataError(f"data {data!r}: captions are written for a folder of images or parquet files")
    place = out or synthetic_path(Path(data).expanduser())
    check_free(place)
    captioner = load_captioner(model, prompt=prompt, max_tokens=max_tokens, beams=beams).to(where)
    author = f"{model} ({captioner.id}), prompt {captioner.prompt!r}, max_tokens {max_tokens}, beams {beams}"
    with bars() as bar:
        bar.say(f"captioning {len(source):,} images with {model}, on {where}")
        made = caption_all(
            source, captioner, place, author=author, batch=batch, progress=lambda done, n: bar("captions", done, n)
        )
    before = f", {made.before} of them done before" if made.before else ""
    typer.echo(f"captions   {place}: {made.captions} of {made.captions + len(made.rejects)} images{before}")
    if made.rejects:
        path, reason = next(iter(made.rejects.items()))
        typer.echo(f"rejects    {place.with_suffix('.rejects.jsonl')}: {len(made.rejects)}, such as {path}: {reason}")
    typer.echo(f"in use     {_use(data, out)}")


def _use(data: str, out: Path | None) -> str:
    """How training reads them."""
    table = f" data.synthetic_table={out}" if out is not None else ""
    return f"--data {data}{table} data.synthetic_share=0.5   (the default)"
