"""`ditkit sample`: pictures from a run, a model folder or a published checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from ditkit.cli.keys import FAMILIES, Keyed
from ditkit.cli.processes import launch, note

if TYPE_CHECKING:
    from ditkit.diffusion import SamplerSettings
    from ditkit.evaluation import Request
    from ditkit.ranks import Ranks
    from ditkit.recipes.load import Loaded

DEFAULT_N = 64

What = Annotated[
    Path,
    typer.Argument(
        help="A run, a folder of `ditkit convert`, or a published file (with --source).", metavar="RUN|FOLDER|FILE"
    ),
]
Keys = Annotated[
    list[str] | None,
    typer.Argument(help="seed=1 sampling.options.order=2 ...; see below.", metavar="[KEY=VALUE]..."),
]
Source = Annotated[
    str | None,
    typer.Option("--source", help=f"Family of a published file: {FAMILIES}."),
]
Count = Annotated[int | None, typer.Option("--n", help="Images.")]
Classes = Annotated[
    str | None,
    typer.Option("--classes", "--labels", help="random, balanced, or numbers or names: 207,360 (they take turns)."),
]
Guidance = Annotated[float | None, typer.Option("--guidance", help="Guidance scale; 1 is none. Default: the recipe's.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder. Default: RUN/samples/... (or samples/...).")]
Codec = Annotated[str | None, typer.Option("--codec", help="pixels, ft-ema, ft-mse, sd3, a hub id or a folder.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps, ...")]


class Command(Keyed):
    """`--processes N` starts the verb N times."""

    images: ClassVar = DEFAULT_N  # where --n does not say

    def parse_args(self, ctx, args):
        return super().parse_args(ctx, note(ctx, args))

    def invoke(self, ctx):
        launch(ctx, self.images)
        return super().invoke(ctx)


def sample(
    what: What,
    keys: Keys = None,
    source: Source = None,
    n: Count = None,
    classes: Classes = None,
    guidance: Guidance = None,
    codec: Codec = None,
    out: Out = None,
    device: Device = "auto",
) -> None:
    """Sample images: PNG files and samples.npz in a folder, a contact sheet beside it. The same command continues.

    Sampler, guidance and codec are the recipe's unless you say otherwise; a published file brings those of its paper.

    Further keys, as KEY=VALUE or --KEY VALUE: seed, steps, solver, shift, interval=LOW,HIGH (guidance; 0 = data),
    weights=ema|raw, step (of a run), size=256 or HEIGHTxWIDTH, chunk, uint8=round|dit|sit|repa|ddt, heads, patch,
    encoder-blocks and align-depth (published files of other sizes), and sampling.* (sampling.options.order=2, ...).

    Text models: --prompt "two red circles" (may be repeated; 4 images of each), --prompts FILE (.jsonl; or .txt,
    one a line, blank lines are passed over), else captions of the data; --negative TEXT, --text ENCODERS, --without t5.

    --sharing RULE runs a DDT's encoder at some of the N evaluations and reuses its result between them: uniform:K or
    every:r, dp:K or velocity:K of what `ditkit analyze sharing` measured, or a schedule's .json file.
    keep_modulations=false takes less memory and more time.

    --exact: same bytes for any chunk, through batches of `rows` (16) images of which the last one is filled up.

    Several processes or GPUs share the work, and the files are those of one: --processes 3, or
    torchrun --standalone --nproc_per_node 3 -m ditkit sample RUN n=40 (torchrun takes --n for its own; on several
    machines, with a folder that all see).
    On a CPU that holds for equal threads a process: a folder keeps those that began it, OMP_NUM_THREADS sets them.

    Example: ditkit sample DiT-XL-2-256x256.pt --source dit --classes 207,360,387,974 --guidance 4 --seed 1
    """
    from contextlib import nullcontext
    from functools import partial

    from ditkit.cli.progress import bars
    from ditkit.ranks import find_ranks, together
    from ditkit.recipes.sampling import describe_sample, draw

    given = {"n": n, "classes": classes, "guidance": guidance, "codec": codec}
    with together(find_ranks()) as ranks:
        with ranks.agreed():
            loaded, sampling, notes, request, folder = _prepare(what, keys or [], given, source, out, device, ranks)
        with bars() if ranks.first else nullcontext() as bar:
            for note in notes:
                if bar is not None:
                    bar.say(note)
            progress = None if bar is None else partial(bar, "images")
            made, sheet = draw(loaded, sampling, request, folder, progress, ranks)
    for topic, text in describe_sample(loaded, made, sheet) if ranks.first else ():
        typer.echo(f"{topic:8s} {text}")


def _prepare(
    what: Path, keys: list[str], given: dict, source: str | None, out: Path | None, device: str, ranks: Ranks
) -> tuple[Loaded, SamplerSettings, list[str], Request, Path]:
    """Everything that can be refused, before an image is made: (model, sampler, notes, request, folder)."""
    from ditkit.recipes.build import pick_device
    from ditkit.recipes.place import check_writable
    from ditkit.recipes.sampling import (
        check_codec,
        choose_request,
        choose_sampler,
        folder_for,
        open_model,
        read_choices,
        split,
    )

    if out is not None:
        check_writable(out)
    own, sampler_keys = split(keys)
    choices = read_choices(own).with_({key: value for key, value in given.items() if value is not None})
    loaded = open_model(what, source, choices, ranks.device(pick_device(device)))
    sampling, notes = choose_sampler(loaded, choices, sampler_keys, what)
    request = choose_request(loaded, choices, DEFAULT_N)
    check_codec(loaded)
    return loaded, sampling, notes, request, out or folder_for(what, loaded, sampling, request)
