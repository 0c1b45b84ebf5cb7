"""From the words of a command line to a question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ditkit.config import SettingsError, nearest, override
from ditkit.recipes.claims.registry import CLAIMS
from ditkit.recipes.reproduce.claim import SIZES, Claim, Question


def find_claim(name: str) -> Claim:
    """The claim of this name; ValueError names the nearest."""
    if name not in CLAIMS:
        raise ValueError(f"{name!r}: no such claim{nearest(name, CLAIMS)} (ditkit reproduce lists all)")
    return CLAIMS[name]


def ask(
    name: str, keys: Sequence[str] = (), *, data: str | None = None, seeds: int = 1, size: str = "small",
    out: Path | None = None, device: torch.device | None = None, pool: Path | None = None,
) -> Question:  # fmt: skip
    """A question about the claim `name`. ValueError, one line, for names, sizes and keys that are not known.

    keys: KEY=VALUE of the budget's settings. data: digits, scenes, a folder of images or a .parquet file; None: the
    claim's own. seeds: how many, 0, 1, ... out: default runs/reproduce/NAME-SIZE. pool: where claims share their runs;
    default: "pool" beside `out`.
    """
    claim = find_claim(name)
    _check(size, seeds)
    if size not in claim.budgets:
        raise ValueError(f"{claim.name} has no budget {size!r}, but {', '.join(claim.budgets)}")
    try:
        budget = override(claim.budgets[size], keys)
    except SettingsError as error:
        raise ValueError(f"{claim.name}, budget {size}: {error}") from None
    folder = out or Path("runs") / "reproduce" / f"{name}-{size}"
    where, seen = device or torch.device("cpu"), tuple(range(seeds))
    return Question(claim, size, budget, data or claim.data, seen, folder, where, tuple(keys), pool)


def ask_all(
    keys: Sequence[str] = (), *, data: str | None = None, seeds: int = 1, size: str = "small",
    out: Path | None = None, device: torch.device | None = None, pool: Path | None = None,
) -> tuple[list[Question], dict[str, str]]:  # fmt: skip
    """A question about every claim, and why some are left out: they have no such budget, or do not know a key.

    out: a folder with one for each claim; None: where each would be alone. ValueError where no claim is left.
    """
    _check(size, seeds)
    questions, left_out = [], {}
    for name in CLAIMS:
        folder = out / name if out else None
        try:
            questions.append(ask(name, keys, data=data, seeds=seeds, size=size, out=folder, device=device, pool=pool))
        except ValueError as error:
            left_out[name] = str(error)
    if not questions:
        raise ValueError(next(iter(left_out.values())))
    return questions, left_out


def _check(size: str, seeds: int) -> None:
    if size not in SIZES:
        raise ValueError(f"--budget {size!r}{nearest(size, SIZES)}")
    if seeds < 1:
        raise ValueError(f"--seeds {seeds}: at least one is needed")
