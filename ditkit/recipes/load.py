"""`ditkit.load`: a run, an exported model or a published checkpoint as one object that is ready to sample."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ditkit.align import Projector
from ditkit.checkpoints import CheckpointError, Published, load_published
from ditkit.config import Settings, dump
from ditkit.diffusion import AnyPath, Kind
from ditkit.files import new_folder
from ditkit.models import build_model
from ditkit.pretrained import load_codec
from ditkit.protocols import Codec
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.registry import RECIPES, from_file
from ditkit.training import checkpoint

MODEL, PROJECTORS, CARD = "model.safetensors", "projectors.safetensors", "model.json"
Weights = Literal["ema", "raw"]


@dataclass
class Loaded:
    """What `load_published` answers, plus the recipe and the codec (loaded when first asked for)."""

    model: nn.Module
    path: AnyPath
    prediction: Kind
    projectors: nn.ModuleList | None
    align_depth: int | None
    settings: Settings
    source: str
    weights: str
    recipe: Recipe
    step: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @cached_property
    def codec(self) -> Codec:
        """Images <-> latents of this model; PretrainedMissing if it cannot be had."""
        return load_codec(self.recipe.codec, self.device, channels=getattr(self.settings, "channels", 3))

    def to(self, device: torch.device | str) -> Loaded:
        """Move network and projectors; the codec follows when it is loaded."""
        self.device = torch.device(device)
        self.model.to(self.device)
        if self.projectors is not None:
            self.projectors.to(self.device)
        self.__dict__.pop("codec", None)
        return self


def load(
    path: str | os.PathLike, weights: Weights = "ema", *, step: int | None = None, source: str | None = None,
    **shape: Any,
) -> Loaded:  # fmt: skip
    """A run folder, a folder that `ditkit convert` wrote, or a published file -> Loaded, on the CPU, in eval mode.

    weights: averaged ("ema") or raw; step: of a run, default its newest whole checkpoint. source and `shape` are those
    of `load_published` and needed for published files only. Raises CheckpointError or SettingsError, one line.
    """
    place = Path(path)
    if not place.exists():
        raise CheckpointError(f"{place}: no such run, model folder or checkpoint file")
    if (place / "recipe.json").is_file() and (place / "checkpoints").is_dir():
        loaded = _run(place, weights, step)
    elif (place / CARD).is_file():
        loaded = _exported(place)
    elif source is None:
        what = "no run and no exported model" if place.is_dir() else "a published file needs its family"
        raise CheckpointError(f"{place}: {what}; say --source dit, sit, repa or diffusers-dit")
    else:
        loaded = of_published(load_published(place, source, weights=weights, **shape))
    loaded.model.eval().requires_grad_(False)
    return loaded


def of_published(published: Published) -> Loaded:
    """A published checkpoint with the recipe of its row (sampler, codec), or the nearest one with its own sizes."""
    facts = {name: getattr(published, name) for name in Published.__dataclass_fields__}
    return Loaded(**facts, recipe=recipe_of(published))


def recipe_of(published: Published) -> Recipe:
    """The published row that trained this architecture, else the family's largest row with this model in it."""
    family = {"diffusers-dit": "dit"}.get(published.source, published.source)
    rows = {name: make() for name, make in RECIPES.items() if name.startswith(f"{family}.")}
    same = [r.model_copy(update={"name": n}) for n, r in rows.items() if r.model == published.settings]
    if same:
        return max(same, key=lambda r: r.training.steps)
    base = rows[f"{family}.xl_2_256"]
    tree = {"model": published.settings, "published": (), "name": "", "title": f"{published.source} checkpoint"}
    if base.align is not None:
        depth = published.align_depth or base.align.depth
        tree["align"] = base.align.model_copy(update={"depth": depth})
    return base.model_copy(update=tree)


def _run(folder: Path, weights: Weights, step: int | None) -> Loaded:
    recipe = from_file(folder / "recipe.json")
    if step is None:
        found = checkpoint.latest(folder)
        if found is None:
            raise CheckpointError(f"{folder}: no checkpoint in this run yet; `ditkit train` makes them")
        step = found[0]
    model = build_model(recipe.model)
    model.load_state_dict(checkpoint.read(folder, step, weights))
    projectors = None
    if recipe.align is not None:
        state = checkpoint.read(folder, step, weights, "align")
        projectors = projectors_of({k.removeprefix("projectors."): v for k, v in state.items()})
    return _loaded(recipe, model, projectors, source="ditkit", weights=weights, step=step)


def _exported(folder: Path) -> Loaded:
    recipe, card = from_file(folder / "recipe.json"), json.loads((folder / CARD).read_text(encoding="utf-8"))
    model = build_model(recipe.model)
    model.load_state_dict(load_file(folder / MODEL))
    projectors = projectors_of(load_file(folder / PROJECTORS)) if (folder / PROJECTORS).is_file() else None
    return _loaded(recipe, model, projectors, source=card["source"], weights=card["weights"], step=card["step"])


def _loaded(recipe: Recipe, model: nn.Module, projectors: nn.ModuleList | None, **facts: Any) -> Loaded:
    depth = None
    if recipe.align is not None:
        depth = recipe.align.depth if isinstance(recipe.align.depth, int) else recipe.align.depth[0]
    return Loaded(
        model,
        recipe.objective.path,
        recipe.objective.prediction,
        projectors,
        depth,
        recipe.model,
        recipe=recipe,
        **facts,
    )


def projectors_of(state: dict[str, torch.Tensor]) -> nn.ModuleList:
    """Projectors from their tensors ("0.0.weight", "0.2.weight", "0.4.weight", "1.0.weight", ...)."""
    count = 1 + max(int(key.partition(".")[0]) for key in state)
    widths = [(state[f"{i}.0.weight"].shape, state[f"{i}.4.weight"].shape[0]) for i in range(count)]
    made = nn.ModuleList(Projector(inner[1], out, inner[0]) for inner, out in widths)
    made.load_state_dict(state)
    return made


def save_exported(loaded: Loaded, folder: Path) -> None:
    """Write model.safetensors, recipe.json, model.json (and projectors) into a new folder, all or nothing."""
    card = {"source": loaded.source, "weights": loaded.weights, "step": loaded.step}
    with new_folder(folder) as draft:
        save_file(contiguous(loaded.model.state_dict()), draft / MODEL)
        if loaded.projectors is not None:
            save_file(contiguous(loaded.projectors.state_dict()), draft / PROJECTORS)
        (draft / "recipe.json").write_text(dump(loaded.recipe, "json"), encoding="utf-8")
        (draft / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def contiguous(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict as safetensors wants it: on the CPU, contiguous."""
    return {key: value.detach().cpu().contiguous() for key, value in state.items()}
