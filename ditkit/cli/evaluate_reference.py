"""`ditkit evaluate --make-reference FOLDER`: one's own images as a file that scores are held against."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import typer

from ditkit.cli.evaluate_cost import print_cost

SHORT = {"size": "data.size", "split": "data.split"}
NAMES = {
    "adm-inception": "inception",
    "clip-embedding": "clip",
    "toy-extractor": "toy",
}  # beginnings of ids -> --extractor


def name_of_network(reference: str) -> str:
    """The --extractor of a reference file's own statistics; Inception by its width where the file does not tell.

    BadReference, one line, for one that has no name of its own (a `ditkit teacher` folder): the user has to say.
    """
    from ditkit.evaluation.reference_files import WIDTH, BadReference, open_reference

    file = open_reference(reference)
    told = file.extractor or f"a network that it does not name (width {file.width})"
    if not file.extractor and file.width in (0, WIDTH):
        return "inception"
    for beginning, name in NAMES.items():
        if told.startswith(beginning):
            return name
    raise BadReference(f"{reference}: its statistics are of {told}: say by --extractor where that network is")


def make(data: str, out: str | None, extractors: Sequence[str], keys: Sequence[str], device: str) -> None:
    """Look at all images of `data`, write FILE.npz, say what is in it. keys: size=256, split=train, data.*."""
    from ditkit.cli.progress import bars
    from ditkit.config import override
    from ditkit.data import DataSettings, open_source
    from ditkit.evaluation.reference_files import write_reference
    from ditkit.pretrained import PretrainedMissing
    from ditkit.recipes.build import pick_device
    from ditkit.recipes.place import check_writable
    from ditkit.recipes.scoring import Judging, load_extractors

    started, where = time.monotonic(), pick_device(device)
    if not out or not out.endswith(".npz"):
        raise ValueError("--make-reference writes one file: name it with --out FILE.npz")
    if len(extractors) > 1:
        raise ValueError(f"a reference is of one extractor, not of {' and '.join(extractors)}: make one of each")
    words = [f"{SHORT.get(key, key)}={value}" for key, _, value in (word.partition("=") for word in keys)]
    if wrong := [word for word in words if not word.startswith("data.")]:
        raise ValueError(f"{wrong[0]}: a reference takes size, split and data.* alone")
    judging = override(Judging(data=DataSettings(source=data)), words)
    source = open_source(judging.data)
    check_writable(Path(out).parent)
    name = extractors[0] if extractors else "inception"
    try:
        extractor = load_extractors([name], where)[name]
    except PretrainedMissing as error:
        if extractors:
            raise
        raise ValueError(
            f"a reference is made by Inception where no network is named, and it cannot be loaded: {error.reason}; "
            "pass --extractor inception:FILE, --extractor clip:FOLDER or the folder of a `ditkit teacher`"
        ) from None
    with bars() as bar:
        file, bad = write_reference(source, extractor, out, progress=lambda done, total: bar("images", done, total))
    count = int(file.arrays["count"])
    height, width = source.size
    typer.echo(f"images     {count:,} of {data}, {height}x{width}; {len(file.images or ()):,} of them in the file")
    if bad:
        typer.echo(f"left out   {len(bad)} that cannot be used: {', '.join(bad[:5])}{', ...' if bad[5:] else ''}")
    if count <= extractor.width:
        typer.echo(f"beware     {count:,} images for {extractor.width:,} features: Frechet distances will be biased")
    typer.echo(f"network    {extractor.id}")
    typer.echo(f"known as   {file.fingerprint}")
    print_cost(started, where)
    typer.echo(f"reference  {out}")
