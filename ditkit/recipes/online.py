"""A run's scores of itself: what `ditkit evaluate` would find, computed while it trains.

RUN/evaluations/0000200.json    the scores of that step's averaged weights, each with its protocol
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ditkit.config import fingerprint
from ditkit.data.cache import is_cache
from ditkit.diffusion import SamplerSettings
from ditkit.evaluation import Request, generate
from ditkit.evaluation.generate import weights_fingerprint
from ditkit.models import build_model
from ditkit.protocols import Extractor
from ditkit.recipes.adapters import tuned
from ditkit.recipes.build import Parts
from ditkit.recipes.load import Loaded
from ditkit.recipes.online_settings import EvaluationSettings
from ditkit.recipes.prompts import remembered
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.sampling import Choices, choose_request, choose_sampler, describe_weights
from ditkit.recipes.score_files import Scores, read_scores, save_scores
from ditkit.recipes.scoring import (
    Judging,
    RealSide,
    Samples,
    check_belongs,
    check_request,
    choose_judging,
    judge,
    load_extractors,
    open_captions,
    open_real_side,
)
from ditkit.training.state import Job, kept

FOLDER = "evaluations"

Say = Callable[[str], None]
Bar = Callable[..., None]  # bar(stage, done, total)


def hidden(*_: object) -> None:
    """A bar that nobody sees."""


@dataclass
class Online:
    """Everything but the weights of an evaluation that recurs; `loaded` holds a network without numbers."""

    loaded: Loaded
    sampling: SamplerSettings
    request: Request
    judging: Judging
    real: RealSide
    extractors: dict[str, Extractor]
    folder: Path
    notes: tuple[str, ...] = ()  # what to doubt
    bar: Bar = hidden
    say: Say = hidden

    def attach(self, job: Job, bar: Bar, say: Say) -> None:
        """Let the job ask for these scores. say gets what scoring says, each line once."""
        self.bar, self.say = bar, Once(say)
        assert self.loaded.recipe.evaluation is not None
        job.evaluate, job.evaluate_every = self, self.loaded.recipe.evaluation.every

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        """Score these weights, write evaluations/STEP.json, return "SPACE_METRIC" -> value.

        Where the file holds these very weights' scores, asked for in the same way, they are taken from there.
        """
        loaded = self._of(model, step)
        path, asked = path_of(self.folder, step), self.fingerprint(loaded.model)
        scores = found_at(path)
        if scores is None or scores.asked != asked:
            made = generate(
                loaded, self.sampling, self.request, device=loaded.device,
                progress=lambda done, total: self.bar("samples to score", done, total),
            )  # fmt: skip
            samples = Samples(made.images, made.labels, path, made)
            scores = judge(
                samples, self.real, self.judging, self.extractors, loaded.device,
                what=str(self.folder), weights=describe_weights(loaded), bar=self.bar, say=self.say,
            )  # fmt: skip
            scores = scores.model_copy(update={"asked": asked})
            save_scores(scores, path)
        return numbers(scores)

    def _of(self, model: nn.Module, step: int) -> Loaded:
        """What `ditkit.load` would make of the checkpoint of these weights."""
        if self.loaded.recipe.adapter is not None:
            model = tuned(self.folder, self.loaded.recipe, kept(model)).to(self.loaded.device)
            model.eval().requires_grad_(False)
        loaded = replace(self.loaded, model=model, step=step)
        loaded.__dict__ |= {name: self.loaded.__dict__[name] for name in ("codec", "text")}
        return loaded

    def fingerprint(self, model: nn.Module) -> str:
        """16 hex digits of all that decides the scores: weights, sampler, request, codec, real images, extractors."""
        text = getattr(self.loaded.text, "id", "")
        spaces = ",".join(f"{name}={extractor.id}" for name, extractor in self.extractors.items())
        parts = [weights_fingerprint(model), self.loaded.codec.id, text, self.real.source.fingerprint, spaces]
        parts += [fingerprint(settings) for settings in (self.sampling, self.request, self.judging)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def open_online(parts: Parts, folder: Path) -> Online | None:
    """Load what the recipe's evaluation needs; None for a recipe without one.

    Raises what `ditkit evaluate` raises before it samples: PretrainedMissing, DataError, SettingsError or ValueError,
    one line.
    """
    recipe, settings = parts.recipe, parts.recipe.evaluation
    if settings is None:
        return None
    if recipe.text is not None and settings.labels != "random":
        raise ValueError("evaluation.labels: the model reads text and knows no classes; it draws captions of the data")
    if parts.cache is not None and not settings.reference and judged_by_cache(recipe, settings):
        raise ValueError(f"evaluation: {parts.cache.no_pictures()}: evaluation.data.source=IMAGES")
    loaded, judging = template(parts), judging_of(recipe, settings)
    doubts = check_belongs(loaded, judging)
    choices = Choices(
        n=settings.n, classes=settings.labels, seed=settings.seed, guidance=settings.guidance, chunk=settings.chunk,
        decode=settings.decode, uint8=settings.uint8,
    )  # fmt: skip
    chosen = recipe if settings.sampling is None else recipe.model_copy(update={"sampling": settings.sampling})
    sampling, notes = choose_sampler(replace(loaded, recipe=chosen), choices)
    request = choose_request(loaded, choices, settings.n, open_captions(loaded, judging))
    check_request(judging, loaded, request)
    height, width = (side * parts.codec.factor for side in recipe.model.size)
    blank = torch.empty((1, parts.source.channels, height, width), dtype=torch.uint8)
    real = RealSide(open_real_side(judging, blank))
    extractors = load_extractors(settings.extractors, parts.device)
    told = tuple(f"evaluation: {line}" for line in (*doubts, *notes))
    return Online(loaded, sampling, request, judging, real, extractors, folder, told)


def judged_by_cache(recipe: Recipe, settings: EvaluationSettings) -> bool:
    """Whether the real side of an evaluation would be a cache of latents."""
    return is_cache(Path((settings.data or recipe.data).source).expanduser())


def template(parts: Parts) -> Loaded:
    """The run as `ditkit.load` opens it, its network still without numbers."""
    recipe = parts.recipe
    with torch.device("meta"):
        model = build_model(recipe.model)
    captions = () if parts.text is None else tuple(remembered(parts.source))
    loaded = Loaded(
        model, recipe.objective.path, recipe.objective.prediction, None, None, recipe.model, "ditkit", "ema", recipe,
        classes=tuple(parts.source.classes), images=parts.source.fingerprint, captions=captions,
        encoder=getattr(parts.text, "id", ""), device=parts.device,
    )  # fmt: skip
    loaded.__dict__ |= {"codec": parts.codec, "text": parts.text}
    return loaded


def judging_of(recipe: Recipe, settings: EvaluationSettings) -> Judging:
    """The real side of an evaluation: a file, the images it names, or the recipe's own. One-line errors."""
    if settings.reference and settings.data is not None:
        raise ValueError("evaluation.reference and evaluation.data: give one of them")
    keys = [f"{name}={value}" for name in ("protocol", "reference", "real") if (value := getattr(settings, name))]
    data = recipe.data.single() if settings.data is None else settings.data
    chosen = choose_judging(keys, None if settings.reference else data.source, recipe)
    return chosen.with_({"classifier": settings.classifier, "data": data})  # captions come from there too


