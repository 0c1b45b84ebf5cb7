"""A recipe's published scores beside measured ones, with every way in which they came about differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ditkit.diffusion import SamplerSettings
from ditkit.evaluation import Protocol, Score
from ditkit.evaluation.named import INCEPTION, NAMED, of_family
from ditkit.evaluation.uncertainty import within_noise
from ditkit.recipes.load import Loaded
from ditkit.recipes.recipe import Published, Recipe
from ditkit.recipes.registry import RECIPES
from ditkit.recipes.sampling_words import describe_sampler
from ditkit.recipes.score_files import Scores

UNTOLD = "untold"

# column -> (field of Published, our metric)
COLUMNS = {
    "FID": ("fid", "frechet"),
    "sFID": ("sfid", "spatial_frechet"),
    "IS": ("inception_score", "inception_score"),
    "P": ("precision", "precision"),
    "R": ("recall", "recall"),
}


@dataclass(frozen=True)
class Scored:
    """What is known of the weights that were scored. A file does not tell how long it was trained, or on what.

    step: training steps. averaged: EMA or raw. data: the data source of their training.
    """

    step: int | None = None
    averaged: bool | None = None
    data: str = ""


@dataclass(frozen=True)
class PublishedTable:
    """lines: a row's name and its cells under COLUMNS, the measured one first. remarks: one for each row."""

    lines: tuple[tuple[str, ...], ...]
    remarks: tuple[str, ...]


def scored(loaded: Loaded) -> Scored:
    """What a loaded model tells of its weights: a run and its exports all of it, a published file what is in it."""
    data = loaded.recipe.data.source if loaded.source == "ditkit" else ""
    return Scored(loaded.step, None if loaded.weights == "flat" else loaded.weights != "raw", data)


def published_table(recipe: Recipe, scores: Scores, of: Scored | None = None) -> PublishedTable | None:
    """Measured beside published: rows of the sampler in use where there are any, else all.

    None where the network is not the published row's, or nothing was published. A gap is judged only where nothing is
    known to differ and nothing is untold, and as that of another training.
    """
    of = of or Scored()
    row_of = RECIPES.get(recipe.name)
    if not recipe.published or (row_of is not None and row_of().model != recipe.model):
        return None
    measured = _inception(scores)
    protocol = measured[0].protocol if measured else next(iter(scores.spaces.values())).scores[0].protocol
    rows = [p for p in recipe.published if p.sampling.model_dump(exclude={"guidance"}) == protocol.sampler]
    lines, remarks = [_measured_line(measured)], []
    for row in rows or recipe.published:
        name = f"{row.table}, {row.steps:,} steps"
        values = (getattr(row, key) for key, _ in COLUMNS.values())
        lines.append((name, *("" if value is None else f"{value:g}" for value in values)))
        apart = unlike(row, recipe, protocol, of)
        told = [f"{_verdict(apart)}: {'; '.join(apart)}"] if apart else [_same(protocol), *_gaps(row, measured)]
        remarks.append("; ".join([f"{name}, {describe_sampler(row.sampling)}: {told[0]}", *told[1:]]))
    return PublishedTable(tuple(lines), tuple(remarks))


def unlike(row: Published, recipe: Recipe, protocol: Protocol, of: Scored) -> list[str]:
    """Every way in which a published row came about otherwise than scores of this protocol, a phrase each.

    What is not known of the scores differs too, as "here untold".
    """
    adm = protocol.name in NAMED and NAMED[protocol.name].against == "file"
    real = f"{protocol.reference_n:,} images" if protocol.reference_n else "a file of statistics"
    made = (
        SamplerSettings.model_validate({**protocol.sampler, "guidance": protocol.guidance})
        if protocol.sampler
        else None
    )
    trained = RECIPES[recipe.name]().data.source if recipe.name in RECIPES else recipe.data.source
    facts = (
        ("features and reference", row.reference, row.reference if adm else f"{protocol.extractor} and {real}"),
        ("images", f"{row.images:,}", f"{protocol.n:,}"),
        ("labels", row.labels, UNTOLD if protocol.untold else protocol.labels),
        ("sampler", describe_sampler(row.sampling), describe_sampler(made) if made else UNTOLD),
        ("uint8", row.quantise, UNTOLD if protocol.untold else protocol.quantiser),
        ("decoder", row.decoder, _decoder(recipe) if protocol.codec != "given" else UNTOLD),
        ("weights of step", f"{row.steps:,}", UNTOLD if of.step is None else f"{of.step:,}"),
        ("weights", "averaged", UNTOLD if of.averaged is None else "averaged" if of.averaged else "raw"),
        ("trained on", trained, _data(of.data, trained)),
    )
    apart = [f"{key} {there}, here {here}" for key, there, here in facts if there != here]
    return apart if row.exact else [*apart, f"its sampler was not published in full ({row.note})"]


def _data(here: str, there: str) -> str:
    """The data of the weights; a folder of the same name, wherever it lies, is taken for the same."""
    same = Path(here).parts[-len(Path(there).parts) :] == Path(there).parts
    return there if same else here or UNTOLD


def _verdict(apart: Sequence[str]) -> str:
    """What follows from differences, some of which may be nothing but silence."""
    return "not known to be comparable" if all(d.endswith(f"here {UNTOLD}") for d in apart) else "not comparable"


def _same(protocol: Protocol) -> str:
    """ "Same protocol", and which part of that rests on names alone."""
    return (
        f"same protocol by what is told (neither reference {protocol.reference} nor network {protocol.extractor} is "
        "verified by a published checksum)"
    )


def _decoder(recipe: Recipe) -> str:
    return recipe.codec.place or recipe.codec.kind


def _inception(scores: Scores) -> Sequence[Score]:
    found = (space.scores for space in scores.spaces.values() if of_family(space.extractor, INCEPTION))
    return next(found, ())


def _measured_line(measured: Sequence[Score]) -> tuple[str, ...]:
    if not measured:
        return ("measured: not with Inception", *[""] * len(COLUMNS))
    values = {score.metric: f"{score.value:.4g}" for score in measured}
    return ("measured", *(values.get(metric, "") for _, metric in COLUMNS.values()))


def _gaps(row: Published, measured: Sequence[Score]) -> list[str]:
    """Of the Frechet distances: whether the gap to what is published is within noise. The paper gives no limits."""
    told = []
    scores = {score.metric: score for score in measured}
    for title in ("FID", "sFID"):
        key, metric = COLUMNS[title]
        there, here = getattr(row, key), scores.get(metric)
        if there is None or here is None or here.interval is None:
            continue
        gap = within_noise(there, here.value, (None, here.interval), trainings=True)
        told.append(f"{title}: {gap.statement}")
    return told
