"""What the claims that are tested on scenes share."""

from __future__ import annotations

from typing import Any

from ditkit.data import DataError, ImageSource
from ditkit.recipes.reproduce.claim import Question


def check_scenes(q: Question) -> None:
    """DataError, one line, for a question about other data: only scenes can be checked against their captions."""
    if q.data != "scenes":
        raise DataError(f"data {q.data!r}: {q.claim.name} checks what is seen against the caption: only 'scenes'")


def scenes_facts(source: ImageSource) -> dict[str, Any]:
    """Source, images and fingerprint, as a result tells them."""
    return {"source": "scenes", "training": len(source), "fingerprint": source.fingerprint}
