"""Prompts of text models: typed, from a file, or captions of the data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ditkit.data import ImageSource
from ditkit.evaluation import Request, spread
from ditkit.recipes.load import Loaded

SHOWN = 64  # captions of the data that a run remembers, and that its preview draws
EACH = 4  # images of each prompt where nobody says how many
ENDINGS = (".txt", ".jsonl")
FIELDS = ("prompt", "text", "caption")


def read_prompts(file: Path) -> tuple[str, ...]:
    """The prompts in a .txt file, one a line, or a .jsonl file with "prompt" (or "text", or "caption") in each line.

    Blank lines are passed over; "" in a JSONL file is the empty prompt. ValueError, one line, names the line that
    cannot be read, or the ending of another kind of file.
    """
    if file.is_file() and file.suffix.lower() not in ENDINGS:
        raise ValueError(f"{file}: prompts are a .txt file, one a line, or a .jsonl file")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text (byte {error.start}); prompts are a .txt or .jsonl file") from None
    kept = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not kept:
        raise ValueError(f"{file}: no prompts in it; write one a line")
    if file.suffix.lower() != ".jsonl":
        return tuple(line for _, line in kept)
    return tuple(_prompt(f"{file}, line {number}", line) for number, line in kept)


def _prompt(where: str, line: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from None
    found = row if isinstance(row, str) else None
    if isinstance(row, dict):
        found = next((row[name] for name in FIELDS if name in row), None)
    if not isinstance(found, str):
        raise ValueError(f"{where}: no text under any of {', '.join(FIELDS)}")
    return found


def data_prompts(source: ImageSource, n: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Captions of n images (all, where there are fewer) spread evenly over the data, and the images' labels.

    No labels where the images have none. No image is decoded; those whose captions cannot be used are left out.
    ValueError where no caption can be.
    """
    kept = []
    for i in spread(len(source), n):
        try:
            captions = source.all_captions(i)
        except (ValueError, OSError):
            continue
        if any(captions) or not source.captioned:
            kept.append((captions.first, int(source.labels[i])))
    if not kept:
        raise ValueError(f"none of the {len(source)} images has a caption that can be used")
    texts, labels = zip(*kept, strict=True)
    return texts, labels if source.classes and min(labels) >= 0 else ()


def remembered(source: ImageSource, n: int = SHOWN) -> list[str]:
    """At most n different captions of the data, for environment.json: what the run is looked at with."""
    return list(dict.fromkeys(data_prompts(source, 2 * n)[0]))[:n]


def prompt_request(
    loaded: Loaded, prompts: Sequence[str], n: int | None, *, negative: str | None = None, seed: int = 0,
    labels: Sequence[int] = (),
) -> Request:  # fmt: skip
    """A request for n images (None: 4 of each) of prompts that take turns; without any, of captions that the run saw.

    labels: the class that each prompt names, where that is known. ValueError where there are no prompts to be had.
    """
    given = tuple(prompts) or loaded.captions
    if not given:
        raise ValueError("the model reads text, and nothing tells what it was trained on: give --prompt TEXT")
    count = n or len(given) * EACH
    turns = range(count)
    return Request(
        n=count,
        prompts=tuple(given[i % len(given)] for i in turns),
        labels=tuple(labels[i % len(given)] for i in turns) if labels else (),
        mode="prompts",
        negative=negative,
        seed=seed,
    )
