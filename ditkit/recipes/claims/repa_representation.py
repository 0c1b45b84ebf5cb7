"""What blocks know of images, without and with REPA: the gap to the teacher, and likeness to it (Figures 2 and 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ditkit.evaluation import Panel, Section
from ditkit.evaluation.sections import Cell, curves, table
from ditkit.pretrained import TeacherSettings
from ditkit.recipes.analyses.representation import Bench, How, Look
from ditkit.recipes.analyses.subject import Asked, Subject
from ditkit.recipes.claims.baselines import REPA, SIT, repa, sit
from ditkit.recipes.reproduce.claim import Finding
from ditkit.recipes.reproduce.comparison import PAPERS, Table, Trial, claim
from ditkit.recipes.reproduce.rules import PAIRED, gained, percent, shown, together
from ditkit.recipes.reproduce.shown import series
from ditkit.recipes.reproduce.testbed import Testbed

LOOKED_AT, LEARNED_FROM = 2000, 10_000  # at most: held-out images, and others that probes learn from
TIMES = (0.1, 0.3, 0.5, 0.7)


@dataclass(frozen=True)
class Knowledge:
    """All blocks of a checkpoint's averaged weights at some times (0 = data): linear probes, likeness to a teacher.

    As in REPA's appendix C.1: mean tokens, null condition, held-out images; the teacher, whose name in the pool is
    given, sees them clean. The probe is a ridge regression.

    The score: "accuracy", "cknna" (time by block); "teacher", its probe's accuracy; "best", the accuracy of the best
    block and time, chosen on one half of the images and taken on the other; "gap", the teacher's less that, on the
    same half; "alike", the highest CKNNA of all.
    """

    step: int
    teacher: str
    times: tuple[float, ...] = TIMES

    @property
    def name(self) -> str:
        """knowledge@STEP, the teacher, the times."""
        return f"knowledge@{self.step}, {self.teacher}, t={','.join(f'{t:g}' for t in self.times)}"

    def cost(self, bed: Testbed) -> float:
        """Every image once a time; the probes take about as long again."""
        images = min(len(bed.held_out), LOOKED_AT) + min(len(bed.source), LEARNED_FROM)
        return 2 * images * len(self.times)

    def __call__(self, bed: Testbed, folder: Path, seed: int) -> dict[str, Any]:
        """The noise on the images is the run's own."""
        teacher = TeacherSettings(kind="selftaught", source=str(bed.pool.made(self.teacher)))
        asked = Asked(
            n=LOOKED_AT, train=LEARNED_FROM, seed=seed, data=bed.parts.recipe.data.single(), teachers=(teacher,),
            named=True,
        )  # fmt: skip
        subject = Subject("run", bed.load(folder, self.step), asked, folder)
        return knowledge(Bench(subject, How(), lambda *_: None), self.teacher, self.times)


def knowledge(bench: Bench, teacher: str, times: Sequence[float]) -> dict[str, Any]:
    """What `Knowledge` says, of a bench whose only teacher has this name."""
    own = bench.teacher_looks()[teacher]
    loaded = bench.subject.loaded
    blocks = range(1, loaded.settings.depth + 1)
    looks = [bench.look(loaded.model, t, blocks, f"t = {t:g}") for t in times]
    best = bench.probe_peak()
    return {
        "accuracy": [[look.accuracy for look in row] for row in looks],
        "cknna": [[alike(look, teacher) for look in row] for row in looks],
        "teacher": own.accuracy,
        "best": best and best.value,
        "block": best and best.block,
        "t": best and best.t,
        "gap": best and bench.gap(teacher, best)[0],
        "alike": highest([alike(look, teacher) for row in looks for look in row]),
    }


def alike(look: Look, teacher: str) -> float | None:
    """CKNNA; None where it is undefined."""
    return look.alike[teacher].cknna


def highest(values: Sequence[float | None]) -> float | None:
    """Of those that there are."""
    return max((v for v in values if v is not None), default=None)


def measured(bed: Testbed) -> list[Trial]:
    """SiT and SiT + REPA, medium, at the first checkpoint, the usual step, and the last."""
    aligned = repa(bed)
    teacher = Path(aligned.teachers[0].source).name
    measures = [Knowledge(step, teacher) for step in sorted({bed.budget.every, bed.budget.steps, bed.budget.long})]
    return [Trial(SIT, sit(bed), measures), Trial(REPA, aligned, measures)]


