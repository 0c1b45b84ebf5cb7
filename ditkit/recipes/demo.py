"""The demo: teacher, SiT, SiT + REPA and DDT on real images, sampled, scored and shown on one page.

Fixed steps, not seconds; the same seed and budget for every arm. A further model is one more line in `plan`.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ditkit.analysis.probe import probe_report
from ditkit.data import DataSettings, ImageSource, open_source
from ditkit.diffusion import CFG
from ditkit.evaluation import (
    Classifier,
    ClassifierSettings,
    FewSamples,
    Reference,
    Score,
    generate,
    make_reference,
    make_request,
    read_images,
    score_images,
    train_classifier,
    write_report,
)
from ditkit.evaluation.pixels import Pixels
from ditkit.files import write_text
from ditkit.pretrained import SelfTaught, TeacherSettings
from ditkit.protocols import Extractor
from ditkit.recipes import demo_layers, digits
from ditkit.recipes.analyses.analysis import Found
from ditkit.recipes.demo_page import Arm, Findings, page
from ditkit.recipes.demo_sharing import Trial, headline, sections, share, sharing_seconds
from ditkit.recipes.load import load
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.run import train
from ditkit.recipes.sharing_page import SharingFindings
from ditkit.recipes.trade_off import Judge
from ditkit.training.teacher import TeacherTraining, train_teacher

Progress = Callable[..., None]  # progress(stage, done, total, note="")
GUIDANCE = 2.0  # for pictures; scores are without


@dataclass(frozen=True)
class Budget:
    """How much of everything; fixed numbers, so that a slow machine gets the same result later."""

    teacher_steps: int = 600
    classifier_steps: int = 500
    steps: int = 800
    images: int = 1000
    pictures: int = 40
    probe_draws: int = 5
    share_budgets: tuple[int, ...] = (3, 5, 10)  # encoder runs, of the sampler's 25 evaluations
    share_images: int = 512
    layer_times: tuple[float, ...] = (0.1, 0.5, 0.9)
    layer_images: int = 360  # held-out images that layers are looked at with: all there are


SMOKE = Budget(  # it runs
    teacher_steps=20, classifier_steps=20, steps=20, images=100, pictures=20, probe_draws=2, share_budgets=(5,),
    share_images=20, layer_times=(0.5,), layer_images=60,
)  # fmt: skip


def expected_seconds(budget: Budget) -> dict[str, float]:
    """Seconds of each progress stage on two idle CPU cores, for the remaining time; measured at the full budget."""
    arms = {"SiT": 0.06, "SiT + REPA": 0.07, "DDT": 0.09}  # seconds a step
    images = {"SiT": 0.006, "SiT + REPA": 0.006, "DDT": 0.008}  # seconds a sample
    stages = {"teacher": 0.05 * budget.teacher_steps, "classifier": 0.006 * budget.classifier_steps}
    stages |= {name: seconds * budget.steps for name, seconds in arms.items()}
    stages |= {f"samples of {name}": images[name] * budget.images for name in arms}
    stages |= {f"scores of {name}": 0.006 * budget.images for name in arms}
    looks = len(budget.layer_times)
    stages |= {demo_layers.stage(name): 1.0 * looks for name in arms}
    trial = Trial(budget.share_budgets, budget.share_images, seed=0)
    return stages | sharing_seconds(trial, images["DDT"])


@dataclass(frozen=True)
class Judges:
    """The spaces that samples are scored in, and the real images as they appear there."""

    spaces: dict[str, Extractor]
    references: dict[str, Reference]
    classifier: Classifier


def run_demo(out: Path, budget: Budget, device: torch.device, progress: Progress, seed: int = 0) -> Path:
    """Do everything and return the path of report.html. What a killed demo finished in `out` is not done again.

    ValueError if `out` holds something else, or the demo of another budget or seed.
    """
    claim(out, budget, seed)
    began = time.perf_counter()
    training_part = DataSettings(source="digits", split="train")
    source, held_out = open_source(training_part), open_source(training_part.model_copy(update={"split": "test"}))
    teacher = teach(out / "teacher", source, budget, seed, device, progress)
    untrained = SelfTaught.untrained(teacher.settings, seed).to(device)
    probe = probe_report(teacher, untrained, source, held_out, draws=budget.probe_draws, seed=seed)
    judges = appoint(source, held_out, teacher, budget, seed, device, progress)
    arms = []
    for name, recipe in plan(out / "teacher", budget, seed).items():
        state = train(recipe, out / recipe.name, device, on_step=counter(progress, name, budget.steps))
        arms.append(measure(name, out / recipe.name, state.seconds, judges, budget, device, progress))
    layers = {arm.name: layer_by_layer(arm, out / "teacher", budget, device, progress) for arm in arms}
    sharing = try_sharing(arms[-1], judges, budget, device, progress)
    assert sharing.trade_off is not None
    findings = Findings(
        arms=arms,
        real=read_images(source),
        classes=source.classes,
        floors={name: reference.floor() for name, reference in judges.references.items()},
        probe=probe,
        classifier_accuracy=judges.classifier.accuracy,
        teacher=teacher.facts,
        environment=json.loads((arms[0].folder / "environment.json").read_text(encoding="utf-8")),
        seconds=time.perf_counter() - began,
        smoke=budget == SMOKE,
        further=[*demo_layers.sections(layers), *sections(sharing)],
        remarks=[*demo_layers.headlines(layers), headline(arms[-1].name, sharing.trade_off)],
    )
    write_text(out / "scores.json", json.dumps({a.name: dump_scores(a.scores) for a in arms}, indent=1) + "\n")
    return write_report(page(findings), out / "report.html")


def plan(teacher: Path, budget: Budget, seed: int) -> dict[str, Recipe]:
    """What is compared: name on the page -> recipe, with the demo's budget and seed."""
    changes = {"data.split": "train", "training.steps": budget.steps, "training.seed": seed}
    aligned = {"teachers": (TeacherSettings(kind="selftaught", source=str(teacher)),)}
    return {
        "SiT": digits.sit().with_({**changes, "name": "sit"}),
        "SiT + REPA": digits.repa().with_({**changes, **aligned, "name": "repa"}),
        "DDT": digits.ddt().with_({**changes, **aligned, "name": "ddt"}),
    }


