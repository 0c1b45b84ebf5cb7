"""What the demo found, as a page: findings in words, then curves, samples, scores, teacher, cost, recipes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from torch import Tensor

from ditkit.analysis.cost import cost
from ditkit.evaluation import Report, Score, Space, in_words, read_rows, score_table
from ditkit.evaluation.sections import Section, class_grids, facts, join, json_block, table
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.run_page import training_curves

TITLES = {
    "classifier": (
        "Classifier features",
        "a small classifier trained on the same images; no model here was trained towards it",
    ),
    "pixels": ("Pixels", "nothing was trained for this space"),
    "teacher": ("Teacher features", "aligned models are trained towards this space, so it favours them"),
}
PROBES = {
    "knn": "k-NN",
    "linear": "linear probe",
    "knn_10": "k-NN, 10 labels a class",
    "linear_10": "linear probe, 10 labels a class",
}


@dataclass(frozen=True)
class Arm:
    """One trained model: scores by space, pictures (uint8 images, labels) drawn with guidance, training seconds."""

    name: str
    folder: Path
    recipe: Recipe
    scores: dict[str, list[Score]]
    pictures: tuple[Tensor, Tensor]
    seconds: float


@dataclass(frozen=True)
class Findings:
    """Everything that the page shows. floors: space -> what half of the real images scores against the other half.

    further: sections after the cost; remarks: what the headline says of them.
    """

    arms: Sequence[Arm]
    real: tuple[Tensor, Tensor]
    classes: Sequence[str]
    floors: dict[str, dict[str, float]]
    probe: dict
    classifier_accuracy: float | None
    teacher: dict
    environment: dict
    seconds: float
    smoke: bool = False
    further: Sequence[Section] = field(default_factory=tuple)
    remarks: Sequence[str] = field(default_factory=tuple)

    @property
    def names(self) -> str:
        """The arms in words: "A, B and C"."""
        *first, last = (arm.name for arm in self.arms)
        return f"{', '.join(first)} and {last}" if first else last

    @property
    def pairs(self) -> list[tuple[Arm, Arm]]:
        """Who is compared: everyone with the first, and aligned models with each other."""
        both = combinations(self.arms, 2)
        return [(a, b) for a, b in both if a is self.arms[0] or (a.recipe.align and b.recipe.align)]


def page(f: Findings) -> Report:
    """The findings as a report."""
    sections = [
        samples(f),
        scores(f),
        losses(f),
        teacher(f),
        costs(f),
        *f.further,
        join(
            "Recipes",
            [json_block(a.name, a.recipe.model_dump(mode="json"), "Show the resolved recipe") for a in f.arms],
        ),
        json_block("Environment", f.environment, "Show versions and machine"),
    ]
    title = f"{f.names} on handwritten digits"
    return Report(title, summary(f), sections, f"Made by ditkit in {f.seconds:.0f} s. Numbers are as measured.")


def summary(f: Findings) -> list[str]:
    """The headline: what was done, and what came out, also where alignment gained nothing."""
    first, steps = f.arms[0], f.arms[0].recipe.training.steps
    batch, n = first.recipe.training.batch, first.scores["classifier"][0].protocol.n
    lines = [
        f"{len(f.real[0]):,} real 8x8 images of scikit-learn's digits; {f.names} trained "
        f"from the same seed for {steps} steps of {batch} images; {n:,} samples of each, scored without guidance."
    ]
    if f.smoke:
        lines.insert(0, "Smoke run: it proves that everything works; its numbers mean nothing.")
    for space in first.scores:
        lines.append(compared(f, space, "frechet", f"Fréchet distance, {TITLES[space][0].lower()}"))
    lines.append(compared(f, "classifier", "agreement", "Class agreement"))
    floor = f.floors["classifier"]["frechet"]
    lines.append(
        f"For scale: in classifier features one half of the real images is {floor:.3g} from the other half. "
        "One training seed: the limits cover the sampling of images, not a repetition of the training."
    )
    return [*lines, *fairness(f), *f.remarks]


def compared(f: Findings, space: str, metric: str, title: str) -> str:
    """One measure in words, a sentence for each pair."""
    told = []
    for pair in f.pairs:
        a, b = (next(s for s in arm.scores[space] if s.metric == metric) for arm in pair)
        sentence = in_words(a, b, (pair[0].name, pair[1].name), title).removeprefix(f"{title}: ")
        told.append(sentence[0].upper() + sentence[1:])
    return f"{title}: {' '.join(told)}"


def fairness(f: Findings) -> list[str]:
    """What else than its split a DDT among the arms has of its own."""
    decoupled = [arm for arm in f.arms if arm.recipe.model.kind == "ddt"]
    partners = [arm.name for arm in f.arms if arm.recipe.align and arm not in decoupled]
    if not decoupled or not partners:
        return []
    name, was, now = decoupled[0].name, *(arm.recipe.training.betas[1] for arm in (f.arms[0], decoupled[0]))
    return [
        f"{name} differs in more than its encoder and decoder: in its blocks (RMSNorm, SwiGLU, RoPE, modulation of "
        f"every token), in the density of its training times (logit-normal) and in Adam's beta2 ({now}, not {was}). "
        f"So recipe is compared with recipe. {partners[0]} is its fairer partner: both are aligned to one teacher."
    ]


def losses(f: Findings) -> Section:
    """The curves of all trainings."""
    section = training_curves({a.name: read_rows(a.folder / "metrics.jsonl") for a in f.arms}, " (held-out images)")
    common = f.arms[0].recipe.objective
    others = [arm.name for arm in f.arms if arm.recipe.objective != common]
    if not others:
        return section
    note = f"{section.note} The training loss of {', '.join(others)} is over other times: compare validation losses."
    return replace(section, note=note)


def samples(f: Findings) -> Section:
    """Sample grids by class, the real images first."""
    rows = {"real": f.real, **{arm.name: arm.pictures for arm in f.arms}}
    note = "Drawn with classifier-free guidance 2 (scores below: without). The same noise for every model."
    return class_grids("Samples by class", rows, f.classes, note=note)


def scores(f: Findings) -> Section:
    """The score table with floors and protocols."""
    spaces = [
        Space(TITLES[key][0], {arm.name: arm.scores[key] for arm in f.arms}, f.floors[key], TITLES[key][1])
        for key in f.arms[0].scores
    ]
    note = "The last column is what one half of the real images scores against the other half"
    if f.classifier_accuracy is not None:
        note += f"; the classifier itself names {f.classifier_accuracy:.1%} of held-out real images correctly"
    return score_table("Scores", spaces, note + ".")


def teacher(f: Findings) -> Section:
    """What the teacher learned, beside its random initialisation and raw pixels."""
    found, gains, protocol = f.probe["scores"], f.probe["gains"], f.probe["protocol"]

    def shown(numbers: dict) -> str:
        return f"{numbers['mean']:.1%} ± {numbers['error']:.1%}"

    rows: list[list[Any]] = [
        [
            title,
            *(shown(found[key][who]) for who in ("teacher", "random_init", "pixels")),
            f"{gains[key]['standard_errors']:.1f}",
        ]
        for key, title in PROBES.items()
    ]
    columns = ("held-out accuracy", "teacher", "its random initialisation", "raw pixels", "gain / its error")
    note = (
        f"{protocol['draws']} label draws, mean ± standard error; last column: gain over the random initialisation, "
        "draw by draw, divided by its standard error. "
        f"The teacher saw {protocol['train']:,} images without labels for {f.teacher['seconds']:.0f} s."
    )
    return table("The teacher", columns, rows, note)


def costs(f: Findings) -> Section:
    """Parameters, multiply-accumulates, seconds and images a second."""
    rows: list[list[Any]] = []
    for arm in f.arms:
        spent = cost(arm.recipe.model)
        rate = arm.recipe.training.steps * arm.recipe.training.batch / max(arm.seconds, 1e-9)
        evaluations = arm.scores["classifier"][0].protocol.evaluations
        rows.append([arm.name, spent.trainable, spent.gmacs * 1000, arm.seconds, rate, evaluations])
    columns = ("model", "parameters", "MMAC per forward", "training seconds", "images/s", "evaluations per sample")
    note = (
        "Parameters without projectors and teacher; seconds include the teacher's forward passes. They are wall-clock "
        "seconds: compare them only if nothing else ran on the machine meanwhile."
    )
    machine = {"device": f.environment["device"], "threads": f.environment["threads"], "total seconds": f.seconds}
    return join("Cost", [table("Models", columns, rows, note), facts("Machine", machine)])