def by_block(found: Table, trial: str, measure: Knowledge, key: str) -> np.ndarray:
    """(seeds, blocks): the highest over times of "accuracy" or "cknna"; nan where there is none."""
    rows = []
    for row in found.of(trial, measure):
        depth = found.trials[0].recipe.model.depth
        columns = zip(*row[key], strict=True) if row else [()] * depth
        rows.append([math.nan if (top := highest(column)) is None else top for column in columns])
    return np.array(rows, float)


def pages(found: Table) -> list[Section]:
    """By block at the last step, over training, and a table."""
    measures = found.trials[0].measures
    last, steps = measures[-1], [m.step for m in measures]  # type: ignore[attr-defined]
    blocks = list(range(1, found.trials[0].recipe.model.depth + 1))
    assert isinstance(last, Knowledge)

    def of_blocks(key: str) -> list:
        return [series(t.name, blocks, list(by_block(found, t.name, last, key).T)) for t in found.trials]

    def of_steps(key: str) -> list:
        return [series(t.name, steps, [found.values(t.name, m, key) for m in measures]) for t in found.trials]

    own = found.values(SIT, last, "teacher")
    flat = series("the teacher, clean images", blocks, [own] * len(blocks))
    times = ", ".join(f"{t:g}" for t in last.times)
    note = f"At step {last.step}; the best of t = {times}. Bars: from the least to the most over seeds."
    rows: list[list[Cell]] = [
        [trial.name, m.step, *(shown(found.values(trial.name, m, key)) for key in ("best", "gap", "alike"))]  # type: ignore[attr-defined]
        for trial in found.trials
        for m in measures
    ]
    return [
        curves(
            "By block",
            [
                Panel("accuracy of a linear probe", [*of_blocks("accuracy"), flat], "block"),
                Panel("CKNNA with the teacher", of_blocks("cknna"), "block"),
            ],
            note,
        ),
        curves(
            "Over training",
            [
                Panel("best probe's accuracy", of_steps("best"), "training step"),
                Panel("highest CKNNA", of_steps("alike"), "training step"),
            ],
        ),
        table("Scores", ("", "step", "best probe", "gap to the teacher", "highest CKNNA"), rows),
    ]


def judge(found: Table) -> Finding:
    """The gap that SiT has, what of it REPA closes, and the likeness to the teacher, at the last step."""
    last = found.trials[0].measures[-1]
    gap, left = (found.values(name, last, "gap") for name in (SIT, REPA))
    best, better = (found.values(name, last, "best") for name in (SIT, REPA))
    before, after = (found.values(name, last, "alike") for name in (SIT, REPA))
    parts = {"gap": gained(gap), "probe": gained(better - best), "CKNNA": gained(after - before)}
    wrong = (1 - better) / np.maximum(1 - best, 1e-6)
    number = (
        f"gap {shown(100 * gap)} points, with REPA {shown(100 * left)}; highest CKNNA {shown(before)}, "
        f"with REPA {shown(after)}"
    )
    reason = (
        f"SiT's best block is {shown(100 * gap)} points below the teacher: {parts['gap']}. With REPA a probe of the "
        f"best block errs {percent(wrong)}: {parts['probe']}. The highest CKNNA changes from {shown(before)} to "
        f"{shown(after)}: {parts['CKNNA']}."
    )
    ours = {
        "teacher": found.values(SIT, last, "teacher").tolist(), "best": {SIT: best.tolist(), REPA: better.tolist()},
        "gap": {SIT: gap.tolist(), REPA: left.tolist()}, "cknna": {SIT: before.tolist(), REPA: after.tolist()},
        "parts": parts,
    }  # fmt: skip
    return Finding(
        {"linear probe, SiT-XL/2 + REPA at 400K": 70.3, "SiT": None, "CKNNA": None}, ours, together(*parts.values()),
        reason, pages(found), number=number, effect=wrong.tolist(),
    )  # fmt: skip


REPRESENTATION = claim(
    "repa-representation",
    (PAPERS["REPA"], "Figures 2 and 3"),
    "diffusion transformers learn representations that are well below a self-supervised teacher's and weakly like them;"
    " with REPA the gap is smaller and the likeness larger",
    "Holds: at the last step of the long run, (1) a linear probe of SiT's best block and time is less accurate than "
    "one of the teacher, (2) one of REPA's best block is more accurate than one of SiT's, and (3) the highest CKNNA "
    f"with the teacher over blocks and times is larger with REPA; each {PAIRED.replace(' (of logarithms)', '')}. Does "
    "not hold: the opposite of one of them by the same measure. Undecided: else.",
    trials=measured,
    judge=judge,
    number="curves only; linear probe of SiT-XL/2 + REPA 70.3 % at 400K steps",
    minutes=4,
)
CLAIMS = (REPRESENTATION,)
