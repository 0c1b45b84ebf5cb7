"""`ditkit data`: make a data set better; each step is a sub-command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, TypeVar

import typer

from ditkit.cli.keys import Keyed
from ditkit.cli.train import Device

if TYPE_CHECKING:
    from ditkit.config import Settings
    from ditkit.data import DataSettings

S = TypeVar("S", bound="Settings")

app = typer.Typer(
    rich_markup_mode="rich",
    help="Make a data set better: find near-duplicates, filter, write synthetic captions. Nothing is ever deleted.",
    epilog="Example: ditkit data duplicates ./my_images",
)


DATA = "digits, a folder of images, a .zip, .tar or .parquet file, a folder of those, hub:ID."
Source = Annotated[str, typer.Argument(help=DATA)]
Words = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="How the data are read: data.table=x.csv.")
]


class Searching(Keyed):
    """`ditkit data duplicates`: its further keys."""

    keys: ClassVar[Mapping[str, str]] = {"linked": "linked", "partitions": "partitions"}


class Filtering(Keyed):
    """`ditkit data filter`: its further keys."""

    keys: ClassVar[Mapping[str, str]] = {
        f"{end}-{what}": f"{end}_{what}" for what in ("pixels", "words") for end in ("min", "max")
    }


@app.command("duplicates", cls=Searching)
def duplicates(
    data: Source,
    overrides: Words = None,
    extractor: Annotated[
        str | None,
        typer.Option(
            "--extractor",
            help="Compare by meaning, with the embeddings of this network (a `ditkit teacher` folder, clip, "
            "dinov2-vit-b, inception, ...); without it by looks, with a perceptual hash.",
        ),
    ] = None,
    radius: Annotated[int, typer.Option("--radius", min=0, max=96, help="By looks: bits of 256 that may differ.")] = 15,
    mirrored: Annotated[bool, typer.Option("--mirrored", help="By looks: mirrored copies are duplicates too.")] = False,
    cosine: Annotated[float, typer.Option("--cosine", help="By meaning: the smallest cosine of duplicates.")] = 0.95,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write. Default: NAME.duplicates here.")] = None,
    device: Device = "auto",
) -> None:
    """Find near-duplicates, group them into clusters, and write an index that keeps one image of each.

    Kept is the largest, of equal ones the first by name. OUT gets clusters.jsonl (members, distances, which is kept),
    clusters.png (the largest clusters to look at) and index.json, with which `data.index` trains on what is kept.
    Further keys, as KEY=VALUE or --KEY VALUE: linked (chain: all that are linked, however far; star: only neighbours of
    the one kept, as SD3), partitions (by meaning: compare within so many k-means parts only; SD3: 16000), data.KEY.

    Example: ditkit data duplicates ./my_images --radius 15
    """
    from ditkit.cli.progress import bars
    from ditkit.config import read_settings
    from ditkit.data.duplicate_clusters import DuplicateSettings
    from ditkit.recipes.build import pick_device
    from ditkit.recipes.curate import CLUSTERS, INDEX, PAGE, find_duplicates
    from ditkit.recipes.scoring import load_extractors

    asked = read_settings(DuplicateSettings, {"radius": radius, "mirrored": mirrored, "cosine": cosine})
    settings, opened = _read(asked, data, overrides)
    where, place = pick_device(device), out or _here(data, ".duplicates")
    network = None if extractor is None else load_extractors([extractor], where)[extractor]
    with bars() as bar:
        found = find_duplicates(opened, place, settings, network, where, bar)
    gone = found.images - found.kept - len(found.rejects)
    typer.echo(f"images     {found.images}: {found.kept} kept, {gone} duplicates, {len(found.rejects)} cannot be read")
    typer.echo(f"clusters   {place / CLUSTERS}: {found.clusters} of {found.members} images")
    if found.clusters:
        typer.echo(f"to look at {place / PAGE}")
    typer.echo(f"in use     --data {data} data.index={place / INDEX}")


@app.command("filter", cls=Filtering)
def filter_(
    data: Source,
    overrides: Words = None,
    min_side: Annotated[int | None, typer.Option("--min-side", min=1, help="Pixels of the shorter side.")] = None,
    max_ratio: Annotated[float | None, typer.Option("--max-ratio", min=1, help="Longer side over shorter.")] = None,
    least: Annotated[
        list[str] | None, typer.Option("--min-score", metavar="COLUMN=VALUE", help="Such as aesthetic=5. Repeatable.")
    ] = None,
    most: Annotated[
        list[str] | None, typer.Option("--max-score", metavar="COLUMN=VALUE", help="Such as unsafe=0.1. Repeatable.")
    ] = None,
    index: Annotated[
        list[str] | None, typer.Option("--index", metavar="FILE", help="Keep only what this index keeps. Repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="File to write. Default: NAME.index.json here.")] = None,
) -> None:
    """Choose images by size, shape, scores, captions and other indexes, and write an index of those that stay.

    Scores are columns of the images' table (CSV, JSONL, parquet, the .json of tar shards). --min-words 1 asks for a
    caption. Every rule says how many images it takes; those without a score, or whose size cannot be read, go too.
    Further keys, as KEY=VALUE or --KEY VALUE: min-pixels and max-pixels (height times width), min-words and max-words
    (of the longest caption), data.KEY (how the images are read).

    Example: ditkit data filter ./my_images --min-side 256 --max-ratio 2 --index my_images.duplicates/index.json
    """
    from ditkit.cli.progress import bars
    from ditkit.config import read_settings
    from ditkit.data.filters import FilterSettings
    from ditkit.recipes.curate import filter_data

    asked = {
        "min_side": min_side, "max_ratio": max_ratio, "at_least": _scores(least, "--min-score"),
        "at_most": _scores(most, "--max-score"), "indexes": tuple(index or ()),
    }  # fmt: skip
    settings, opened = _read(read_settings(FilterSettings, asked), data, overrides)
    place = out or _here(data, ".index.json")
    with bars() as bar:
        found = filter_data(opened, place, settings, bar)
    for rule in found.rules:
        typer.echo(f"{rule.takes:>10,} {rule.rule}{f' ({rule.more:,} more)' if rule.more != rule.takes else ''}")
    typer.echo(f"{found.kept:>10,} of {found.images:,} images stay: {place}")
    typer.echo(f"in use     --data {data} data.index={place}")


def _read(settings: S, data: str, overrides: list[str] | None) -> tuple[S, DataSettings]:
    """The settings with those KEY=VALUE that are theirs, and how DATA is read with the others (data.KEY=VALUE)."""
    from ditkit.config import override
    from ditkit.data import DataSettings

    words = [word.replace("-", "_", word.partition("=")[0].count("-")) for word in overrides or ()]
    own = [word for word in words if word.partition("=")[0].split(".")[0] in type(settings).model_fields]
    others = [word.removeprefix("data.") for word in words if word not in own]
    return override(settings, own), override(DataSettings(source=data), others)


def _here(data: str, ending: str) -> Path:
    """NAME + ending in the working folder, after the last part of the data's name."""
    name = data.rstrip("/").replace(":", "/").split("/")[-1]
    return Path((name if name.strip(".") else Path(data).resolve().name) + ending)


def _scores(given: list[str] | None, option: str) -> dict[str, float]:
    """["aesthetic=5"] -> {"aesthetic": 5.0}. ValueError, one line."""
    found = {}
    for text in given or ():
        column, equals, value = text.rpartition("=")
        try:
            found[column] = float(value)
        except ValueError:
            equals = ""
        if not equals or not column:
            raise ValueError(f"{option} {text}: COLUMN=VALUE is asked for, such as aesthetic=5")
    return found


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
    from ditkit.data import DataError, Folder, Hub, Parquet, Tar, caption_all, check_free, open_source, synthetic_path
    from ditkit.pretrained import load_captioner
    from ditkit.recipes.build import pick_device

    source, where = open_source(data), pick_device(device)
    if not isinstance(source, (Folder, Parquet, Tar, Hub)):
        raise DataError(f"data {data!r}: captions are written for a folder of images, a zip, tar or parquet files")
    if out is None and (isinstance(source, Hub) or "{" in data):
        raise DataError(f"data {data!r}: say by --out where the captions go, and train with data.synthetic_table")
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
