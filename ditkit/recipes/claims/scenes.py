"""What the claims that are tested on scenes share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ditkit.data import DataError, ImageSource
from ditkit.evaluation import Request
from ditkit.evaluation.generate import generate
from ditkit.evaluation.geneval import evaluate_scenes, image_prompts, scene_prompts
from ditkit.evaluation.geneval.metadata import Prompt
from ditkit.recipes.load import Loaded
from ditkit.recipes.reproduce.claim import Question


def check_scenes(q: Question) -> None:
    """DataError, one line, for a question about other data: only scenes can be checked against their captions."""
    if q.data != "scenes":
        raise DataError(f"data {q.data!r}: {q.claim.name} checks what is seen against the caption: only 'scenes'")


def scenes_facts(source: ImageSource) -> dict[str, Any]:
    """Source, images and fingerprint, as a result tells them."""
    return {"source": "scenes", "training": len(source), "fingerprint": source.fingerprint}


def finite(loaded: Loaded) -> bool:
    """Whether a run has weights that can be sampled."""
    return all(bool(p.isfinite().all()) for p in loaded.model.parameters())


def follow(loaded: Loaded, per_task: int, each: int, *, seed: int, chunk: int) -> dict[str, Any]:
    """How well a model follows held-out prompts, `per_task` of each task, `each` images of a prompt.

    {"overall", "interval": 95 % limits, "scores": by task, "shuffled": the same images against other prompts}.
    """
    prompts: Sequence[Prompt] = scene_prompts(per_task)
    n = len(prompts) * each
    request = Request(
        n=n, prompts=image_prompts(prompts, each), mode="prompts", seed=seed, chunk=min(chunk, n), decode=64
    )
    made = generate(loaded, loaded.recipe.sampling, request, device=loaded.device)
    found = evaluate_scenes(made.images, prompts)
    return {
        "overall": found.overall, "interval": list(found.interval), "scores": found.scores,
        "shuffled": found.shuffled,
    }  # fmt: skip
