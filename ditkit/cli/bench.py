"""`ditkit bench`: how fast sampling is on this machine, on random weights, as a table and a file of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from ditkit.cli.bench_tables import print_result
from ditkit.cli.keys import Keyed
from ditkit.cli.train import Device

if TYPE_CHECKING:
    from ditkit.recipes import Recipe
    from ditkit.recipes.benches.bench import BenchSettings

RESULTS = Path("runs/bench")
RECIPE = "ddt.xl_2_256"
SMALL = "sit.s_2"  # what is trained where no recipe is named
_SAMPLED, _TRAINED = ("model.", "sampling.", "objective."), ("model.", "objective.", "training.", "align.")
_DATA = ("data.", "codec.", "teachers.", "text.")
MATTER = {
    "sampling": _SAMPLED, "sharing": _SAMPLED, "train": (*_TRAINED, *_DATA), "attention": ("model.",),
    "encode": ("model.", "align.", "codec.", "teachers."), "evaluation": ("model.", "codec."),
    "loader": ("data.", "codec.", "model."),
}  # fmt: skip  # of a recipe, what each benchmark can see


class Command(Keyed):
    """`--every 4` is another spelling of `every=4`; so for the other keys that are not options."""

    keys: ClassVar[Mapping[str, str]] = {
        key: key
        for key in (
            *("warmup", "seed", "peak", "every", "against", "ceiling", "seconds", "extractor", "samples", "width"),
            *("data", "compare"),
        )
    }


def bench(
    what: Annotated[
        str,
        typer.Argument(help="train, sampling, sharing, encode, evaluation, loader or attention.", metavar="BENCHMARK"),
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help=f"A recipe (default {RECIPE}; {SMALL} but for sampling and sharing), then keys; see below.",
            metavar="[RECIPE] [KEY=VALUE]...",
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", help="Images at once. Default: 8; train: the recipe's.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps of a run. Default: 5.")] = None,
    repeats: Annotated[
        int | None, typer.Option("--repeats", help="Runs of each kind, in turn. Default: 10 s of them.")
    ] = None,
    precision: Annotated[str | None, typer.Option("--precision", help="fp32, or bf16 (autocast).")] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="CPU threads. Default: as PyTorch chooses.")] = None,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option("--out", help="New .json file. Default: in runs/bench.")] = None,
) -> None:
    """Measure how fast this machine is at a part of the work. Weights are random: nothing is downloaded.

    train: images/s of the recipe's training, parts of a step, memory, shares of the maker's peak and of what matrix
    products reach alone; --compare: in turn with plain fp32; --data PATH instead of random numbers. sampling: what the
    step loop adds to the network. sharing: DDT with its encoder at one evaluation in `every`, beside DDT and SiT.
    encode: codec and teachers. evaluation: extractor and metrics. loader: data alone. attention: backends, head widths.

    Further keys, as KEY=VALUE or --KEY VALUE: warmup (1: calls before the clock starts), seed, peak (TFLOP/s that the
    device's maker states), every, against (a recipe instead of SiT, or none), ceiling, data, compare, seconds (of one
    measurement of the loader), extractor, samples, width; and what the benchmark looks at of the recipe.

    Example: ditkit bench train sit.s_2 --batch 16 --compare training.compile=true

    Example: ditkit bench sampling sit.xl_2_256 --batch 4 --precision bf16 --peak 989
    """
    from ditkit.cli.progress import bars
    from ditkit.recipes.benches.bench import Bench, public_name
    from ditkit.recipes.benches.registry import measure
    from ditkit.recipes.build import pick_device

    options = {"batch": batch, "steps": steps, "repeats": repeats, "precision": precision, "threads": threads}
    given = {key: value for key, value in options.items() if value is not None}
    spec, own, keys = sort_words(what, words or [])
    check_sampling(what, keys)
    own, data = split_data(own)
    chosen = choose_recipe(what, spec, keys, data)
    settings, where = bench_settings(own, given), pick_device(device)
    command = ["ditkit bench", what, public_name(chosen), *(f"{k}={v}" for k, v in given.items()), *own, *keys]
    file = result_file(out, f"{what}-{public_name(chosen)}-{where.type}")
    with bars() as bar:
        found = measure(what, Bench(chosen, settings, where), " ".join(command), bar)
    keep(found, file)


def keep(found: dict, file: Path) -> None:
    """The numbers into the file, the table to the reader."""
    import json

    from ditkit.files import write_text

    write_text(file, json.dumps(found, indent=1, allow_nan=False) + "\n")
    print_result(found)
    typer.echo(f"numbers: {file}")


def choose_recipe(what: str, spec: str, keys: list[str], data: str | None) -> Recipe:
    """The recipe as the benchmark looks at it.

    Without alignment where nothing is trained: it is no part of sampling, but would refuse networks of fewer blocks.
    """
    from ditkit.config import override
    from ditkit.recipes import recipe as find_recipe
    from ditkit.recipes.choose import choose

    if what in ("train", "loader"):
        return choose(spec, keys, data=data)
    recipe = find_recipe(spec)
    return override(
        recipe if what == "encode" else recipe.with_({"align": None, "teachers": (), "unpublished": ()}), keys
    )


def sort_words(what: str, words: list[str]) -> tuple[str, list[str], list[str]]:
    """[RECIPE] [KEY=VALUE]... -> (recipe, the benchmark's keys, the recipe's keys); ValueError for anything else."""
    from ditkit.recipes.benches.registry import check_known

    check_known(what)
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise ValueError(f"bench: one recipe, then KEY=VALUE; found {' '.join(names)}")
    keys = [word for word in words if "=" in word]
    seen = [key for key in keys if key.startswith(MATTER[what])]
    own = [key for key in keys if key not in seen]
    if strange := [key for key in own if "." in key.partition("=")[0]]:
        matter = [f"{name}*" for name in MATTER[what]]
        few = f"{', '.join(matter[:-1])} and {matter[-1]}" if matter[1:] else matter[0]
        verb = "matter" if matter[1:] else "matters"
        raise ValueError(f"bench: {strange[0]} changes nothing here: of a recipe only {few} {verb}")
    return (names[0] if names else RECIPE if what in ("sampling", "sharing") else SMALL), own, seen


def split_data(own: list[str]) -> tuple[list[str], str | None]:
    """data=PATH apart; what is left of it among the benchmark's keys is its name, so that results name no folder."""
    found = [text.partition("=")[2].strip() for text in own if text.partition("=")[0].strip() == "data"]
    rest = [text for text in own if text.partition("=")[0].strip() != "data"]
    return ([*rest, f"data={Path(found[-1]).name}"], found[-1]) if found else (rest, None)


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
