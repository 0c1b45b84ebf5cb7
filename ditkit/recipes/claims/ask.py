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
    out: Path | None = None, device: torch.device | None = None,
) -> Question:  # fmt: skip
    """A question about the claim `name`. ValueError, one line, for names, sizes and keys that are not known.

    keys: KEY=VALUE of the budget's settings. data: digits, scenes, a folder of images or a .parquet file; None: the
    claim's own. seeds: how many, 0, 1, ... out: default runs/reproduce/NAME-SIZE.
    """
    claim = find_claim(name)
    if size not in SIZES:
        raise ValueError(f"--budget {size!r}{nearest(size, SIZES)}")
    if seeds < 1:
        raise ValueError(f"--seeds {seeds}: at least one is needed")
    try:
        budget = override(claim.budgets[size], keys)
    except SettingsError as error:
        raise ValueError(f"{claim.name}, budget {size}: {error}") from None
    folder = out or Path("runs") / "reproduce" / f"{name}-{size}"
    where = device or torch.device("cpu")
    return Question(claim, size, budget, data or claim.data, tuple(range(seeds)), folder, where, tuple(keys))
