"""The tables of `ditkit bench`."""

from __future__ import annotations

import typer

from ditkit.cli.show import print_table

Number = int | float


def print_result(found: dict) -> None:
    """What was measured and how, in a line, then the table of its benchmark."""
    settings, results, environment = found["settings"], found["results"], found["environment"]
    sampler = results.get("sampler")
    what = f"{sampler['solver']}, {sampler['steps']} steps, " if sampler else ""
    typer.echo(
        f"{found['recipe']}, random weights: {what}batch {settings['batch']}, "
        f"{settings['precision']}, on {environment['device']} ({environment['cpu']}, threads: {environment['threads']})"
    )
    tables = {
        "sampling": print_sampling, "sharing": print_sharing, "train": print_training, "encode": print_encoding,
        "evaluation": print_evaluation, "loader": print_loader, "attention": print_attention,
    }  # fmt: skip
    tables[found["what"]](results)


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


def print_training(results: dict) -> None:
    """Every side's times, rates and parts; then the shares of peak and ceiling."""
    arms = results["arms"]
    lines = [
        (name, span(arm["seconds_a_step"]), f"{arm['images_a_second']['median']:.4g}", f"{arm['tflops_a_second']:.4g}",
         "-" if arm["peak_memory_gib"] is None else f"{arm['peak_memory_gib']:.2f}", told(arm["settings"]))
        for name, arm in arms.items()
    ]  # fmt: skip
    if alone := results["products"]:
        lines.append(("products alone", span(alone["seconds_a_step"]), "", "", "", ""))
    names = ("", "step, s", "images/s", "TFLOP/s", "peak, GiB", "with")
    print_table(names, lines, right=(1, 2, 3, 4))
    typer.echo("")
    parts = [name for name in next(iter(arms.values()))["parts"]]
    rows = [
        (part, *(f"{1000 * arm['parts'][part]['median']:.3g}" for arm in arms.values()))
        for part in parts
        if any(arm["parts"][part]["median"] for arm in arms.values())
    ]
    print_table(("ms a step", *arms), rows, right=tuple(range(1, 1 + len(arms))))
    for arm in arms.values():
        for line in arm["said"]:
            typer.echo(line)
    typer.echo(f"{results['flops_a_step'] / 1e12:.4g} TFLOP a step; data: {results['data']}")
    if peak := results["peak"]:
        typer.echo(f"{peak['percent']:.1f} % of {peak['tflops']:.4g} TFLOP/s ({peak['source']})")
    if alone:
        typer.echo(
            f"{alone['percent']:.1f} % of what its own matrix products reach alone, {alone['square_percent']:.1f} % of "
            f"one {alone['square']['side']}-square product ({alone['square']['tflops_a_second']:.4g} TFLOP/s)"
        )
    if gain := results.get("speedup"):
        turns = gain["turns"]
        typer.echo(
            f"{gain['median']:.2f} times plain fp32 (by the fastest turns {gain['least']:.2f}; turn by turn "
            f"{turns['least']:.2f} to {turns['most']:.2f})"
        )


def told(settings: dict) -> str:
    """The switches that are on."""
    compiled = "compiled" + ("" if settings["backend"] == "inductor" else f" ({settings['backend']})")
    mode = settings["compile_mode"]
    on = [settings["precision"], *(["TF32"] if settings["tf32"] else []), *(["float8"] if settings["float8"] else [])]
    if settings["compile"]:
        on.append(compiled + ("" if mode == "default" else f" {mode}"))
    return ", ".join(on)


def print_encoding(results: dict) -> None:
    """Images a second of codec and teachers, and of all of them one after the other."""
    lines = [
        (name, span(part["seconds_a_batch"]), f"{part['images_a_second']:.4g}", part["what"])
        for name, part in results["parts"].items()
    ]
    print_table(("", "batch, s", "images/s", "network"), lines, right=(1, 2))
    typer.echo(f"together {results['images_a_second']:.4g} images/s of {'x'.join(map(str, results['image']))}")


def print_evaluation(results: dict) -> None:
    """Features a second, and seconds of each metric."""
    typer.echo(f"{results['extractor']}: {results['images_a_second']:.4g} images/s")
    rows, width = results["features"]
    lines = [(name, f"{seconds:.4g}") for name, seconds in results["seconds_of_metrics"].items()]
    print_table((f"of two sets of {rows:,} x {width:,}", "s"), lines, right=(1,))


def print_loader(results: dict) -> None:
    """Samples a second by workers, with and without decoding."""
    lines = [
        ("yes" if row["decode"] else "no", str(row["workers"]), f"{row['samples_per_s']:.4g}",
         f"{row['first_batch_s']:.3g}")
        for row in results["rows"]
    ]  # fmt: skip
    print_table(("decode", "workers", "samples/s", "first batch, s"), lines, right=(1, 2, 3))


def print_attention(results: dict) -> None:
    """Seconds forward and backward by backend and padded head width, the fastest first."""
    order = sorted(results["seconds"].items(), key=lambda item: item[1]["median"])
    lines = [(name, span(found), f"{results['largest_difference'][name]:.1e}") for name, found in order]
    print_table(("backend, head width", "forward and backward, s", "difference"), lines, right=(1, 2))
    if results["refused"]:
        typer.echo(f"not here: {', '.join(results['refused'])}")
