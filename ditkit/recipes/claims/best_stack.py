"""Our own claim: what the four papers and our switches offer, in one recipe (`digits.best`), against plain SiT by time.

Time is counted in steps of the training itself, whose seconds are measured in turns in one process, so that both
recipes meet the same machine with the same load.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ditkit.evaluation import Section
from ditkit.evaluation.sections import table
from ditkit.recipes import digits
from ditkit.recipes.benches.train import ENDLESS, Side
from ditkit.recipes.build import build_job, prepare
from ditkit.recipes.claims.baselines import SIT, repa, sit
from ditkit.recipes.claims.repa_gain import measured as baselines
from ditkit.recipes.claims.repa_gain import reached, steps_of
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.reproduce.claim import Finding
from ditkit.recipes.reproduce.comparison import Table, Trial, claim
from ditkit.recipes.reproduce.measures import Quality
from ditkit.recipes.reproduce.rules import PAIRED, Paired, percent, shown
from ditkit.recipes.reproduce.shown import numbers, over_training, scores
from ditkit.recipes.reproduce.testbed import Testbed
from ditkit.recipes.stopwatch import seconds_of
from ditkit.training.teacher import TeacherTraining, train_teacher

STACK, BARE = "best stack", "best stack without alignment"
ALIGNED, AFTER, TEACHER = "best stack, aligned", "best stack, after alignment", "teacher"


def stacked(bed: Testbed) -> Recipe:
    """The stack under the budget: alignment ends at half of the long run."""
    return digits.stacked(repa(bed), stop=bed.budget.long // 2)


@dataclass(frozen=True)
class StepSeconds:
    """Seconds of a training step, turn by turn: SiT, the stack while it is aligned and after that, the teacher.

    Every turn does a few steps of each, with data, teacher, optimizer and averages as in a run.
    """

    turns: int
    steps: int = 4

    @property
    def name(self) -> str:
        """Holds turns and steps; what is timed follows from run and budget."""
        return f"seconds of a step, {self.turns} turns of {self.steps}"

    def cost(self, bed: Testbed) -> float:
        """A step is about three evaluations of its batch; three networks, and a teacher that is about as large."""
        return 12.0 * (self.turns * self.steps + 1) * bed.budget.batch

    def __call__(self, bed: Testbed, folder: Path, seed: int) -> dict[str, list[float]]:
        """{SIT, ALIGNED, AFTER, TEACHER: seconds a step of each turn}."""
        recipes = {SIT: sit(bed), ALIGNED: stacked(bed), AFTER: stacked(bed)}
        found: dict[str, list[float]] = {name: [] for name in (*recipes, TEACHER)}
        with tempfile.TemporaryDirectory() as place:
            sides = {name: self.side(bed, r, Path(place) / str(i), seed) for i, (name, r) in enumerate(recipes.items())}
            sides[AFTER].state.step = stop_of(recipes[AFTER], bed.budget.long)
            for _ in range(self.turns):
                for name, side in sides.items():
                    found[name].append(seconds_of(partial(side.steps, self.steps), bed.device)[0] / self.steps)
                found[TEACHER].append(self.teaching(bed))
        return found

    def side(self, bed: Testbed, recipe: Recipe, folder: Path, seed: int) -> Side:
        """A run that is ready to do steps, after its first."""
        folder.mkdir()
        endless = recipe.with_(
            {"training.steps": ENDLESS, "training.validate_every": None, "training.seed": seed, "name": "timed"}
        )
        parts = prepare(endless, bed.device)
        return Side(build_job(replace(parts, recipe=endless), folder), bed.device)

    def teaching(self, bed: Testbed) -> float:
        """Seconds of a step of the teacher's training, without what comes before its first."""
        ends: list[float] = []
        training = teacher_of(bed).model_copy(update={"steps": self.steps + 1, "warmup": 0})
        train_teacher(
            bed.source, training, None, device=bed.device, progress=lambda *_: ends.append(time.perf_counter())
        )
        return (ends[-1] - ends[0]) / self.steps


def stop_of(recipe: Recipe, last: int) -> int:
    """The first step without alignment: 0 where there is none at all, the last step where it never stops."""
    if recipe.align is None:
        return 0
    return last if recipe.align.stop_step is None else recipe.align.stop_step


def teacher_of(bed: Testbed) -> TeacherTraining:
    """How the teacher of the stack is trained."""
    return next(training for training in bed.wanted.values() if isinstance(training, TeacherTraining))


def measured(bed: Testbed) -> list[Trial]:
    """SiT, SiT + REPA, and the stack with and without alignment, for the long run.

    Stacks are scored at every checkpoint, and the aligned one is timed.
    """
    b = bed.budget
    every = [Quality(step) for step in sorted({b.steps, b.long, *range(b.every, b.long + 1, b.every)})]
    stack = stacked(bed)
    return [
        *baselines(bed),
        Trial(STACK, stack, [*every, timer(bed)]),
        Trial(BARE, stack.with_({"align": None, "teachers": ()}), every),
    ]


def timer(bed: Testbed) -> StepSeconds:
    """What times the steps: few turns where runs are short."""
    return StepSeconds(turns=min(10, bed.budget.every))


@dataclass(frozen=True)
class Clock:
    """Median seconds of a step in one process: SiT, the stack before and after alignment stops, the teacher."""

    sit: float
    aligned: float
    after: float
    teacher: float

    @classmethod
    def of(cls, turns: dict[str, Sequence[float]]) -> Clock:
        """From what StepSeconds found."""
        return cls(*(statistics.median(turns[name]) for name in (SIT, ALIGNED, AFTER, TEACHER)))

    def stack(self, steps: float, stop: int) -> float:
        """Seconds of the stack's first steps."""
        return min(steps, stop) * self.aligned + max(0.0, steps - stop) * self.after


