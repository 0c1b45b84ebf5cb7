"""Weights that a run begins from: another run's, an exported model's or a published file's, at any resolution."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ditkit.checkpoints import SOURCES, CheckpointError
from ditkit.checkpoints.keys import check
from ditkit.config import diff
from ditkit.models import AnyModel, build_model
from ditkit.recipes.load import CARD, Loaded, load
from ditkit.recipes.recipe import Recipe, Start
from ditkit.training import list_steps
from ditkit.training.state import Job
from ditkit.training.weights import describe

# no weights hang on them, or their shapes tell
FREE = {"size", "checkpointing", "adaln_zero", "mlp_ratio", "text_length", "table", "step", "init"}
TABLE = "position"  # DiT's frozen position table: made for each grid, never carried to another


def open_start(recipe: Recipe, folder: Path) -> Loaded | None:
    """The weights that `recipe` begins from, checked against its network; None without any, or if `folder` has begun.

    A run with checkpoints goes on from them: what it once began from may be gone. Raises CheckpointError or ValueError,
    one line: nothing there, damaged, or another network (and what differs).
    """
    start = recipe.start
    if start is None or list_steps(folder):
        return None
    place = Path(start.path).expanduser()
    _check_source(start, place)
    shape: dict[str, int] = {}
    if start.source in SOURCES:  # what tensors cannot tell, this recipe does
        told = {key: getattr(recipe.model, key, 0) for key in ("heads", "patch", "encoder_blocks")}
        shape = {key: value for key, value in told.items() if value and key in SOURCES[start.source].arguments}
    try:
        loaded = load(place, start.weights, step=start.step, source=start.source, **shape)
    except ValueError as error:
        mend = "" if place.exists() else "; name other weights with --start, or none"
        raise CheckpointError(f"start: {error}{mend}") from None
    if wrong := differences(loaded.settings, recipe.model):
        raise ValueError(f"start: {place} holds another network: {'; '.join(wrong)}")
    with torch.device("meta"):
        fitted(loaded, recipe.model, build_model(recipe.model).state_dict())
    return loaded


def _check_source(start: Start, place: Path) -> None:
    """ValueError where family or step are given to what has none, or a published file comes without its family."""
    if not place.exists():
        return  # the loader says so
    run = (place / "recipe.json").is_file() and (place / "checkpoints").is_dir()
    ours = run or (place / CARD).is_file()
    if ours and start.source is not None:
        raise ValueError(f"start: {place} is a ditkit model: leave out start.source={start.source}")
    if not ours and start.source is None:
        raise ValueError(
            f"start: {place} is no run and no exported model; of a published file say the family: "
            f"start.source={'|'.join(SOURCES)}"
        )
    if start.step is not None and not run:
        raise ValueError(f"start: {place} is no run and has no steps: leave out start.step={start.step}")


def differences(there: AnyModel, here: AnyModel) -> list[str]:
    """What keeps one network from taking another's weights: "model.width is 64 there, 128 here"; nothing if it can."""
    if there.kind != here.kind:
        return [f"model.kind is {there.kind} there, {here.kind} here"]
    return [f"model.{d.key} is {d.a} there, {d.b} here" for d in diff(there, here, ignore=FREE)]


def fitted(loaded: Loaded, settings: AnyModel, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The loaded network's tensors for a network of `settings` with tensors `own`; its position table is its own.

    CheckpointError lists keys and shapes that do not fit.
    """
    state = loaded.model.state_dict()
    if TABLE in own and loaded.settings != settings:
        state[TABLE] = own[TABLE]
    check("start", state, own)
    return state


def begin(job: Job, recipe: Recipe, loaded: Loaded | None) -> list[str]:
    """Put the loaded weights into the job's network, and into its projectors where they fit; say what was done.

    To be called before training makes its average, which begins as a copy.
    """
    if loaded is None or recipe.start is None:
        return []
    job.model.load_state_dict(fitted(loaded, recipe.model, job.model.state_dict()))
    plain = {"ema": "averaged", "flat": "the file's"}
    which = plain.get(loaded.weights) or describe(loaded.weights)
    step = "" if loaded.step is None else f", step {loaded.step}"
    lines = [f"begins from {recipe.start.path}{step}, {which} weights{_projectors(job, recipe, loaded)}"]
    there, here = loaded.settings, recipe.model
    told = (
        loaded.source == "ditkit" or TABLE in loaded.model.state_dict()
    )  # DDT's published files do not say their size
    if told and there.size != here.size:
        sizes = [f"{size[0]}x{size[1]}" for size in (there.size, here.size)]
        lines.append(f"they were trained on {sizes[0]}, here it is {sizes[1]}; positions follow")
    objective = recipe.objective
    if (loaded.path, loaded.prediction) != (objective.path, objective.prediction):
        lines.append(
            f"they predict {loaded.prediction} on the {loaded.path.kind} path, this run trains "
            f"{objective.prediction} on the {objective.path.kind} path: much has to be learned anew"
        )
    return lines


def _projectors(job: Job, recipe: Recipe, loaded: Loaded) -> str:
    """Fill the projectors if they are of the same block and shapes; the end of the line that says so."""
    if job.aligner is None or recipe.align is None:
        return ""
    if loaded.projectors is None:
        return "; it has no projectors, they begin at random"
    depths = recipe.align.depths(len(recipe.teachers))
    if loaded.align_depth not in (None, depths[0]):
        return f"; its projectors read block {loaded.align_depth}, here {depths[0]}: they begin at random"
    try:
        check("start", loaded.projectors.state_dict(), job.aligner.projectors.state_dict())
    except CheckpointError:
        return "; its projectors are of other sizes, they begin at random"
    job.aligner.projectors.load_state_dict(loaded.projectors.state_dict())
    return " and projectors"
