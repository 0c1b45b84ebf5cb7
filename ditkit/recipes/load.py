"""`ditkit.load`: a run, an exported model or a published checkpoint as one object that is ready to sample."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ditkit.align import Projector
from ditkit.checkpoints import SOURCES, CheckpointError, Published, load_published
from ditkit.checkpoints.keys import check
from ditkit.config import dump
from ditkit.diffusion import AnyObjective, AnyPath, Kind
from ditkit.files import new_folder
from ditkit.models import AnyModel, build_model
from ditkit.pretrained import load_codec
from ditkit.protocols import Codec, TextEncoder
from ditkit.recipes.adapters import tuned
from ditkit.recipes.environment import data_facts
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.registry import RECIPES, from_file
from ditkit.recipes.text import open_text
from ditkit.training import checkpoint
from ditkit.training import weights as stored
from ditkit.training.adapter_files import CARD as ADAPTER

FAMILIES = {"diffusers-dit": "dit", "improved-dit": "ddt", "diffusers-sd3": "sd3", "repa-mmdit": "repa_t2i"}
LARGEST = {"sd3": "medium", "repa_t2i": "coco"}  # rows that stand in for sizes that no row has; else xl_2_256
MODEL, PROJECTORS, CARD = "model.safetensors", "projectors.safetensors", "model.json"


@dataclass
class Loaded:
    """What `load_published` answers, plus the recipe and the codec (loaded when first asked for)."""

    model: nn.Module
    path: AnyPath
    prediction: Kind
    projectors: nn.ModuleList | None
    align_depth: int | None
    settings: AnyModel
    source: str
    weights: str
    recipe: Recipe
    step: int | None = None
    classes: tuple[str, ...] = ()  # names, where the run or the card knows them
    images: str = ""  # fingerprint of the images that it was trained on, where that is known
    captions: tuple[str, ...] = ()  # some of theirs, where it was trained on text
    encoder: str = ""  # id of the text encoder that it was trained with
    notes: tuple[str, ...] = ()  # what of a published file was left aside, how an average was made
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @cached_property
    def codec(self) -> Codec:
        """Images <-> latents of this model; PretrainedMissing if it cannot be had."""
        channels = getattr(self.settings, "channels", 3)
        per_pixel = 4 if self.recipe.codec.kind == "toy" else 1  # latent channels of one image channel
        return load_codec(self.recipe.codec, self.device, channels=max(1, channels // per_pixel))

    @cached_property
    def text(self) -> TextEncoder | None:
        """Prompts -> conditions, each prompt encoded once; None for class models; PretrainedMissing as `codec`."""
        return open_text(self.recipe.text, self.device)

    def to(self, device: torch.device | str) -> Loaded:
        """Move network and projectors; codec and text encoder follow when they are loaded."""
        self.device = torch.device(device)
        self.model.to(self.device)
        if self.projectors is not None:
            self.projectors.to(self.device)
        for name in ("codec", "text"):
            self.__dict__.pop(name, None)
        return self


def load(
    path: str | os.PathLike, weights: str = "ema", *, step: int | None = None, source: str | None = None,
    **shape: Any,
) -> Loaded:  # fmt: skip
    """A run folder, a folder that `ditkit convert` wrote, or a published file -> Loaded, on the CPU, in eval mode.

    weights: averaged ("ema") or raw; of a run also "ema:0.999" and "power:0.08", which it kept or which are made of
    what it kept (training/weights.py; `notes` say so). step: of a run, default its newest whole checkpoint. source
    and `shape` are those of `load_published` and needed for published files only. Raises CheckpointError or
    SettingsError, one line.
    """
    place = Path(path).expanduser()
    try:
        kind, number = stored.parse(weights)
    except ValueError as error:
        raise CheckpointError(f"weights={weights!r}: {error}") from None
    if not place.exists():
        raise CheckpointError(f"{place}: no such run, model folder or checkpoint file")
    run = (place / "recipe.json").is_file() and (place / "checkpoints").is_dir()
    if source is not None and (run or (place / CARD).is_file()):
        raise CheckpointError(f"{place}: a ditkit model, which knows what it is: leave --source {source} out")
    if number is not None and not run:
        raise CheckpointError(f"{place}: weights={weights} are of a run; here choose 'ema' or 'raw'")
    if run:
        loaded = _run(place, weights, step)
    elif (place / CARD).is_file():
        loaded = _exported(place, weights)
    elif source is None:
        raise CheckpointError(f"{place}: {_unknown(place)}")
    else:
        loaded = of_published(load_published(place, source, weights="raw" if kind == "raw" else "ema", **shape))
        loaded.recipe = loaded.recipe.model_copy(update={"name": loaded.recipe.name or place.stem})
    loaded.model.eval().requires_grad_(False)
    return loaded


def _unknown(place: Path) -> str:
    """What there is in place of a run or a model folder, and what opens it."""
    if (place / ADAPTER).is_file():
        return (
            "a LoRA alone, without the model that it changes; give the run that trained it, "
            "or put it on its base with ditkit.training.load_adapter"
        )
    if (place / "model_index.json").is_file() and (place / "transformer").is_dir():
        return f"a pipeline's folder of diffusers; its model is {place / 'transformer'}, with --source diffusers-sd3"
    what = "no run and no exported model" if place.is_dir() else "a published file needs its family"
    return f"{what}; say --source {', '.join(SOURCES)}"


def of_published(published: Published) -> Loaded:
    """A published checkpoint with the recipe of its row (sampler, codec), or the nearest one with its own sizes."""
    facts = {name: getattr(published, name) for name in Published.__dataclass_fields__}
    return Loaded(**facts, recipe=recipe_of(published))


def recipe_of(published: Published) -> Recipe:
    """The published row that trained this architecture, else the family's largest row with this model in it."""
    family = FAMILIES.get(published.source, published.source)
    rows = {name: make() for name, make in RECIPES.items() if name.startswith(f"{family}.")}
    same = [r.model_copy(update={"name": n}) for n, r in rows.items() if _trained(r, published)]
    aligned = published.projectors is not None
    if same:  # the improved DiT's weights are the same network with and without alignment
        return max(same, key=lambda r: ((r.align is not None) == aligned, r.training.steps))
    baseline = ("improved_repa_" if aligned else "improved_sit_") if published.source == "improved-dit" else ""
    base, model = rows[f"{family}.{baseline}{LARGEST.get(family, 'xl_2_256')}"], published.settings
    tree: dict[str, Any] = {"model": model, "published": (), "name": "", "title": f"{published.source} checkpoint"}
    tree["unpublished"] = (*base.unpublished, "training")  # how it was trained is not in the file
    pixels = (8 * model.size[0], 8 * model.size[1])  # the VAE's factor
    tree["data"] = base.data.model_copy(update={"size": pixels, "buckets": None})
    tree["objective"] = _objective(base, published)
    if model.variance != "learned" and base.sampling.solver == "ancestral":
        tree["sampling"] = base.sampling.model_copy(update={"options": {"variance": "fixed_large"}})
    if base.align is not None and published.projectors is None:
        tree |= {"align": None, "teachers": ()}
    elif base.align is not None and published.projectors is not None:
        hidden = len(published.projectors.get_parameter("0.0.weight"))
        tree["align"] = base.align.model_copy(update={"depth": published.align_depth, "projector_width": hidden})
    return base.model_copy(update=tree)


