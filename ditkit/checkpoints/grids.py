"""Stored position tables of MMDiT: which native grid one was made for, and the one that is written for our own runs.

A table (M, M, D) holds the sin-cos codes of M x M places, of which the middle is used (SD3 section 5.3.2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ditkit.models import MMDiT
from ditkit.nn.position import sincos_table

BASE = 16  # positions that the paper's native grids cover at every size: n tokens at steps of 16 / n
CLOSE = 0.01  # of the largest coordinate: what half precision leaves of one


def native_of(table: Tensor) -> tuple[tuple[int, int], float] | None:
    """((rows, columns), step) of the native grid that stands in the middle of a table (M, M, D) at 0, step, 2 step, ...

    step is 1 or 16 over the longer side, as in the paper. None where the table is no centred sin-cos table of such a
    grid: diffusers' own one is not, and the numbers of a table say nothing else about the model.
    """
    if not table.isfinite().all():
        return None
    half = table.shape[2] // 2
    places = [_places(table[:, 0, half:]), _places(table[0, :, :half])]  # rows, columns
    found: list[tuple[float, tuple[int, int], float]] = []
    for step in (1.0, *(BASE / n for n in range(1, len(table) + 1))):
        rows, columns = (_fit(place, step) for place in places)
        if rows and columns and (step == 1 or round(BASE / step) == max(rows[0], columns[0])):
            found.append((max(rows[1], columns[1]), (rows[0], columns[0]), step))
    return min(found)[1:] if found else None


def _places(codes: Tensor) -> Tensor:
    """The M coordinates that codes (M, D / 2), sines and then cosines, stand for; by the slowest frequency."""
    quarter = codes.shape[1] // 2
    sine, cosine = codes[:, quarter - 1].double(), codes[:, -1].double()
    return torch.atan2(sine, cosine) * 10000.0 ** ((quarter - 1) / quarter)


def _fit(places: Tensor, step: float) -> tuple[int, float] | None:
    """(native side n, relative error) of M places with this step whose middle n begin at 0; None where none fits."""
    side = len(places)
    before = round(-float(places[0]) / step)
    native = side - 2 * before
    if before < 0 or native < 1:
        return None
    want = step * torch.arange(-before, side - before, dtype=torch.float64)
    error = float((places - want).abs().max() / want.abs().max().clamp(min=step))
    return (native, error) if error < CLOSE else None


def stored_table(model: MMDiT, side: int | None = None) -> Tensor:
    """The table (M, M, D) that a published file of this model holds: its own, else one made for its grid.

    side: M of the one that is made; None is three times the longer side, SD3's 192 for 64. The native size has
    the same positions as before, and so has every size where both sides differ from it by even numbers of tokens.
    """
    s = model.settings
    if s.table:
        return model.position
    side = 3 * max(s.grid) if side is None else side
    rows, columns = (-((side - n) // 2) * s.step for n in s.grid)
    table = sincos_table(side, side, s.width, step=s.step, first=(rows, columns))
    return table.view(side, side, s.width).to(model.position)
