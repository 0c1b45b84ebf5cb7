"""`ditkit encode`: images become a cache of latents, features and embedded captions that `ditkit train` reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ditkit.cli import train as of_train
from ditkit.cli.processes import launch, note
from ditkit.cli.train import Codec, Data, Device, Overrides, Size, Spec, Teacher

if TYPE_CHECKING:
    from ditkit.data.cache_format import Manifest
    from ditkit.ranks import Ranks
    from ditkit.recipes.encode import Encoding

Out = Annotated[Path, typer.Option("--out", help="Folder of the cache; one that is begun is continued.")]
Shards = Annotated[
    str | None,
    typer.Option(
        "--shards",
        help="FIRST:END of one job of several: 0:40, 40:80, ...; the last END may be too large.",
    ),
]


class Command(of_train.Command):
    """`--processes N` starts the verb N times."""

    def parse_args(self, ctx, args):
        return super().parse_args(ctx, note(ctx, args))

    def invoke(self, ctx):
        launch(ctx)
        return super().invoke(ctx)


def encode(
    recipe: Spec, overrides: Overrides = None, data: Data = None, out: Out = Path("cache"), size: Size = None,
    codec: Codec = None, teacher: Teacher = None, shards: Shards = None, device: Device = "auto",
) -> None:  # fmt: skip
    """Encode all images once, as RECIPE would while it trains; then `ditkit train RECIPE --data cache`.

    Own keys: dtype=fp16|fp32|bf16|uint8 (of latents; pixels are kept exactly, as uint8), mirror=true (mirrored copies,
    for data.flip=true), features=fp16|bf16|fp32|int8 (of teachers; int8 has one scale a token), texts=fp16|bf16|fp32,
    precision=fp32|bf16 (in which the networks compute), shard=2048 and batch=64 (images; batch=8 takes less memory).
    All other KEY=VALUE are the recipe's. data.workers=N processes decode ahead.

    The same command goes on where it was interrupted, and makes damaged shards again; every byte is what an
    uninterrupted call writes. Images that cannot be used are listed in rejects.jsonl.

    Several processes or GPUs: --processes 4, torchrun --nproc-per-node 4 -m ditkit encode ..., or independent jobs
    with --shards 0:40, 40:80, ... on one folder.

    Example: ditkit encode repa.sit_s_2 --data ./my_images --codec pixels --teacher runs/teacher --out cache
    """
    from contextlib import nullcontext

    from ditkit.cli.progress import bars
    from ditkit.ranks import find_ranks, together
    from ditkit.recipes.encode import encode as write

    with together(find_ranks()) as ranks:
        with ranks.agreed():
            window = None if shards is None else parse_shards(shards)
            options = {"data": data, "size": size, "codec": codec, "teachers": teacher or ()}
            encoding = _open(recipe, overrides or [], options, out, device, ranks, window)
        with bars() if ranks.first else nullcontext() as bar:
            if bar is not None:
                for line in encoding.notes:
                    bar.say(line)
            made = write(encoding, window, ranks, bar, None if bar is None else bar.say)
    if ranks.first:
        _say(out, made, encoding, recipe)


def _open(
    recipe: str, words: list[str], options: dict, out: Path, device: str, ranks: Ranks, shards: range | None
) -> Encoding:
    """Everything that can be refused, before an image is encoded."""
    from ditkit.cli.train import set_keys
    from ditkit.config import override
    from ditkit.data.cache_format import Stored
    from ditkit.recipes.build import pick_device
    from ditkit.recipes.choose import choose
    from ditkit.recipes.encode import default_stored, open_encoding

    own = [word for word in words if word.partition("=")[0].strip() in Stored.model_fields]
    keys = [word for word in words if word not in own]
    chosen = choose(recipe, keys, **options)
    stored = override(default_stored(chosen), own)
    return open_encoding(chosen, out, ranks.device(pick_device(device)), stored, set_keys(keys), shards)


def parse_shards(text: str) -> range:
    """ "0:40" -> range(0, 40). ValueError for anything else."""
    first, colon, end = text.partition(":")
    if not (colon and first.isdecimal() and end.isdecimal() and int(first) < int(end)):
        raise ValueError(f"--shards {text!r}: write FIRST:END, such as 0:40 for the shards 0 to 39")
    return range(int(first), int(end))


def _say(out: Path, made: Manifest | None, encoding: Encoding, recipe: str) -> None:
    """What was made, and what comes next."""
    from ditkit.data.cache import describe
    from ditkit.data.cache_write import ranges, read_reports

    if made is None:
        plan = encoding.plan
        missing = sorted(set(range(plan.shards)) - read_reports(out, plan).keys())
        typer.echo(f"{out}: shards {ranges(missing)} of {plan.shards} are missing yet; other jobs, or the same command")
        return
    for line in describe(made):
        typer.echo(line)
    if made.counts.rejects:
        typer.echo(f"rejected images: {out / 'rejects.jsonl'}")
    typer.echo(f"cache: {out}   next: ditkit train {recipe} --data {out}{_options(made)}")


def _options(made: Manifest) -> str:
    """What `ditkit train` has to be told to fit the cache, as its options are written."""
    from ditkit.pretrained import CodecSettings

    codec = CodecSettings(**made.codec.settings)
    word = f"{codec.kind}:{codec.place}" if codec.kind not in ("kl", "pixels", "toy") else codec.place or codec.kind
    kinds = [(t.settings["kind"], t.settings["source"]) for t in made.teachers]
    named = [source if kind == "selftaught" else f"{kind}:{source}".rstrip(":") for kind, source in kinds]
    return f" --codec {word}" + "".join(f" --teacher {name}" for name in named)
