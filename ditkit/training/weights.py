"""The weights of a run by name: raw, the averages that it kept, and power-function averages of any width.

ema            the average that is sampled (training.ema)
raw            as the optimizer left them
ema:0.999      another exponential average (training.ema_also), by its decay
power:0.05     a power-function average by its width sigma_rel (training.ema_power); any other width is made of
               the stored ones afterwards, by least squares over their profiles (EDM2; see power.py)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import AfterValidator
from torch import Tensor

from ditkit.checkpoints import CheckpointError
from ditkit.training import checkpoint
from ditkit.training.ema import file_of
from ditkit.training.power import WIDEST, Profile, fit, reach
from ditkit.training.snapshots import Reader, Snapshot, combined, facts, list_snapshots

MOST = 0.05  # of the norm of a profile may be missed by one that is made afterwards
CHOICES = "'ema' (averaged), 'raw', 'ema:DECAY' or 'power:WIDTH'"

Part = Literal["model", "align"]
Say = Callable[[str], None]


class Wanted(NamedTuple):
    """What a name asks for. number: the decay or the width, where the name has one."""

    kind: str
    number: float | None = None


def parse(name: str) -> Wanted:
    """ "ema", "raw", "ema:0.999" or "power:0.05". ValueError, one line, for anything else."""
    kind, colon, rest = str(name).partition(":")
    if not colon and kind in ("ema", "raw"):
        return Wanted(kind)
    if not colon or kind not in ("ema", "power"):
        raise ValueError(f"choose {CHOICES}")
    try:
        number = float(rest)
    except ValueError:
        raise ValueError(f"{rest!r} is no number; choose {CHOICES}") from None
    if kind == "ema" and not 0 <= number < 1:
        raise ValueError("a decay is at least 0 and below 1")
    if kind == "power" and not 0 < number <= WIDEST:
        raise ValueError(f"widths are above 0 and at most {WIDEST:.3f} (all weights alike)")
    return Wanted(kind, number)


def _checked(name: str) -> str:
    parse(name)
    return name


Weights = Annotated[str, AfterValidator(_checked)]  # of settings


def describe(name: str) -> str:
    """A name in words: "averaged (EMA)", "averaged (EMA of decay 0.999)"."""
    kind, number = parse(name)
    if number is None:
        return "averaged (EMA)" if kind == "ema" else "raw"
    how = f"EMA of decay {number:g}" if kind == "ema" else f"power function of width {number:g}"
    return f"averaged ({how})"


def read(
    folder: str | os.PathLike,
    step: int | None = None,
    weights: str = "ema",
    part: Part = "model",
    say: Say = lambda text: None,
) -> dict[str, Tensor]:
    """The weights of a run: of its newest whole checkpoint, or of `step`; which by name; network or projectors.

    A power-function average is also found at the step of a snapshot without a checkpoint. say: told in one line how
    an average that was not kept has been made. CheckpointError (a ValueError) if the run has no checkpoint, not that
    one, not these weights, or it is damaged.
    """
    try:
        wanted = parse(weights)
    except ValueError as error:
        raise CheckpointError(f"weights={weights!r}: {error}") from None
    found = checkpoint.latest(folder) if step is None else None
    if step is None and found is None:
        raise CheckpointError(f"{folder}: no checkpoint in this run yet; `ditkit train` makes them")
    chosen = found[0] if found else step
    assert chosen is not None
    there = chosen in (steps := checkpoint.list_steps(folder))
    if wanted.kind == "power" and wanted.number is not None:
        state = None if not there else found[1] if found else checkpoint.read_state(folder, chosen)
        return _Powers(folder, chosen, part, state).read(wanted.number, say)
    if not there:
        raise CheckpointError(f"{folder}: no checkpoint of step {chosen}; there are {steps}")
    state = found[1] if found else checkpoint.read_state(folder, chosen)
    return checkpoint.read_tensors(folder, chosen, _file(folder, wanted, state.get("settings", {}), part))


def _file(folder: str | os.PathLike, wanted: Wanted, settings: dict, part: Part) -> str:
    """The file of a checkpoint with these weights."""
    prefix = "align_" if part == "align" else ""
    if wanted.kind == "raw":
        return part
    first, kept = settings.get("ema"), settings.get("ema_also", [])
    if wanted.number in (None, first):
        return f"{prefix}ema"
    if wanted.number not in kept:
        others = ", ".join(f"ema:{decay:g}" for decay in (first, *kept) if decay is not None)
        raise CheckpointError(
            f"{folder}: no average of decay {wanted.number:g} was kept (training.ema_also does); there are {others}"
        )
    return f"{prefix}{file_of('ema', wanted.number)}"


class _Powers:
    """The power-function averages of a run up to one step. state: of that step's checkpoint, if there is one."""

    def __init__(self, folder: str | os.PathLike, step: int, part: Part, state: dict | None):
        self.folder, self.step = folder, step
        prefix = "align_" if part == "align" else ""
        everything = [s for s in list_snapshots(folder) if s.name.startswith("align_") == bool(prefix)]
        self.snapshots: list[Snapshot] = [s for s in everything if s.step <= step]
        kept = (state or {}).get("settings", {}).get("ema_power", [])
        if not kept and not everything:
            raise CheckpointError(f"{folder}: no power-function averages were kept; training.ema_power=0.05,0.1 does")
        if state is None and not any(s.step == step for s in everything):
            steps = sorted({*checkpoint.list_steps(folder), *(s.step for s in everything)})
            raise CheckpointError(f"{folder}: neither a checkpoint nor averages of step {step}; there are {steps}")
        told = [(s, *facts(s)) for s in self.snapshots]
        told = [one for one in told if one[1]]  # before the first averaging there is no profile
        self.snapshots = [one[0] for one in told]
        self.profiles = [Profile(s.width, count) for s, count, _ in told]
        self.averaged = told[-1][2] if told else set()
        self.count = state["averagings"] if state and kept else self.profiles[-1].time if told else 0
        own = [w for w in kept if not any(s.step == step and s.width == w for s in self.snapshots)]
        self.own = [f"{prefix}{file_of('power', width)}" for width in own]  # of the checkpoint alone
        self.profiles += [Profile(width, self.count) for width in own]

    def read(self, width: float, say: Say) -> dict[str, Tensor]:
        """The average of this width, stored or made of what is stored."""
        if not self.count:
            raise CheckpointError(f"{self.folder}: nothing has been averaged up to step {self.step}")
        found = fit(self.profiles, Profile(width, self.count))
        if found.missed > MOST or not (self.averaged or found.missed == 0):
            raise CheckpointError(self._refusal(width, found.missed))
        used = [int(i) for i in np.flatnonzero(found.weights)]
        if len(used) == 1:
            return self._stored(used[0])
        widths = ", ".join(f"{w:g}" for w in sorted({p.width for p in self.profiles}))
        say(
            f"power:{width:g} at step {self.step} is made afterwards of {len(self.profiles)} stored averages (of width "
            f"{widths}); {found.missed:.2%} of its profile is missed"
        )
        files = [Reader(s.path) for s in self.snapshots]
        others = [checkpoint.read_tensors(self.folder, self.step, name).__getitem__ for name in self.own]
        return combined([*files, *others], found.weights.tolist(), files[-1].names(), self.averaged)

    def _stored(self, index: int) -> dict[str, Tensor]:
        if index >= len(self.snapshots):
            return checkpoint.read_tensors(self.folder, self.step, self.own[index - len(self.snapshots)])
        reader = Reader(self.snapshots[index].path)
        return {name: reader(name) for name in reader.names()}

    def _refusal(self, width: float, missed: float) -> str:
        possible = reach(self.profiles, self.count, MOST) if self.averaged else None
        which = "only the widths that were kept" if possible is None else f"{possible[0]:.3f} to {possible[1]:.3f}"
        return (
            f"{self.folder}: power:{width:g} cannot be made of the averages stored up to step {self.step} "
            f"({missed:.0%} of its profile would be missed); possible there: {which}"
        )
