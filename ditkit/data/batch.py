"""What a loader hands out, and what takes the place of images that cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeVar

from torch import Tensor

from ditkit.protocols import BadImage, Condition, Features

T = TypeVar("T")
Bad = dict[int, tuple[str, str]]  # index -> (path, reason)


class Batch(NamedTuple):
    """One rank's share of a step: images uint8 (b, C, H, W), labels int64 (b,), captions, indices int64 (b,).

    positions: the global sample positions, which key every draw. indices: the images used; where the image at a
    position is unusable it is the one that took its place. captions: as drawn, before data.empty_share makes some empty
    (`cond` has the empty prompt there). (H, W) is the source's size, or the step's bucket.
    Of a cache, `images` are moments (b, C, h, w) as stored; features: one a wanted teacher; cond: encoded captions.
    """

    images: Tensor
    labels: Tensor
    captions: tuple[str, ...]
    indices: Tensor
    positions: range
    features: tuple[Features, ...] = ()
    cond: Condition | None = None


def first_usable(candidates: Iterable[int], bad: Bad, met: Bad, read: Callable[[int], T]) -> tuple[T, int] | None:
    """(what `read` makes of it, its index) for the first candidate that can be read; None where there is none.

    bad: the unusable ones that are known, which are not tried again; it grows. met: gets those that were passed over.
    """
    for candidate in candidates:
        if candidate not in bad:
            try:
                return read(candidate), candidate
            except BadImage as error:
                bad[candidate] = (error.path, error.reason)
        met[candidate] = bad[candidate]
    return None


def none_usable(met: Mapping[int, tuple[str, str]], images: int) -> str:
    """What to say where none of the images at hand could be used, all of them passed over."""
    path, reason = next(iter(met.values()))
    among = f"{len(met)} images{'' if len(met) == images else ' of a bucket'}"
    return f"none of the {among} can be used; {path}: {reason}"
