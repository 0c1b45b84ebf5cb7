"""`ditkit bench`: how fast sampling is on this machine, on random weights, as a table and a file of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from ditkit.cli.keys import Keyed
from ditkit.cli.show import print_table
from ditkit.cli.train import Device

if TYPE_CHECKING:
    from ditkit.recipes.benches.bench import BenchSettings

Number = int | float
RESULTS = Path("runs/bench")
RECIPE = "ddt.xl_2_256"
MATTER = ("model.", "sampling.", "objective.")  # of a recipe, what a benchmark of sampling can see


class Command(Keyed):
    """`--every 4` is another spelling of `every=4`; so for the other keys that are not options."""

    keys: ClassVar[Mapping[str, str]] = {key: key for key in ("warmup", "seed", "peak", "every", "against")}


def bench(
    what: Annotated[str, typer.Argument(help="sampling or sharing.", metavar="sampling|sharing")],
    words: Annotated[
        list[str] | None,
        typer.Argument(help=f"A recipe (default {RECIPE}), then keys; see below.", metavar="[RECIPE] [KEY=VALUE]..."),
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Images drawn together. Default: 8.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Solver steps of a run. Default: 5.")] = None,
    repeats: Annotated[
        int | None, typer.Option("--repeats", help="Runs of each kind, in turn. Default: 10 s of them.")
    ] = None,
    precision: Annotated[str | None, typer.Option("--precision", help="fp32, or bf16 (autocast).")] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="CPU threads. Default: as PyTorch chooses.")] = None,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option("--out", help="New .json file. Default: in runs/bench.")] = None,
) -> None:
    """Measure how fast sampling is. Weights are random: nothing is needed, and nothing is loaded but the recipe.

    sampling: the recipe's sampler on its network: what the step loop (solver, guidance, noise) adds to the network's
    own time, evaluations, images and multiply-accumulates a second.

    sharing: DDT without sharing, with its encoder at one evaluation in `every`, and SiT of the same size, taking turns:
    the speed-up beside the one that multiply-accumulates predict. Euler, no guidance.

    Further keys, as KEY=VALUE or --KEY VALUE: warmup (1: calls before the clock starts), seed, peak (TFLOP/s that the
    device's maker states), every (5), against (a recipe instead of SiT, or none); model.* of the recipe, and where its
    sampler is measured sampling.*, but for its steps.

    Example: ditkit bench sampling sit.xl_2_256 --batch 4 --precision bf16 --peak 989

    Example: ditkit bench sharing ddt.xl_2_256 --steps 10 --every 5 --repeats 3 --out sharing.json
    """
    import json

    from ditkit.cli.progress import bars
    from ditkit.config import override
    from ditkit.files import write_text
    from ditkit.recipes import recipe as find_recipe
    from ditkit.recipes.benches.bench import Bench, public_name
    from ditkit.recipes.benches.registry import measure
    from ditkit.recipes.build import pick_device

    options = {"batch": batch, "steps": steps, "repeats": repeats, "precision": precision, "threads": threads}
    given = {key: value for key, value in options.items() if value is not None}
    spec, own, keys = sort_words(words or [])
    check_sampling(what, keys)
    # without alignment, which is no part of sampling but would refuse networks with fewer blocks
    chosen = override(find_recipe(spec).with_({"align": None, "teachers": (), "unpublished": ()}), keys)
    settings, where = bench_settings(own, given), pick_device(device)
    command = ["ditkit bench", what, public_name(chosen), *(f"{k}={v}" for k, v in given.items()), *own, *keys]
    file = result_file(out, f"{what}-{public_name(chosen)}-{where.type}")
    with bars() as bar:
        found = measure(what, Bench(chosen, settings, where), " ".join(command), bar)
    write_text(file, json.dumps(found, indent=1, allow_nan=False) + "\n")
    print_result(found)
    typer.echo(f"numbers: {file}")


def sort_words(words: list[str]) -> tuple[str, list[str], list[str]]:
    """[RECIPE] [KEY=VALUE]... -> (recipe, the benchmark's keys, the recipe's keys); ValueError for anything else."""
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise ValueError(f"bench: one recipe, then KEY=VALUE; found {' '.join(names)}")
    keys = [word for word in words if "=" in word]
    seen = [key for key in keys if key.startswith(MATTER)]
    own = [key for key in keys if key not in seen]
    if strange := [key for key in own if "." in key.partition("=")[0]]:
        raise ValueError(
            f"bench: {strange[0]} changes nothing here: of a recipe only model.*, sampling.* and objective.* matter"
        )
    return (names[0] if names else RECIPE), own, seen


def check_sampling(what: str, keys: Sequence[str]) -> None:
    """ValueError for a key of the sampler that the benchmark does not look at."""
    for text in keys:
        if what == "sharing" and text.startswith("sampling."):
            raise ValueError(f"bench sharing: {text} has no use here: it samples with Euler without guidance")
        if text.partition("=")[0].strip() == "sampling.steps":
            raise ValueError(f"bench: {text} has no use here: the steps of a run are --steps")


def bench_settings(own: list[str], given: Mapping[str, object]) -> BenchSettings:
    """The settings of KEY=VALUE and options; SettingsError or ValueError, one line."""
    from ditkit.config import override
    from ditkit.recipes.benches.bench import BenchSettings

    for text in own:
        if (key := text.partition("=")[0].strip()) in given:
            raise ValueError(f"--{key} {given[key]} and {text}: give one of the two")
    return override(BenchSettings(), own).with_(given)


def result_file(out: Path | None, name: str) -> Path:
    """--out, or a free name in runs/bench: a measurement replaces none. FileExistsError or Unwritable, in one line."""
    from datetime import UTC, datetime

    from ditkit.recipes.place import check_writable

    if out is not None:
        check_writable(out.parent)
        if out.exists():
            raise FileExistsError(f"{out}: exists already; a newer measurement is a newer file: another --out")
        return out
    check_writable(RESULTS)
    stem = f"{datetime.now(UTC).date().isoformat()}-{name}"
    names = (f"{stem}{'' if i == 1 else f'-{i}'}.json" for i in count(1))
    return next(file for file in (RESULTS / name for name in names) if not file.exists())


def print_result(found: dict) -> None:
    """What was measured and how, in a line, then the table of its benchmark."""
    settings, results, environment = found["settings"], found["results"], found["environment"]
    sampler = results["sampler"]
    typer.echo(
        f"{found['recipe']}, random weights: {sampler['solver']}, {sampler['steps']} steps, batch {settings['batch']}, "
        f"{settings['precision']}, on {environment['device']} ({environment['cpu']}, threads: {environment['threads']})"
    )
    {"sampling": print_sampling, "sharing": print_sharing}[found["what"]](results)


def print_sampling(results: dict) -> None:
    """Times, the loop's share and rates: median, least and most."""
    rows = results["rows_a_call"]
    batch = f"{rows[0]} rows" if rows[0] == rows[1] else f"{rows[0]} to {rows[1]} rows"
    named = {
        f"network call of {batch}, s": "seconds_a_call",
        "run, s": "seconds_a_run",
        "step loop over network, %": "loop_percent",
        "  drawing noise, %": "noise_percent",
        "evaluations/s": "evaluations_a_second",
        "images/s": "images_a_second",
        "network GMAC/s": "gmacs_a_second",
        "  of the stated peak, %": "peak_percent",
    }
    lines = [(name, *cells(results[key])) for name, key in named.items() if results[key] is not None]
    print_table(("", "median", "least", "most", "of"), lines, right=(1, 2, 3, 4))
    typer.echo(f"{results['gmacs_an_evaluation']:.4g} GMACs an evaluation, {results['evaluations_an_image']} an image")


def print_sharing(results: dict) -> None:
    """Times of every side, then measured speed-ups beside predicted ones."""
    lines = []
    for name, arm in results["arms"].items():
        whole, alone = arm["seconds_with_encoder"], arm["seconds_without_encoder"]
        lines.append(
            (name, span(arm["seconds_a_run"]), span(whole), span(alone), f"{arm['gmacs_a_run']:.4g}",
             f"{arm['gmacs_a_second']['median']:.4g}", f"{arm['loop_percent']['median']:.2f}")
        )  # fmt: skip
    names = ("", "run, s", "with encoder, s", "without, s", "GMACs a run", "GMAC/s", "loop, %")
    print_table(names, lines, right=(1, 2, 3, 4, 5, 6))
    typer.echo("")
    gains = [
        (f"{name} over {base}", f"{s['measured']:.3f}", f"{s['by_evaluation']:.3f}", f"{s['predicted']:.3f}",
         f"{s['attained_percent']:.1f}")
        for name, over in results["speedup"].items() for base, s in over.items()
    ]  # fmt: skip
    print_table(("speed-up", "measured", "of medians", "predicted", "attained, %"), gains, right=(1, 2, 3, 4))
    same = "bit-equal" if results["bit_equal"] else "NOT bit-equal"
    typer.echo(f"encoder at evaluations {results['schedule']}; kept and remade modulations: latents {same}")


def cells(spread: dict[str, Number]) -> tuple[str, ...]:
    """Median, least, most and number of a spread."""
    return (*(f"{spread[key]:.4g}" for key in ("median", "least", "most")), str(spread["n"]))


def span(spread: dict[str, Number] | None) -> str:
    """ "2.31 (2.28-2.40)"; the median alone where there is one number."""
    if spread is None:
        return "-"
    one = f"{spread['median']:.3g}"
    return one if spread["n"] == 1 else f"{one} ({spread['least']:.3g}-{spread['most']:.3g})"