@dataclass(frozen=True)
class Race:
    """Steps and seconds of a recipe to the distance that SiT has at its last step, seed by seed; inf: never."""

    steps: np.ndarray
    seconds: np.ndarray

    @classmethod
    def of(cls, found: Table, name: str, clocks: Sequence[Clock | None]) -> Race:
        """Of a stack. clocks: of each seed, None where its run diverged."""
        trial = next(trial for trial in found.trials if trial.name == name)
        at = steps_of(trial)
        stop = stop_of(trial.recipe, at[-1])
        curve = np.array([found.distance(name, step) for step in at]).T
        needed = [reached(at, row, goal) for row, goal in zip(curve, found.distance(SIT, last_of(found)), strict=True)]
        seconds = [clock.stack(n, stop) if clock else np.inf for clock, n in zip(clocks, needed, strict=True)]
        return cls(np.array(needed), np.array(seconds))

    def words(self) -> str:
        """Steps and seconds with their spread."""
        if not np.isfinite(self.seconds).all():
            return "not in every seed"
        return f"in {shown(self.steps)} steps or {shown(self.seconds)} s"


def last_of(found: Table) -> int:
    """The last step at which SiT is scored."""
    return steps_of(next(trial for trial in found.trials if trial.name == SIT))[-1]


def judge(found: Table) -> Finding:
    """Seconds and steps that the stack needs for what SiT has at its last step, over SiT's."""
    last = last_of(found)
    clocks = [Clock.of(turns) if turns else None for turns in found.of(STACK, timer(found.bed))]
    stack, bare = (Race.of(found, name, clocks) for name in (STACK, BARE))
    plain = np.array([clock.sit * last if clock else np.nan for clock in clocks])
    taught = np.array([clock.teacher if clock else np.nan for clock in clocks]) * teacher_of(found.bed).steps
    faster, fewer = plain / stack.seconds, last / stack.steps
    equal = Paired.of(found.distance(STACK, last), found.distance(SIT, last))
    told = f"SiT's last distance in {shown(faster, 2)} times less time, {shown(fewer, 2)} times fewer steps"
    if not np.isfinite(stack.seconds).all():
        told = f"SiT's last distance {stack.words()}"
    reason = (
        f"The distance that SiT has after {last} steps or {shown(plain)} s is reached by the stack {stack.words()}; "
        f"both timed in turns. {equal.words(f'At {last} steps the stack', 'SiT')}"
    )
    reason += (
        f" The training of the teacher, {shown(taught)} s once for all runs on the same images, is not counted: with "
        f"it the stack is {shown(plain / (stack.seconds + taught), 2)} times as fast as SiT. Without alignment, which "
        f"needs none, it gets there {bare.words()}: {shown(plain / bare.seconds, 2)} times as fast."
    )
    remarks = ["The switches were chosen by single runs of 400 steps with another seed than those tested."]
    ours = {
        "steps needed": {STACK: stack.steps.tolist(), BARE: bare.steps.tolist()},
        "seconds": {SIT: plain.tolist(), STACK: stack.seconds.tolist(), BARE: bare.seconds.tolist()},
        "seconds of the teacher": taught.tolist(),
        "times faster": faster.tolist(),
        "times fewer steps": fewer.tolist(),
        "distance at equal steps, ratio": equal.ratio.tolist(),
        "agreement": numbers(found, [Quality(last)], "agreement"),
    }
    sections = [over_training(found, {t.name: steps_of(t) for t in found.trials}), scores(found)]
    sections += [timing(found)] if any(clocks) else []
    verdict = Paired.of(stack.seconds, np.nan_to_num(plain, nan=1.0)).verdict()  # nan: the stack diverged, inf seconds
    return Finding({}, ours, verdict, reason, sections, remarks, told, equal.ratio.tolist())


def timing(found: Table) -> Section:
    """Seconds of a step of each side, over seeds, and over SiT's."""
    clocks = [Clock.of(turns) for turns in found.of(STACK, timer(found.bed)) if turns]
    names = {"sit": SIT, "aligned": ALIGNED, "after": AFTER, "teacher": TEACHER}
    values = {key: np.array([getattr(clock, key) for clock in clocks]) for key in names}
    rows = [[names[key], shown(v), percent(v / values["sit"])] for key, v in values.items()]
    note = (
        "Medians over turns in one process, with data, teacher, optimizer and averages. The teacher: its own training."
    )
    return table("Seconds of a step", ("", "seconds", "against SiT"), rows, note)


BEST = claim(
    "best-stack",
    ("Ours", "the best stack of ditkit's switches"),
    "alignment that stops early, logit-normal times, improved blocks and Muon reach plain SiT's quality in less time",
    "Holds: the stack reaches the distance that SiT has at its last step in less training time than SiT takes for it, "
    f"{PAIRED}. Does not hold: it takes more by the same measure, or never gets there. Undecided: else. Time is steps "
    "times seconds of a step; steps are interpolated between checkpoints on logarithms, seconds are medians over turns "
    "of both trainings in one process. The distance is the geometric mean of the Fréchet distances in both spaces. The "
    "teacher's own training is told beside it.",
    trials=measured,
    judge=judge,
    number="none: no paper has all of these together",
    minutes=6,
)
CLAIMS = (BEST,)
