"""`ditkit estimate`: memory, disk and time of a training run before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from ditkit.cli.keys import Keyed
from ditkit.cli.show import print_table
from ditkit.cli.train import Data, Device, Overrides, Spec

if TYPE_CHECKING:
    from ditkit.recipes.estimate import Estimate


class Command(Keyed):
    """Every option as it stands."""

    keys: ClassVar[Mapping[str, str]] = {"start": "start", "text": "text"}


def estimate(
    recipe: Spec,
    overrides: Overrides = None,
    data: Data = None,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Devices that train together.")] = 1,
    device_memory: Annotated[
        float | None, typer.Option("--device-memory", min=0, help="GB of one. Default: what is free here.")
    ] = None,
    gpu: Annotated[str | None, typer.Option("--gpu", help="A card by its name: H100, A100, RTX 4090.")] = None,
    utilisation: Annotated[
        float | None, typer.Option("--utilisation", min=0.001, max=1, help="Share of its stated peak. Default: ours.")
    ] = None,
    bench: Annotated[Path | None, typer.Option("--bench", help="A result file of ditkit bench train.")] = None,
    device: Device = "auto",
) -> None:
    """Predict what training takes. Nothing is loaded, allocated or downloaded; it says what it assumes.

    Memory is counted from a step whose tensors have no numbers. Time comes from a measurement (--bench), else from
    operations and an assumed share of the device's stated peak. With --data also the size of a cache of these images,
    and model and classes follow the data; a cache given as --data needs no codec and no teachers.

    Example: ditkit estimate repa.xl_2_256 training.precision=bf16 training.compile=true --processes 8 --gpu H200
    """
    from ditkit.recipes.build import pick_device
    from ditkit.recipes.choose import choose
    from ditkit.recipes.estimate import assumed_rate, measured_rate
    from ditkit.recipes.estimate import estimate as predict
    from ditkit.recipes.estimate_data import fitted
    from ditkit.recipes.memory import available

    if bench is not None and (gpu or utilisation):
        raise ValueError("--bench is a measurement: leave out --gpu and --utilisation")
    chosen = choose(recipe, overrides or [], data=data)
    chosen, images, cached = fitted(chosen, overrides or []) if data is not None else (chosen, None, False)
    where = pick_device(device)
    rate = measured_rate(bench, chosen) if bench else assumed_rate(chosen, where, gpu, utilisation)
    found = predict(chosen, rate, processes=processes, images=images, from_cache=cached)
    there = 1e9 * device_memory if device_memory else None if gpu else available(where)
    print_estimate(chosen.name or recipe, found, there)


def print_estimate(name: str, found: Estimate, there: float | None) -> None:
    """Memory of a process, disk, then time, and what is assumed."""
    from ditkit.recipes.estimate import fits
    from ditkit.recipes.inspect import gib

    memory = found.memory
    lines = [
        ("weights", memory.weights), ("optimizer", memory.moments), ("averages", memory.averages),
        ("activations and gradients", memory.working), ("weights gathered from shards", memory.gathered),
        ("codec, teachers, reference", memory.frozen.weights), ("while encoding", memory.frozen.encoding),
        ("reserve of the allocator", memory.reserve), ("at most", memory.total),
    ]  # fmt: skip
    print_table((f"{name}, on a device", ""), [(what, gib(size)) for what, size in lines if size], right=(1,))
    verdict = {
        True: "fits",
        False: "does not fit: set training.micro_batch, model.checkpointing=true or fsdp",
        None: "",
    }
    if there is not None:
        typer.echo(f"of {gib(there)}: {verdict[fits(memory, there)]}")
    typer.echo(f"a checkpoint {gib(memory.checkpoint)}, on disk at most {gib(found.disk)}")
    if found.cache is not None:
        typer.echo(f"a cache of {found.images:,} images (ditkit encode) {gib(found.cache)}")
    typer.echo(
        f"{found.flops / 1e12:.3g} TFLOP an image, {found.images_a_second:,.4g} images/s on {found.processes} "
        f"{'device' if found.processes == 1 else 'devices'}: {span(found.seconds)}"
        + (f", {found.device_hours:,.1f} device-hours" if found.processes > 1 else "")
    )
    typer.echo(found.how)
    for line in found.assumed:
        typer.echo(line)


def span(seconds: float) -> str:
    """Time for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
