"""Models change their form: run or published file -> model folder -> published file or a folder of diffusers.

Nothing is ever overwritten.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from ditkit.checkpoints import CheckpointError, export_published
from ditkit.files import write_atomic
from ditkit.pretrained.hub import at_hand
from ditkit.recipes.load import Loaded, contiguous, save_exported
from ditkit.recipes.pipeline import PIPELINE, to_pipeline

# the paths that a family's own samplers can follow; the file itself does not tell which it was
PATHS = {
    "dit": ("ddpm",), "diffusers-dit": ("ddpm",), "sit": ("linear", "cosine", "vp"), "repa": ("linear", "cosine"),
    "ddt": ("linear",), "improved-dit": ("linear",), "sd3": ("linear",), "diffusers-sd3": ("linear",),
    "repa-mmdit": ("linear", "cosine"),
}  # fmt: skip
ALIGNED = ("repa", "ddt", "improved-dit", "repa-mmdit")  # families whose files can hold projectors


def to_folder(loaded: Loaded, folder: Path) -> list[str]:
    """Write a model folder that `ditkit.load` and `ditkit sample` open; what the user should know, a line each."""
    save_exported(loaded, folder)
    if loaded.recipe.name and loaded.recipe.published:
        return [f"recipe: {loaded.recipe.name}, the published row that trained this architecture"]
    return (
        [f"recipe: {loaded.recipe.title}; objective, sampler and codec are the family's"] if loaded.step is None else []
    )


def not_at_hand(loaded: Loaded) -> str:
    """The words of `ditkit sample` that name frozen networks of the recipe which are not on this machine."""
    text, codec = loaded.recipe.text, loaded.recipe.codec
    words = ""
    if text is not None and not all(map(at_hand, text.places())):
        words += f" --text {text.kind}:FOLDER"
    if codec.place and not at_hand(codec.place):
        words += " --codec FOLDER"
    return words


def to_published(loaded: Loaded, family: str, file: Path) -> list[str]:
    """Write the model in a family's published layout as .safetensors or .pt (a plain state dict); notes, a line each.

    family "diffusers" is a pipeline's folder instead (`to_pipeline`). CheckpointError, before anything is written,
    where the file exists, the ending is another, or the family's own code could not load the model or would compute
    something else.
    """
    if family == PIPELINE:
        return to_pipeline(loaded, file)
    if file.suffix not in (".safetensors", ".pt"):
        raise CheckpointError(f"{file}: end the name in .safetensors or .pt")
    if file.exists():
        raise CheckpointError(f"{file}: exists already; choose another name or remove it")
    paths = PATHS.get(family, (loaded.path.kind,))
    projectors = loaded.projectors if family in ALIGNED else None
    state = contiguous(export_published(loaded.model, family, projectors, prediction=loaded.prediction))
    if loaded.path.kind not in paths:
        raise CheckpointError(
            f"this model was trained on the {loaded.path.kind} path, {family!r} samples on {' or '.join(paths)}"
        )
    if file.suffix == ".pt":
        write_atomic(file, lambda stream: torch.save(state, stream))
    else:  # by its name: the other way makes one more copy of all tensors
        write_atomic(file, lambda stream: save_file(state, stream.name))
    notes = [f"not in the file: path {loaded.path.kind}, prediction {loaded.prediction}, codec, sampler"]
    if loaded.projectors is not None and projectors is None:
        notes.append(f"projectors left out: {family!r} has none")
    return notes