def claim(out: Path, budget: Budget, seed: int) -> None:
    """Write demo.json, or refuse a folder that holds something else."""
    card, wanted = out / "demo.json", {"budget": asdict(budget), "seed": seed}
    wanted = json.loads(json.dumps(wanted))  # tuples as they read back
    if card.is_file():
        if json.loads(card.read_text(encoding="utf-8")) != wanted:
            raise ValueError(f"{out} holds a demo of another budget or seed; name another folder with --out")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and holds no demo; name another folder with --out")
    write_text(card, json.dumps(wanted, indent=2) + "\n")


def teach(
    folder: Path, source: ImageSource, budget: Budget, seed: int, device: torch.device, progress: Progress
) -> SelfTaught:
    """The teacher in `folder`, trained first if it is not there. It sees the training images, never their labels."""
    if folder.is_dir() and any(folder.iterdir()):
        return SelfTaught.load(folder, device)
    training = TeacherTraining(steps=budget.teacher_steps)
    on_step = counter(progress, "teacher", budget.teacher_steps)
    return train_teacher(source, training, folder, seed=seed, device=device, progress=on_step)


def appoint(
    source: ImageSource, held_out: ImageSource, teacher: SelfTaught, budget: Budget, seed: int, device: torch.device,
    progress: Progress,
) -> Judges:  # fmt: skip
    """Train the classifier and look at the real images in every space."""
    images, labels = read_images(source)
    classifier = train_classifier(
        images, labels, source.classes, ClassifierSettings(steps=budget.classifier_steps), seed=seed, device=device,
        held_out=read_images(held_out), progress=lambda done, total: progress("classifier", done, total),
    )  # fmt: skip
    spaces: dict[str, Extractor] = {
        "classifier": classifier,
        "pixels": Pixels(source.channels, source.size),
        "teacher": teacher,
    }
    return Judges(spaces, {name: make_reference(extractor, images) for name, extractor in spaces.items()}, classifier)


def measure(
    name: str, folder: Path, seconds: float, judges: Judges, budget: Budget, device: torch.device, progress: Progress
) -> Arm:
    """Sample the averaged weights without guidance and score them in every space; draw pictures with guidance."""
    loaded = load(folder).to(device)
    recipe = loaded.recipe
    classes, seed = recipe.model.num_classes, recipe.training.seed

    def shown(done: int, total: int) -> None:
        progress(f"samples of {name}", done, total)

    made = generate(
        loaded,
        recipe.sampling,
        make_request(budget.images, classes, "balanced", seed=seed),
        device=device,
        progress=shown,
    )
    scores: dict[str, list[Score]] = {}
    with quiet(budget):
        for space, extractor in judges.spaces.items():
            reference = judges.references[space]
            protocol = made.protocol(reference, name="digits-demo")
            scores[space] = score_images(made.images, made.labels, extractor, reference, protocol)
            progress(f"scores of {name}", len(scores), len(judges.spaces))
    guided = recipe.sampling.model_copy(update={"guidance": CFG(scale=GUIDANCE)})
    pictures = generate(loaded, guided, make_request(budget.pictures, classes, "balanced", seed=seed), device=device)
    assert pictures.labels is not None
    return Arm(name, folder, recipe, scores, (pictures.images[:], pictures.labels), seconds)


def layer_by_layer(arm: Arm, teacher: Path, budget: Budget, device: torch.device, progress: Progress) -> Found:
    """What each layer of the arm knows, beside the teacher."""
    return demo_layers.look(arm.name, arm.folder, teacher, budget.layer_times, budget.layer_images, device, progress)


def try_sharing(arm: Arm, judges: Judges, budget: Budget, device: torch.device, progress: Progress) -> SharingFindings:
    """Where the arm's encoder may rest, and what that gains and costs in spaces no model was trained towards."""
    spaces = {name: Judge(judges.spaces[name], judges.references[name]) for name in ("pixels", "classifier")}
    trial = Trial(budget.share_budgets, budget.share_images, arm.recipe.training.seed)
    with quiet(budget):
        return share(arm.folder, trial, spaces, judges.classifier.accuracy, device, progress)


@contextmanager
def quiet(budget: Budget) -> Iterator[None]:
    """No warnings of few samples in the smoke run, which scores nothing worth a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if budget == SMOKE else "default", FewSamples)
        yield


def counter(progress: Progress, stage: str, total: int) -> Callable[[int, dict[str, float]], None]:
    """on_step of a training as a progress stage."""
    return lambda step, values: progress(stage, step, total, f"loss {values['loss']:.3f}")


def dump_scores(scores: dict[str, list[Score]]) -> dict:
    """Scores with their protocols as JSON values."""
    return {space: [score.model_dump(mode="json") for score in found] for space, found in scores.items()}
