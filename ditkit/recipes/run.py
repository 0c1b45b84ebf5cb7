"""A run folder: `train` fills one with a recipe, and the same call continues it."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from ditkit.config import diff, dump
from ditkit.evaluation import make_request, save_png
from ditkit.evaluation.generate import sample_chunk
from ditkit.evaluation.sheet import contact_sheet
from ditkit.files import write_text
from ditkit.ranks import ALONE, Ranks
from ditkit.recipes.adapt import concerns, explain
from ditkit.recipes.adapters import check_start, check_targets, tune
from ditkit.recipes.build import Parts, build_job, prepare
from ditkit.recipes.environment import ENVIRONMENT, data_facts, environment
from ditkit.recipes.load import Loaded, load
from ditkit.recipes.online import Bar, hidden, open_online
from ditkit.recipes.place import check_writable
from ditkit.recipes.prompts import prompt_request, remembered
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.registry import from_file
from ditkit.recipes.run_page import write_run_report
from ditkit.recipes.start import begin, open_start
from ditkit.recipes.text import listening
from ditkit.training import list_steps
from ditkit.training.files import SaveError
from ditkit.training.files import prepare as prepare_folder
from ditkit.training.guard import NonFinite
from ditkit.training.log import Log, Row
from ditkit.training.loop import fit
from ditkit.training.parallel import check_shards
from ditkit.training.start import Resume
from ditkit.training.state import Job, State
from ditkit.training.trackers import check_trackers, show_picture

T = TypeVar("T")

RECIPE = "recipe.json"
MAY_CHANGE = {
    "name", "title", "source", "data", "training", "sampling", "evaluation", "unpublished", "notes", "published"
}  # fmt: skip
FIXED = {
    "training.batch",
    "training.seed",
    "data.flip",
    "data.synthetic_share",
    "data.empty_share",
}  # but these: the position in the data and all draws follow
PREVIEW = 64  # images of the sheet that ends a run


def train(
    recipe: Recipe, folder: Path, device: torch.device, *, keep: Collection[str] = (), resume: Resume = "auto",
    on_step: Callable[[int, Row], None] | None = None, say: Callable[[str], None] | None = None, bar: Bar | None = None,
    ranks: Ranks = ALONE,
) -> State:  # fmt: skip
    """Train `recipe` in `folder` (made if needed; a run that is there is continued) and return the final state.

    keep: dotted keys that the user has set and the data may not change. Writes recipe.json and environment.json before
    the first step, samples/<step>.png and report.html after the last. say gets every line of log.txt: what the data
    said of themselves, what they changed in the recipe, what to doubt, what weights it begins from, images that cannot
    be used; bar(stage, done, total) how far the scores are that `evaluation` asks for. Nothing is written before data,
    codec, teachers, extractors and weights to begin from are there; a run that has all its steps keeps its recipe.
    ranks: this process among all that train, inside `ditkit.ranks.together`; each calls this alike, and the first one
    writes. Raises what `prepare`, `open_start`, `open_online` and `fit` raise, one line each.
    """
    with ranks.agreed():
        check_trackers(recipe.training.trackers)
        check_shards(recipe.training.parallel.shards, ranks.world)
        check_folder(folder)
        check_start(recipe, folder)
    parts = in_turn(ranks, lambda: prepare(recipe, device, keep))
    with ranks.agreed():
        check_targets(parts.recipe)
        begun = open_start(parts.recipe, folder)
        online = open_online(parts, folder) if ranks.first else None
        prepare_folder(folder)
        check_same(parts.recipe, folder, parts.source.fingerprint)
        kept = parts.recipe
        if done := nothing_left(parts.recipe, folder, resume):
            kept = from_file(folder / RECIPE)  # what made the weights; nothing is trained now
    if not done:
        in_turn(ranks, lambda: write_run_files(parts, folder) if ranks.first else None)
    log = Log(folder, on_message=say, writes=ranks.first)
    for line in (
        *parts.source.notes,
        *getattr(parts.text, "notes", ()),
        *explain(recipe, parts.recipe, keep),
        *concerns(parts.recipe),
        *(online.notes if online else ()),
    ):
        log.say(line)
    with listening(log.say), one_voice(ranks):
        job = in_turn(ranks, lambda: open_job(parts, folder, begun, log.say, ranks))
        if online is not None:
            online.attach(job, bar or hidden, log.say)
        elif parts.recipe.evaluation is not None:  # another process scores
            job.evaluate, job.evaluate_every = lambda model, step: {}, parts.recipe.evaluation.every
        begun = None  # a second copy of the weights
        state = fit(job, resume=resume, on_step=on_step, on_message=say)
    in_turn(ranks, lambda: write_run_report(kept, folder, preview(folder, parts, state.step)) if ranks.first else None)
    return state


def open_job(parts: Parts, folder: Path, begun: Loaded | None, say: Callable[[str], None], ranks: Ranks) -> Job:
    """The Job of these parts, begun from the weights that the recipe names, with what tunes it."""
    job = build_job(parts, folder, ranks)
    for line in (*begin(job, parts.recipe, begun), *tune(job, parts.recipe)):
        say(line)
    return job


def in_turn(ranks: Ranks, what: Callable[[], T]) -> T:
    """What each process makes of it: the first one before all others, who find what it has left on the disk.

    What goes wrong in the first one ends all, in one line.
    """
    if ranks.world == 1:
        return what()
    made: list[T] = []
    for turn in (True, False):
        with ranks.agreed():
            if ranks.first == turn:
                made.append(what())
    return made[0]


@contextmanager
def one_voice(ranks: Ranks) -> Iterator[None]:
    """What all processes find out together is told by the first one only."""
    try:
        yield
    except (NonFinite, SaveError):
        if ranks.first:
            raise
        raise SystemExit(2) from None


def nothing_left(recipe: Recipe, folder: Path, resume: Resume) -> bool:
    """Whether `folder` holds a run that already has the steps that `recipe` asks for."""
    steps = list_steps(folder) if resume == "auto" and (folder / RECIPE).is_file() else []
    return bool(steps) and steps[-1] >= recipe.training.steps


def check_folder(folder: Path) -> None:
    """Unwritable or ValueError if `folder` can be no run folder; nothing is made."""
    check_writable(folder)
    visible = [p.name for p in folder.iterdir() if not p.name.startswith(".")] if folder.exists() else []
    if visible and RECIPE not in visible:
        raise ValueError(f"{folder} holds something that is no run ({visible[0]}, ...); name another folder with --out")


def check_same(recipe: Recipe, folder: Path, fingerprint: str) -> None:
    """ValueError if `folder` holds checkpoints of something else; steps, rates and samplers may change.

    fingerprint: of the images, which may have moved but not changed.
    """
    steps = list_steps(folder)
    if not (folder / RECIPE).is_file() or not steps:
        return
    if recipe.training.steps < steps[-1]:  # before recipe.json is written: it must not say less than was trained
        raise ValueError(
            f"{folder}: nothing to train: the run is at step {steps[-1]}, {recipe.training.steps} are asked for"
        )
    found = [
        f"{d.key} was {d.a!r}, is {d.b!r}"
        for d in diff(from_file(folder / RECIPE), recipe)
        if d.key in FIXED or d.key.partition(".")[0] not in MAY_CHANGE
    ]
    if data_facts(folder).get("fingerprint", fingerprint) != fingerprint:
        found.append("the images are not those it was trained on")
    if found:
        more = f" and {len(found) - 5} more" if found[5:] else ""
        raise ValueError(f"{folder} holds another run: {'; '.join(found[:5])}{more}; name another folder with --out")


def write_run_files(parts: Parts, folder: Path) -> None:
    """recipe.json (resolved) and environment.json."""
    facts = environment(
        parts.device,
        seed=parts.recipe.training.seed,
        tf32=parts.recipe.training.tf32,
        data={
            "fingerprint": parts.source.fingerprint,
            "images": len(parts.source),
            "classes": list(parts.source.classes),
            **({"captions": remembered(parts.source)} if parts.text is not None else {}),
        },
        codec=parts.codec.id,
        **({"text": parts.text.id} if parts.text is not None else {}),
        teachers=[teacher.id for teacher in parts.teachers],
    )
    write_text(folder / RECIPE, dump(parts.recipe, "json"))
    write_text(folder / ENVIRONMENT, json.dumps(facts, indent=2) + "\n")


def preview(folder: Path, parts: Parts, step: int) -> Path:
    """samples/<step>.png: a sheet of images of the averaged weights, by the recipe's sampler.

    Classes in turn; of a text model, one image of each caption that the run remembers.
    """
    path = folder / "samples" / f"{step:07d}.png"
    if path.exists():
        return path
    loaded = load(folder).to(parts.device)
    loaded.__dict__ |= {"codec": parts.codec, "text": parts.text}
    seed = parts.recipe.training.seed
    if parts.text is not None:
        request = prompt_request(loaded, (), len(loaded.captions), seed=seed).with_({"chunk": PREVIEW})
    else:
        request = make_request(PREVIEW, parts.recipe.model.num_classes, "balanced", seed=seed, chunk=PREVIEW)
    images, _ = sample_chunk(loaded, parts.recipe.sampling, request, 0, parts.device)
    save_png(contact_sheet(images, request, parts.recipe.model.num_classes), path)
    show_picture(parts.recipe.training.trackers, folder, path, step)
    return path
