"""`ditkit evaluate --reconstruct CODEC --data FOLDER`: how well a codec gives images back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import typer

from ditkit.cli.evaluate_cost import print_cost
from ditkit.cli.evaluate_words import print_scores


def reconstruct_by(
    codec: str, data: str, out: str | None, extractors: Sequence[str], keys: Sequence[str], device: str
) -> None:
    """Score what the codec makes of the images, print and store it. keys: n, size, protocol, posterior, seed, uint8."""
    from ditkit.cli.progress import bars
    from ditkit.config import override
    from ditkit.evaluation.named import INCEPTION, find_protocol
    from ditkit.recipes.build import pick_device
    from ditkit.recipes.choose import parse_size
    from ditkit.recipes.place import check_writable
    from ditkit.recipes.reconstruct import Reconstruction, open_originals, reconstruct, write
    from ditkit.recipes.scoring import load_extractors

    started = time.monotonic()
    given = dict(key.split("=", 1) for key in keys)
    n, size = given.pop("n", None), given.pop("size", None)
    if n is not None and not (n.isdecimal() and int(n)):
        raise ValueError(f"n {n!r}: give a number of images")
    asked = override(Reconstruction(what=codec, data=data), [f"{key}={value}" for key, value in given.items()])
    folder = Path(out or f"reconstructions/{codec.strip('/').replace('/', '--')}")
    check_writable(folder)
    named, names = find_protocol(asked.protocol), list(extractors)
    if named and named.extractor == INCEPTION and not any(x.partition(":")[0] == "inception" for x in names):
        names.insert(0, "inception")
    where = pick_device(device)
    spaces = load_extractors(names, where)
    network, source = open_originals(codec, data, where, None if size is None else parse_size(size))
    with bars() as bar:
        scores = reconstruct(
            network, source, asked, extractors=spaces, n=None if n is None else int(n), device=where, bar=bar,
            say=bar.say,
        )  # fmt: skip
    paths = write(scores, network, source, folder, asked, device=where)
    print_scores(scores)
    print_cost(started, where)
    for path in paths:
        typer.echo(f"written    {path}")
