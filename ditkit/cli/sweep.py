"""`ditkit sweep`: which guidance scale, interval and number of steps scores best."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated, ClassVar

import typer

from ditkit.cli.evaluate import Data, Extractors
from ditkit.cli.keys import KEYS, Keyed
from ditkit.cli.processes import launch, note
from ditkit.cli.sample import Device, Source, What
from ditkit.cli.show import print_table

IMAGES = 1000  # of each point, where --n does not say
Keys = Annotated[list[str] | None, typer.Argument(help="seeds=3 steps=10,25 ...; see below.", metavar="[KEY=VALUE]...")]


class Command(Keyed):
    """`--seeds 3` is another spelling of seeds=3, `--steps` takes several numbers, `--processes N` starts N of it."""

    keys: ClassVar = {**KEYS, **{key: key for key in ("steps", "seeds", "n", "out", "reference", "protocol")}}

    def parse_args(self, ctx, args):
        return super().parse_args(ctx, note(ctx, args))

    def invoke(self, ctx):
        launch(ctx, IMAGES)
        return super().invoke(ctx)


def sweep(
    what: What,
    keys: Keys = None,
    data: Data = None,
    source: Source = None,
    extractor: Extractors = None,
    device: Device = "auto",
) -> None:
    """Sample at several guidance scales and score each: table, best point, and a page with a plot of every score.

    Besides the options below:

    --guidance 1,1.5,2,4: scales, 1 is none. Default: 1,1.25,1.5,2,3,4.

    --steps 10,25,50: of the sampler. Default: the recipe's.

    --interval 0,0.7: where guidance acts, 0 = data; may be repeated.

    --n 1000: images of each point and seed. --seeds 3: limits are over seeds s, s+1, s+2, else over one seed's samples.

    --protocol NAME, --reference FILE: as of `ditkit evaluate`. --out FOLDER: default RUN/sweeps/...

    --processes N share the sampling (or torchrun, with n=1000: it takes --n for its own); the first process scores.

    Every combination is a point. Samples are those of `ditkit sample`, in the same folders: what is there is not made
    again, a sweep that was stopped goes on, one with more points makes those alone.

    Further keys, as KEY=VALUE or --KEY VALUE: those of `ditkit sample` (seed, classes, solver, sampling.*, ...) and of
    `ditkit evaluate` (real, data.*, classifier.*).

    Example: ditkit sweep runs/mine --guidance 1,1.5,2,4 --steps 10,25,50 --seeds 3 --n 1000 --data ./my_images
    """
    from ditkit.cli.progress import bars
    from ditkit.ranks import find_ranks, together
    from ditkit.recipes.build import pick_device
    from ditkit.recipes.sweep import RESULT, make_plan, run_sweep
    from ditkit.recipes.sweep_page import BEST, best_lines, columns, rows, summary, write_page

    words = [*(keys or []), *([] if data is None else [f"data={data}"])]
    with together(find_ranks()) as ranks:
        with ranks.agreed():
            plan = make_plan(
                what, words, ranks.device(pick_device(device)), source=source, names=extractor or ()
            )  # fmt: skip
        with bars() if ranks.first else nullcontext() as bar:
            say = _silent if bar is None else bar.say
            for note in plan.notes:
                say(note)
            found = run_sweep(plan, bar or _silent, say, ranks)
    if found is None:
        return
    print_table(columns(found), rows(found), right=(0, 2, 3))
    typer.echo("")
    print_table(BEST, best_lines(found), right=(3, 5))
    for line in summary(found):
        typer.echo(line)
    typer.echo(f"numbers    {plan.folder / RESULT}")
    typer.echo(f"page       {write_page(found, plan.folder)}")


def _silent(*_: object) -> None:
    """The other processes say nothing."""
