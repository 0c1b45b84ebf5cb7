"""REPA's claim on teachers: the better a teacher tells classes, the better the model that is aligned to it (Table 2).

The teachers here differ in nothing but how long they were trained, from a random network to the usual one, so that
there is an order of quality that nobody has to argue about; it is measured all the same, on images and labels that
no teacher has seen. A second claim asks the same of NT-Xent, which the paper's table was made with.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ditkit.align import AnySimilarity, Cosine, NTXent
from ditkit.analysis.probe import gather, probe_features, spread
from ditkit.config import read_file
from ditkit.evaluation import Panel
from ditkit.evaluation.sections import curves
from ditkit.pretrained import TeacherSettings, load_teacher
from ditkit.recipes.claims.baselines import SIT, repa, sit
from ditkit.recipes.reproduce.claim import UNDECIDED, Finding
from ditkit.recipes.reproduce.comparison import PAPERS, Table, Trial, claim
from ditkit.recipes.reproduce.measures import Measure, Quality
from ditkit.recipes.reproduce.rules import Paired, falling, percent, shown, trend
from ditkit.recipes.reproduce.shown import numbers, scores, series
from ditkit.recipes.reproduce.testbed import Testbed

SHARES = (0.0, 0.05, 0.25, 1.0)  # of the usual teacher's training
DRAWS = 5
PAPER = {
    "FID, linear probe of the aligned model in % (SiT-L/2, 400K steps, NT-Xent)": {
        "MAE-L": [12.5, 57.3], "DINO-B": [11.9, 59.3], "MoCov3-L": [11.9, 63.0], "I-JEPA-H": [11.6, 62.1],
        "CLIP-L": [11.0, 67.2], "SigLIP-L": [10.2, 68.8], "DINOv2-L": [10.0, 68.1], "DINOv2-B": [9.7, 65.7],
        "DINOv2-g": [9.8, 65.7],
    }
}  # fmt: skip


@dataclass(frozen=True)
class TeacherQuality:
    """What the teacher of a run knows of classes: accuracy of k-NN and of a linear probe of its pooled features.

    Fitted on training images, tested on those that no model has seen; {"knn", "linear", "knn_10", "linear_10"}, where
    _10 is fitted on ten labels of each class. limit: images of either part at most.
    """

    limit: int = 5000

    @property
    def name(self) -> str:
        """teacher, and how many images it is probed with."""
        return f"teacher, {self.limit} images, {DRAWS} draws"

    def cost(self, bed: Testbed) -> float:
        """About that of its forward passes."""
        return min(self.limit, len(bed.source)) + min(self.limit, len(bed.held_out))

    def __call__(self, bed: Testbed, folder: Path, seed: int) -> dict[str, float]:
        """Mean accuracies over fixed draws of labels; the run's seed has no part in it."""
        (told,) = read_file(folder / "recipe.json")["teachers"]
        teacher = load_teacher(TeacherSettings(**told), bed.device)
        embed = {"teacher": lambda images: teacher(images.to(bed.device)).pooled}
        labels, train = gather(bed.source, spread(len(bed.source), self.limit), embed)
        test_labels, test = gather(bed.held_out, spread(len(bed.held_out), self.limit), embed)
        found = probe_features(train, labels, test, test_labels, draws=DRAWS)["scores"]
        return {probe: by["teacher"]["mean"] for probe, by in found.items()}


def lengths(bed: Testbed) -> list[int]:
    """Training steps of the teachers."""
    return sorted({round(share * bed.budget.teacher_steps) for share in SHARES})


def named(steps: int) -> str:
    """The name of a trial."""
    return f"teacher of {steps} steps" if steps else "random teacher"


def trained(bed: Testbed, similarity: AnySimilarity) -> list[Trial]:
    """The medium model without alignment, and with each teacher; with the cosine, the usual one is common to claims."""
    step = bed.budget.steps
    measures: list[Measure] = [Quality(step), TeacherQuality()]
    trials = [Trial(SIT, sit(bed), [Quality(step)])]
    for steps in lengths(bed):
        common = steps == bed.budget.teacher_steps and similarity == Cosine()
        recipe = repa(bed) if common else bed.aligned(bed.sit(), steps, similarity=similarity)
        trials.append(Trial(named(steps), recipe, measures))
    return trials


def judge(found: Table) -> Finding:
    """Spearman's rho of the teachers' accuracies with the distances, seed by seed."""
    step, names = found.bed.budget.steps, [t.name for t in found.trials[1:]]
    accuracy = {name: found.values(name, TeacherQuality(), "linear_10") for name in names}
    mean = [float(np.nanmean(accuracy[name])) for name in names]
    distances = {t.name: found.distance(t.name, step) for t in found.trials}
    each = np.array([distances[name] for name in names]).T  # (seeds, teachers)
    usable = bool(np.isfinite(each).all()) and len(names) > 2 and len(set(mean)) > 1
    rhos = trend(mean, each) if usable else []
    best, worst = names[int(np.argmax(mean))], names[int(np.argmin(mean))]
    ends = Paired.of(distances[best], distances[worst])
    order = ", ".join(f"{name} {100 * a:.1f} %: {shown(distances[name])}" for name, a in zip(names, mean, strict=True))
    reason = f"Accuracy of the teacher's linear probe with ten labels a class, and distance: {order}. " + (
        f"Spearman's rho by seed: {', '.join(f'{rho:.2f}' for rho in rhos)}." if usable else "No rank correlation."
    )
    ours: dict[str, Any] = {
        "distance": {name: values.tolist() for name, values in distances.items()},
        "teacher's linear probe, 10 labels a class": dict(zip(names, mean, strict=True)),
        "teacher's other probes": {
            key: {name: float(np.nanmean(found.values(name, TeacherQuality(), key))) for name in names}
            for key in ("knn", "linear", "knn_10")
        },
        "spearman": rhos,
        "best over worst": ends.ratio.tolist(),
        "agreement": numbers(found, [Quality(step)], "agreement"),
    }
    panel = Panel("distance", [series("aligned", mean, [distances[name] for name in names])], "teacher's accuracy")
    number = f"rho {shown(rhos, 2)}; best over random teacher {percent(ends.ratio)}" if usable else "no correlation"
    return Finding(
        PAPER, ours, falling(rhos) if usable else UNDECIDED, reason,
        [curves("Teacher and model", [panel]), scores(found, step)], number=number, effect=ends.ratio.tolist(),
    )  # fmt: skip


RULE = (
    "Holds: Spearman's rho between the teachers' linear-probe accuracy on held-out images (ten labels a class) and the "
    "distance of the models aligned to them is at most -0.7 in every seed. Does not hold: in no seed below 0. "
    "Undecided: else, or fewer than 3 seeds."
)
SAYS = "the better a teacher tells classes, the better the model that is aligned to it"
NUMBER = "FID 12.5 (MAE-L, the worst teacher) to 9.7 (DINOv2-B); SiT-L/2, 400K steps"
SOURCE = PAPERS["REPA"], "Table 2"
TEACHER = claim(
    "repa-teacher", SOURCE, SAYS, RULE, trials=partial(trained, similarity=Cosine()), judge=judge, number=NUMBER,
    minutes=5,
)  # fmt: skip
TEACHER_NT = claim(
    "repa-teacher-nt-xent", SOURCE, f"{SAYS}, where NT-Xent aligns as in the paper's table", RULE,
    trials=partial(trained, similarity=NTXent()), judge=judge, number=NUMBER, minutes=5,
)  # fmt: skip
CLAIMS = (TEACHER, TEACHER_NT)
