"""A recipe meets a user's data: class count, size and channels come from the images, and every change is said."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ditkit.config import diff
from ditkit.protocols import Source
from ditkit.recipes.recipe import Recipe

MAX_PIXEL_TOKENS = 256  # in pixels the patch grows until the sequence is no longer than a latent one


def adapt(recipe: Recipe, source: Source, *, channels: int, factor: int, keep: Collection[str] = ()) -> Recipe:
    """The recipe with `model.size`, `.channels`, `.num_classes` (and in pixels `.patch`) taken from the data.

    channels, factor: of the codec's latents. keep: dotted keys that the user has set, which stay; a value that cannot
    work then is an error. ValueError, one line, where the sizes do not fit each other.
    """
    height, width = source.size
    if height % factor or width % factor:
        raise ValueError(
            f"images of {height}x{width} do not divide by the codec's factor {factor}: choose another --size"
        )
    size = (height // factor, width // factor)
    found: dict[str, Any] = {"model.size": size, "model.channels": channels, "model.num_classes": len(source.classes)}
    patch = recipe.model.patch
    pixels = recipe.codec.kind == "pixels"
    if "model.patch" not in keep and (_misfit(size, patch) or (pixels and _tokens(size, patch) > MAX_PIXEL_TOKENS)):
        found["model.patch"] = pixel_patch(size) if pixels else patch
    changes = {key: value for key, value in found.items() if key not in keep}
    patch = changes.get("model.patch", patch)
    if _misfit(size, patch):
        raise ValueError(
            f"a latent of {size[0]}x{size[1]} does not divide into patches of {patch}: choose --size as a multiple of "
            f"{factor * patch}, or set model.patch"
        )
    return recipe.with_(changes)


def pixel_patch(size: tuple[int, int], limit: int = MAX_PIXEL_TOKENS) -> int:
    """The smallest patch that divides both sides and leaves at most `limit` tokens; ValueError if there is none."""
    for patch in range(1, min(size) + 1):
        if not _misfit(size, patch) and _tokens(size, patch) <= limit:
            return patch
    raise ValueError(f"no patch cuts {size[0]}x{size[1]} pixels into at most {limit} tokens: choose another --size")


def explain(before: Recipe, after: Recipe) -> list[str]:
    """What `adapt` changed, a line each."""
    return [f"{d.key}: {d.a} in the recipe, {d.b} here (from the data)" for d in diff(before, after)]


def concerns(recipe: Recipe) -> list[str]:
    """Settings that will train but should not be trusted, a line each."""
    model, lines = recipe.model, []
    numbers = model.patch**2 * model.channels
    carries_noise = recipe.objective.prediction != "data"
    if carries_noise and numbers > model.width:
        lines.append(
            f"a patch holds {numbers} numbers and the model is {model.width} wide: {recipe.objective.prediction} "
            "prediction must carry the noise through it and cannot; set objective.prediction=data, a smaller "
            "model.patch or a larger model.width"
        )
    if model.num_classes == 0 and recipe.sampling.guidance is not None:
        lines.append("the data have no classes, so there is nothing to guide by: set sampling.guidance=none")
    return lines


def _misfit(size: tuple[int, int], patch: int) -> bool:
    return bool(size[0] % patch or size[1] % patch)


def _tokens(size: tuple[int, int], patch: int) -> int:
    return (size[0] // patch) * (size[1] // patch)
