"""`ditkit train`: train a recipe on your images; the same command continues an interrupted run."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand

from ditkit.cli.keys import as_options, respell
from ditkit.cli.processes import launch, note

if TYPE_CHECKING:
    from ditkit.recipes import Recipe

Spec = Annotated[str, typer.Argument(help="repa.sit_s_2, mine.yaml, ./mine.py:big, or a run folder to continue.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="training.lr=2e-4 ...", metavar="[KEY=VALUE]...")]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="A folder of images, a .parquet file, digits, scenes, or (data.pairs) a .parquet or .jsonl of pairs.",
    ),
]
Size = Annotated[str | None, typer.Option("--size", help="Pixels: 256, or HEIGHTxWIDTH. Default: from the data.")]
Codec = Annotated[
    str | None,
    typer.Option(
        "--codec",
        help="pixels, ft-ema, ft-mse, sd3, flux, taesd, dc-ae-f32c32, a hub id or a folder (of `ditkit codec`).",
    ),
]
Teacher = Annotated[
    list[str] | None,
    typer.Option("--teacher", help="A folder of `ditkit teacher`, a hub id, dinov2-vit-b, or none. May be repeated."),
]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Optimizer steps of the whole run.")]
Out = Annotated[Path | None, typer.Option("--out", help="Run folder. Default: runs/NAME.")]
UNSHARED = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
SAVING = 900.0  # seconds that processes which were asked to stop have for their last checkpoint
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps, ...")]


class Command(TyperCommand):
    """A verb that reads `--start PATH` and `--text ENCODERS` as the overrides start=PATH and text=ENCODERS.

    `--processes N` starts it N times.
    """

    def parse_args(self, ctx, args):
        declared = {name for parameter in self.params for name in parameter.opts}
        words = respell(as_options(note(ctx, args), declared), set(), {"start": "start", "text": "text"})
        return super().parse_args(ctx, words)

    def invoke(self, ctx):
        launch(ctx, patience=SAVING)
        return super().invoke(ctx)


def train(
    recipe: Spec,
    overrides: Overrides = None,
    data: Data = None,
    out: Out = None,
    size: Size = None,
    codec: Codec = None,
    teacher: Teacher = None,
    steps: Steps = None,
    device: Device = "auto",
) -> None:
    """Train a recipe. Class count, size and channels come from your images.

    Seed, batch, learning rate and everything else are overrides: training.seed=1 training.batch=64. Ctrl-C saves; the
    same command continues.

    --start PATH begins from the weights of a run, an exported model or a published file (with start.source=ddt), at any
    resolution; start.weights=raw and start.step=N choose among a run's.

    Text models need captions (NAME.txt beside NAME.jpg, a table or parquet column, or data.caption="a photo of a
    {class}"); --text ENCODER (toy, toy-sd3, clip, sd3, clip:SOURCE, sd3:SOURCE or a pipeline's folder) names what reads
    them.
    evaluation.every=5000 evaluation.n=2000 scores the averaged weights while they train, as `ditkit evaluate` does.
    Preference tuning needs pairs (--data pairs.jsonl data.pairs=both, lines of winner, loser and caption).

    Several processes or GPUs train together, with the numbers of one: --processes 4, or torchrun --nproc-per-node 4 -m
    ditkit train ..., on several machines with its rendezvous. training.parallel.kind=fsdp cuts weights into shards.

    Example: ditkit train repa.sit_s_2 --data ./my_images --codec pixels --teacher runs/teacher
    """
    from contextlib import nullcontext

    from ditkit.cli.progress import bars
    from ditkit.ranks import device_backend, find_ranks, together
    from ditkit.recipes.build import pick_device
    from ditkit.recipes.choose import choose
    from ditkit.recipes.run import train as train_run

    keys = overrides or []
    with together(find_ranks(), device_backend()) as ranks:
        with ranks.agreed():
            chosen = choose(recipe, keys, data=data, size=size, codec=codec, teachers=teacher or (), steps=steps)
            folder = out or run_folder(recipe, chosen)
            where = ranks.device(pick_device(device))
        if ranks.first and (doubt := restarts_in_doubt(os.environ)):
            typer.echo(f"ditkit: {doubt}", err=True)
        with bars() if ranks.first else nullcontext() as bar:
            on_step = losses(bar, chosen.training.steps, chosen.training.log_every) if bar is not None else None
            say = bar.say if bar is not None else None  # the first process speaks for all
            state = train_run(
                chosen, folder, where, keep=set_keys(keys), on_step=on_step, say=say, bar=bar, ranks=ranks
            )  # fmt: skip
    if not ranks.first:
        return
    typer.echo(f"step {state.step}: {folder}")
    typer.echo(f"samples: {folder / 'samples' / f'{state.step:07d}.png'}   report: {folder / 'report.html'}")
    words = '--prompt "..."' if chosen.text is not None else "--n 64"
    typer.echo(f"next: ditkit sample {folder} {words}")


def restarts_in_doubt(environment: Mapping[str, str]) -> str | None:
    """A line if torchrun is to start killed processes again and is not set up for it (pytorch#135712)."""
    if environment.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0" or environment.get(UNSHARED, "0") == "1":
        return None
    return (
        f"torchrun --max-restarts often fails to restart without {UNSHARED}=1 in its own environment: "
        f"{UNSHARED}=1 torchrun ...; a start by hand continues the run in any case"
    )


def losses(show: Callable[..., None], steps: int, every: int) -> Callable[[int, dict[str, float]], None]:
    """on_step of a training: shows the mean loss since the last row of metrics.jsonl, which gets it `every` steps."""
    from ditkit.training.log import Meter

    meter = Meter()

    def on_step(step: int, values: dict[str, float]) -> None:
        if math.isfinite(values["loss"]):
            meter.add({"loss": values["loss"]})
        mean = meter.sums["loss"][0] / meter.steps if meter.steps else math.nan
        show("training", step, steps, f"loss {mean:.4f} (mean of {meter.steps})")
        if step % every == 0:
            meter.take()

    return on_step


def run_folder(spec: str, chosen: Recipe) -> Path:
    """The run that is continued, or runs/NAME."""
    return Path(spec) if Path(spec).is_dir() else Path("runs") / slug(chosen.name)


def set_keys(overrides: list[str]) -> set[str]:
    """The dotted keys that a user set, which the data may not change."""
    return {text.partition("=")[0].strip() for text in overrides}


def slug(name: str) -> str:
    """A recipe's name as a folder name: "./mine.py:big" -> "mine-big"."""
    stem = Path(name.partition(":")[0])
    parts = [stem.stem if stem.suffix in (".py", ".yaml", ".yml", ".json") else stem.name, name.partition(":")[2]]
    return "-".join(part for part in parts if part)
