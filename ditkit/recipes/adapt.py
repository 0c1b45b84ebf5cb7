"""A recipe meets a user's data: class count, size and channels come from the images, and every change is said."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from ditkit.config import diff
from ditkit.diffusion import Shifted
from ditkit.models import token_side
from ditkit.protocols import Source, TextEncoder
from ditkit.recipes.recipe import Recipe

MOST_START = 0.05  # share of the random start in the averaged weights that a run should end with
TEXT_KEYS = ("model.text_width", "model.text_length", "model.pooled_width")
MAX_PIXEL_TOKENS = 256  # in pixels the patch grows until the sequence is no longer than a latent one


def adapt(
    recipe: Recipe, source: Source, *, channels: int, factor: int, keep: Collection[str] = (),
    text: TextEncoder | None = None,
) -> Recipe:  # fmt: skip
    """The recipe with `model.size`, `.channels`, `.num_classes` (and in pixels `.patch`) taken from the data.

    A text model takes the widths of its text encoder instead of a class count. Unlabelled data train an unconditional
    model, sampled without guidance.

    channels, factor: of the codec's latents. keep: dotted keys that the user has set, which stay; a value that cannot
    work then is an error. ValueError, one line, where the sizes do not fit each other.
    """
    height, width = source.size
    if height % factor or width % factor:
        raise ValueError(
            f"images of {height}x{width} do not divide by the codec's factor {factor}: choose another --size"
        )
    size = (height // factor, width // factor)
    found: dict[str, Any] = {"model.size": size, "model.channels": channels}
    found |= {"model.num_classes": len(source.classes)} if text is None else widths(recipe, text)
    patch, token = recipe.model.patch, token_side(recipe.model)
    pixels = recipe.codec.kind == "pixels" and patch == token  # a U-Net's patch is its recipe's choice
    if "model.patch" not in keep and (_misfit(size, token) or (pixels and _tokens(size, token) > MAX_PIXEL_TOKENS)):
        found["model.patch"] = pixel_patch(size) if pixels else patch
    if text is None and not source.classes and not any(key.startswith("sampling.guidance") for key in keep):
        found["sampling.guidance"] = None  # nothing to guide by
    changes = {key: value for key, value in found.items() if key not in keep}
    token = token // patch * changes.get("model.patch", patch)
    if _misfit(size, token):
        raise ValueError(
            f"a latent of {size[0]}x{size[1]} does not divide into patches of {token}: choose --size as a multiple of "
            f"{factor * token}, or set model.patch"
        )
    fitted = recipe.with_(changes)
    for height, width in getattr(getattr(source, "buckets", None), "sizes", ()):
        fitted.with_({"model.size": (height // factor, width // factor)})  # SettingsError where that cannot be
    return fitted


def widths(recipe: Recipe, text: TextEncoder) -> dict[str, Any]:
    """What the model has to know of its text encoder; a model without a pooled vector stays without."""
    has = {"model.text_width": text.width, "model.text_length": text.length}
    if getattr(recipe.model, "pooled_width", 0):
        has["model.pooled_width"] = text.pooled_width
    return {key: value for key, value in has.items() if key.partition(".")[2] in type(recipe.model).model_fields}


def pixel_patch(size: tuple[int, int], limit: int = MAX_PIXEL_TOKENS) -> int:
    """The smallest patch that divides both sides and leaves at most `limit` tokens.

    ValueError where there is none, or only one more than twice as large as needed (both sides prime, say).
    """
    for patch in range(1, 2 * even_patch(size, limit) + 1):
        if not _misfit(size, patch) and _tokens(size, patch) <= limit:
            return patch
    raise ValueError(
        f"no patch cuts {size[0]}x{size[1]} pixels well into at most {limit} tokens: choose --size with both sides a "
        f"multiple of {even_patch(size, limit)}, or set model.patch"
    )


def even_patch(size: tuple[int, int], limit: int = MAX_PIXEL_TOKENS) -> int:
    """The smallest patch that leaves at most `limit` tokens if it divides the sides."""
    return math.ceil(math.sqrt(size[0] * size[1] / limit))


def has_pixel_patch(size: tuple[int, int]) -> bool:
    """Whether `pixel_patch` finds one."""
    try:
        return pixel_patch(size) > 0
    except ValueError:
        return False


def explain(before: Recipe, after: Recipe, keep: Collection[str] = ()) -> list[str]:
    """What `adapt` changed, a line each. keep: the user's keys; beside their patch the recipe's size means nothing."""
    lines = []
    for key, old, new in diff(before, after):
        if key.startswith("sampling.guidance"):
            continue
        was = "" if key == "model.size" and "model.patch" in keep else f"{old} in the recipe, "
        why = f": in pixels it must divide the size and leave {MAX_PIXEL_TOKENS} tokens at most"
        whence = "text encoder" if key in TEXT_KEYS else "data"
        lines.append(f"{key}: {was}{new} here (from the {whence}{why if key == 'model.patch' else ''})")
    if before.sampling.guidance is not None and after.sampling.guidance is None:
        lines.append("sampling without guidance: the data have no classes to guide by")
    return lines


def concerns(recipe: Recipe) -> list[str]:
    """Settings that will train but should not be trusted, a line each."""
    model, lines = recipe.model, []
    numbers = model.patch**2 * model.channels
    wide, field = (model.levels[0], "levels") if model.kind == "uvit" else (model.width, "width")
    carries_noise = recipe.objective.prediction != "data"
    if carries_noise and numbers > wide:
        lines.append(
            f"a patch holds {numbers} numbers and the model is {wide} wide: {recipe.objective.prediction} "
            "prediction must carry the noise through it and cannot; set objective.prediction=data, a smaller "
            f"model.patch or a larger model.{field}"
        )
    lines += [line for line in (shift_concern(recipe),) if line]
    steps, ema = recipe.training.steps // recipe.training.ema_every, recipe.training.ema
    anew = recipe.start is None
    if (anew or recipe.adapter is not None) and (share := ema**steps) > MOST_START:
        steps, enough = recipe.training.steps, max(0.0, 1 - 10 / max(1, steps))
        lines.append(
            f"after {steps:,} steps the averaged weights, which are sampled, are still {share:.0%} the "
            f"{'random start' if anew else 'base without its adapter'} "
            f"(training.ema={ema:g}); set training.ema={enough:.4g}, or sample with --weights raw"
        )
    return lines


def shift_concern(recipe: Recipe) -> str | None:
    """A line where times are shifted by one factor in training and by another in sampling (SD3 section 5.3.2)."""
    density = getattr(recipe.objective, "density", None)
    trained = density.factor if isinstance(density, Shifted) else 1.0
    sampled = recipe.sampling.shift
    if trained == sampled or (trained == 1 and recipe.text is None):
        return None  # a class model's sampler may spend its steps where it likes
    mend = f"set sampling.shift={trained:g}"
    if trained == 1:
        mend += f", or objective.density.kind=shifted objective.density.factor={sampled:g}"
    return f"training shifts times by {trained:g}, sampling by {sampled:g}, and the network has to see the same; {mend}"


def _misfit(size: tuple[int, int], patch: int) -> bool:
    return bool(size[0] % patch or size[1] % patch)


def _tokens(size: tuple[int, int], patch: int) -> int:
    return (size[0] // patch) * (size[1] // patch)
