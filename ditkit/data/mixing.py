"""Which of an image's captions a visit shows: original or synthetic, and one of several at random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ditkit.data.order import philox_words
from ditkit.protocols import Captions, Item

CLASS = "{class}"


def draw_captions(items: Sequence[Item], seed: int, start: int, share: float) -> tuple[str, ...]:
    """One caption each for the items at the sample positions start, start + 1, ..., drawn from (seed, position).

    Where an image has both kinds a synthetic one is shown with probability `share`, else the kind it has; one of
    several of that kind has equal chances. share 0.5 is SD3's mix (arXiv 2403.03206, section 5.2.2).
    """
    words = philox_words("caption", seed, 0, len(items), row=start)
    synthetic = (words[:, 0] >> np.uint64(11)) * 2.0**-53 < share  # share 1 is always, 0 never
    return tuple(
        _one(item, bool(kind), int(word)) for item, kind, word in zip(items, synthetic, words[:, 1], strict=True)
    )


def _one(item: Item, synthetic: bool, word: int) -> str:
    first, second = item.captions[::-1] if synthetic else item.captions
    texts = first or second or (item.caption,)
    return texts[word % len(texts)]


def drop_captions(captions: Sequence[str], seed: int, start: int, share: float) -> tuple[str, ...]:
    """The captions at the sample positions start, start + 1, ..., each made empty with probability `share`.

    Drawn from (seed, position). REPA trains its text model's unconditional half so, on the encoded empty caption
    (share 0.1), where SD3 zeroes the encoders' outputs.
    """
    words = philox_words("empty", seed, 0, len(captions), row=start)[:, 0]
    dropped = (words >> np.uint64(11)) * 2.0**-53 < share
    return tuple("" if drop else text for text, drop in zip(captions, dropped, strict=True))


def class_captions(template: str, name: str | None) -> Captions:
    """Captions from a template such as "a photo of a {class}" and the name of a class; None: the image has no class.

    A name that lists several, as ImageNet's "tench, Tinca tinca" does, gives a caption for each; underscores are read
    as spaces. A template without {class} is itself the caption of every image.
    """
    if CLASS not in template:
        return Captions((template,))
    names = [] if name is None else [part.replace("_", " ").strip() for part in name.split(",")]
    return Captions(tuple(template.replace(CLASS, part) for part in names if part))