def _trained(recipe: Recipe, published: Published) -> bool:
    """Whether this recipe makes such a model: the same network, path and prediction."""
    objective = recipe.objective
    same = objective.path == published.path and objective.prediction == published.prediction
    return same and recipe.model == published.settings


def _objective(base: Recipe, published: Published) -> AnyObjective:
    """The family's objective, with this model's path, prediction and variance."""
    path, kind, given = published.path, published.prediction, base.objective
    if given.kind == "flow":
        return given.model_copy(update={"path": path, "prediction": kind})
    variance = "learned_range" if published.settings.variance == "learned" else "fixed_large"
    return given.model_copy(update={"path": path, "prediction": kind, "variance": variance})


def _run(folder: Path, weights: str, step: int | None) -> Loaded:
    recipe = from_file(folder / "recipe.json")
    if step is None:
        found = checkpoint.latest(folder)
        if found is None:
            raise CheckpointError(f"{folder}: no checkpoint in this run yet; `ditkit train` makes them")
        step = found[0]
    notes: list[str] = []
    state = stored.read(folder, step, weights, say=notes.append)
    model = _filled(recipe, state, folder) if recipe.adapter is None else tuned(folder, recipe, state)
    projectors = None
    if recipe.align is not None:
        state = stored.read(folder, step, weights, "align")
        projectors = projectors_of({k.removeprefix("projectors."): v for k, v in state.items()})
    facts = {"source": "ditkit", "weights": weights, "step": step, "notes": tuple(notes), **_data(data_facts(folder))}
    return _loaded(recipe, model, projectors, **facts)


def _exported(folder: Path, weights: str) -> Loaded:
    recipe = from_file(folder / "recipe.json")
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        facts = {key: card[key] for key in ("source", "weights", "step")} | _data(card.get("data", {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / CARD}: not what `ditkit convert` writes ({error!r})") from None
    if str(facts["weights"]).startswith(("ema", "power")) and weights == "raw":
        raise CheckpointError(f"{folder}: holds averaged weights only; convert the run again with weights=raw")
    model = _filled(recipe, _tensors(folder / MODEL), folder)
    projectors = projectors_of(_tensors(folder / PROJECTORS)) if (folder / PROJECTORS).is_file() else None
    return _loaded(recipe, model, projectors, **facts)


def _data(told: dict) -> dict[str, Any]:
    """Class names, some captions, fingerprint and text encoder of the training images, as `Loaded` keeps them."""
    words = {name: tuple(map(str, told.get(name, ()))) for name in ("classes", "captions")}
    return {**words, "images": str(told.get("fingerprint", "")), "encoder": str(told.get("text", ""))}


def _tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: not readable (damaged or incomplete?): {error}") from None


def _filled(recipe: Recipe, state: dict[str, torch.Tensor], folder: Path) -> nn.Module:
    """The recipe's network around these tensors; CheckpointError if they belong to another one."""
    with torch.device("meta"):
        model = build_model(recipe.model)
    check(f"recipe of {folder}", state, model.state_dict())
    model.load_state_dict(state, assign=True)
    return model


def _loaded(recipe: Recipe, model: nn.Module, projectors: nn.ModuleList | None, **facts: Any) -> Loaded:
    depth = None
    if recipe.align is not None and projectors is not None:
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
    data: dict[str, Any] = {"fingerprint": loaded.images, "classes": list(loaded.classes)}
    if loaded.recipe.text is not None:
        data |= {"captions": list(loaded.captions), "text": loaded.encoder}
    card = {"source": loaded.source, "weights": loaded.weights, "step": loaded.step, "data": data}
    with new_folder(folder) as draft:
        save_file(contiguous(loaded.model.state_dict()), draft / MODEL)
        if loaded.projectors is not None:
            save_file(contiguous(loaded.projectors.state_dict()), draft / PROJECTORS)
        (draft / "recipe.json").write_text(dump(loaded.recipe, "json"), encoding="utf-8")
        (draft / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def contiguous(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict as safetensors wants it: on the CPU, contiguous."""
    return {key: value.detach().cpu().contiguous() for key, value in state.items()}
