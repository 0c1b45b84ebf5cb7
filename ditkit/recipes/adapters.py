"""Fine-tuning in a run: the frozen base beside its checkpoints, the adapter on it, the reference of preference tuning.

RUN/base.safetensors    the weights that the run began from, written once: checkpoints hold the adapter alone
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ditkit.checkpoints import CheckpointError
from ditkit.checkpoints.keys import check
from ditkit.diffusion import Loss
from ditkit.models import build_model
from ditkit.protocols import Condition, Denoiser, Noise
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.registry import from_file
from ditkit.training import checkpoint, list_steps
from ditkit.training.adapter_files import read_tensors, save_adapter, save_diffusers
from ditkit.training.adapters import add_adapter, fill_adapter, merge, target_names
from ditkit.training.preference import Preference, frozen_copy
from ditkit.training.state import Job
from ditkit.training.weights import read

BASE = "base.safetensors"


def fine_tunes(recipe: Recipe) -> bool:
    """Whether the recipe needs the weights that it begins from for as long as it trains."""
    return recipe.adapter is not None or recipe.objective.kind == "dpo"


def check_start(recipe: Recipe, folder: Path) -> None:
    """ValueError if a recipe that fine-tunes has nothing to begin from."""
    if fine_tunes(recipe) and recipe.start is None and not list_steps(folder):
        what = "adapter: a LoRA" if recipe.adapter is not None else "objective.kind=dpo: preference tuning"
        raise ValueError(f"{what} needs trained weights to begin from: --start RUN")


def check_targets(recipe: Recipe) -> None:
    """ValueError if the recipe's adapter names layers that its network has not."""
    if recipe.adapter is not None:
        with torch.device("meta"):
            target_names(build_model(recipe.model), recipe.adapter.targets)


def tune(job: Job, recipe: Recipe) -> list[str]:
    """Make a job whose network holds the start weights fine-tune it as the recipe says; lines for the user.

    To be called after `begin`. A run with checkpoints has its base in its folder; CheckpointError if that is gone.
    """
    if not fine_tunes(recipe):
        return []
    file = job.folder / BASE
    if list_steps(job.folder):
        fill_base(job.model, file)
    else:
        state = {key: value.detach().cpu().contiguous() for key, value in job.model.state_dict().items()}
        draft = file.with_name(f".{BASE}.part")
        save_file(state, draft)
        draft.replace(file)
    job.identity["base"] = checkpoint.crc(file)
    lines, frozen = [], None
    if recipe.adapter is not None:
        generator = torch.Generator().manual_seed(recipe.training.seed + 2)
        lines.append(add_adapter(job.model, recipe.adapter, generator).describe())
    elif recipe.objective.kind == "dpo":
        frozen = frozen_copy(job.model)
    if recipe.objective.kind == "dpo":
        job.objective = Preference(recipe.objective, frozen)
        if job.validate is not None:
            job.validate.judge_by(job.objective)  # type: ignore[attr-defined]
        lines.append("the reference is " + ("a frozen copy" if frozen else "the same weights with the adapter off"))
    if recipe.adapter is not None and recipe.adapter.dropout:
        job.objective = seeded(job.objective)
    return lines


def fill_base(model: nn.Module, file: Path) -> None:
    """Put a run's base into its network; CheckpointError if it is gone, damaged or another network's."""
    if not file.is_file():
        raise CheckpointError(f"{file}: the weights that this run began from are gone; put them back")
    state = read_tensors(file)
    check(f"base of {file.parent}", state, model.state_dict())
    model.load_state_dict(state)


def seeded(objective: Callable[..., Loss]) -> Callable[..., Loss]:
    """An objective whose dropout follows from the batch's own draws: peft's layers draw from torch's global state."""

    def drawn(model: Denoiser, x: Tensor, cond: Condition, noise: Noise, auxiliary: Any = ()) -> Loss:
        seed = int(noise.uniform("dropout", (len(x),))[0].item() * 2**24)
        devices = [x.device] if x.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            return objective(model, x, cond, noise, auxiliary)

    return drawn


def tuned(folder: Path, recipe: Recipe, state: Mapping[str, Tensor]) -> nn.Module:
    """The ready network of a run with an adapter: the base in its folder, and `state` merged into it."""
    assert recipe.adapter is not None
    base = build_model(recipe.model, generator=torch.Generator())
    fill_base(base, folder / BASE)
    add_adapter(base, recipe.adapter)
    fill_adapter(base, state)
    return merge(base)


def export_adapter(
    folder: Path, out: Path, *, layout: str = "ditkit", weights: str = "ema", step: int | None = None
) -> str:
    """Write the adapter of a run as a folder of ours, or as the .safetensors that diffusers' SD3 pipelines read.

    layout: "ditkit" or "diffusers". Returns a line for the user. CheckpointError for a run without an adapter, one that
    changes nothing yet, or a network that diffusers has not.
    """
    if not (folder / "recipe.json").is_file():
        raise CheckpointError(f"{folder}: no run folder; an adapter is taken from the run that trained it")
    recipe = from_file(folder / "recipe.json")
    if recipe.adapter is None:
        raise CheckpointError(f"{folder}: this run trains no adapter (adapter.rank=... does)")
    tensors = read(folder, step, weights)
    said = f"LoRA of rank {recipe.adapter.rank}, {sum(v.numel() for v in tensors.values()):,} parameters"
    if layout == "diffusers":
        if recipe.model.kind != "mmdit":
            raise CheckpointError(
                f"{folder}: diffusers' SD3 pipelines hold an MMDiT, this run trains {recipe.model.kind!r}"
            )
        save_diffusers(tensors, recipe.adapter, recipe.model.depth, out)
    else:
        about = {"run": str(folder), "weights": weights, "start": recipe.start and recipe.start.path}
        save_adapter(tensors, recipe.adapter, out, about)
    return said