class Once:
    """Passes each line on once: what scoring says of the data is the same at every step."""

    def __init__(self, say: Say):
        self.say, self.said = say, set[str]()

    def __call__(self, text: str) -> None:
        if text not in self.said:
            self.said.add(text)
            self.say(text)


def path_of(folder: Path, step: int) -> Path:
    """Where the scores of one step stand."""
    return folder / FOLDER / f"{step:07d}.json"


def found_at(path: Path) -> Scores | None:
    """The scores that a file holds; None where there is none, or one that this version cannot read."""
    try:
        return read_scores(path)
    except ValueError:
        return None


def numbers(scores: Scores) -> dict[str, float]:
    """ "SPACE_METRIC" -> value, as metrics.jsonl has them after "eval_".

    Signs in a space's name become "-"; of spaces whose names are alike then, later ones get "-2", "-3", ...
    """
    found: dict[str, float] = {}
    taken: set[str] = set()
    for name, space in scores.spaces.items():
        plain = re.sub(r"[^0-9A-Za-z.-]+", "-", name)
        names = (plain if k == 1 else f"{plain}-{k}" for k in itertools.count(1))
        chosen = next(free for free in names if free not in taken)
        taken.add(chosen)
        found |= {f"{chosen}_{score.metric}": score.value for score in space.scores}
    return found
