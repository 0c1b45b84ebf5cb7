"""What the claims that are tested on scenes share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ditkit.data import DataError
from ditkit.evaluation import Request
from ditkit.evaluation.generate import generate
from ditkit.evaluation.geneval import evaluate_scenes, image_prompts, scene_prompts
from ditkit.evaluation.geneval.metadata import Prompt
from ditkit.recipes.build import Parts
from ditkit.recipes.load import Loaded
from ditkit.recipes.reproduce.claim import Question, Show


def check_scenes(q: Question) -> None:
    """DataError, one line, for a question about other data: only scenes can be checked against their captions."""
    if q.data != "scenes":
        raise DataError(f"data {q.data!r}: {q.claim.name} checks what is seen against the caption: only 'scenes'")


class SceneStudy:
    """What studies on scenes have in common. parts: a subclass sets them, from the recipe that its runs begin with."""

    parts: Parts

    def __init__(self, q: Question):
        check_scenes(q)
        self.q = q

    @property
    def data(self) -> dict[str, Any]:
        """Source, images and fingerprint, as a result tells them."""
        source = self.parts.source
        return {"source": "scenes", "training": len(source), "fingerprint": source.fingerprint}

    @property
    def shelf(self) -> str:
        """Its own: other budgets and images have other runs."""
        return self.q.shelf

    def begin(self, show: Show) -> None:
        """Nothing is needed: the detector of scenes has no weights."""


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
