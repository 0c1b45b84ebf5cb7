"""What a GenEval run found, as plain data: by task, by aspect, by image."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pydantic import Field

from ditkit.config import Settings
from ditkit.evaluation.geneval.metadata import TAGS
from ditkit.evaluation.geneval.published import overall
from ditkit.evaluation.geneval.scoring import Rules
from ditkit.evaluation.uncertainty import Interval, share_interval


class Share(Settings):
    """So many right of so many looked at."""

    right: int = Field(ge=0)
    of: int = Field(ge=0)

    @property
    def value(self) -> float | None:
        """The share, None of nothing."""
        return self.right / self.of if self.of else None

    @property
    def interval(self) -> Interval | None:
        """95 % limits (Wilson), as if all images were independent; those of one prompt are somewhat alike."""
        return share_interval(self.right / self.of, self.of) if self.of else None


class Found(Settings):
    """An object that the detector saw; colour where it was asked for."""

    label: str
    score: float
    box: tuple[float, float, float, float]
    colour: str = ""


class ImageRecord(Settings):
    """One image: its prompt, the verdict with its reasons, and the verdict on another prompt of the same task."""

    index: int
    tag: str
    prompt: str
    correct: bool
    reasons: tuple[str, ...] = ()
    shuffled: bool | None = Field(None, description="verdict on another prompt; None: the task has only one")
    aspects: dict[str, bool] = Field(default_factory=dict, description="what was right, see scoring.aspects")
    found: tuple[Found, ...] = ()


class TaskScore(Settings):
    """One task."""

    tag: str
    prompts: int
    correct: Share
    shuffled: Share
    aspects: dict[str, Share] = Field(default_factory=dict)


class GenEvalResult(Settings):
    """Scores of all tasks, in the order of GenEval's table; JSON by model_dump(mode="json")."""

    detector: str
    colours: str
    rules: Rules
    each: int = Field(description="images of each prompt")
    tasks: tuple[TaskScore, ...]
    images: tuple[ImageRecord, ...] = ()

    @property
    def scores(self) -> dict[str, float]:
        """Task -> share of correct images."""
        return {t.tag: t.correct.value or 0.0 for t in self.tasks}

    @property
    def shuffled(self) -> dict[str, float]:
        """Task -> the same for prompts that the images were not made for: what chance gives."""
        return {t.tag: t.shuffled.value for t in self.tasks if t.shuffled.value is not None}

    @property
    def overall(self) -> float:
        """Unweighted mean over tasks."""
        return overall(self.scores)

    @property
    def interval(self) -> Interval:
        """95 % limits of `overall`."""
        return mean_interval([t.correct for t in self.tasks])

    def mean(self, tags: Sequence[str], shuffled: bool = False) -> float:
        """Unweighted mean over some tasks. ValueError where one was not run."""
        scores = self.shuffled if shuffled else self.scores
        if missing := [t for t in tags if t not in scores]:
            raise ValueError(f"no scores of {', '.join(missing)}; there are {', '.join(scores) or 'none'}")
        return overall({t: scores[t] for t in tags})


def mean_interval(shares: Iterable[Share]) -> Interval:
    """95 % limits of a mean of independent shares from the limits of each (MOVER: Zou and Donner 2008, eq. 3)."""
    known = [(s.value, s.interval) for s in shares]
    values = [v for v, _ in known if v is not None]
    low = math.hypot(*(v - i[0] for v, i in known if v is not None and i is not None)) / len(values)
    high = math.hypot(*(i[1] - v for v, i in known if v is not None and i is not None)) / len(values)
    mean = sum(values) / len(values)
    return max(0.0, mean - low), min(1.0, mean + high)


def collect(records: Sequence[ImageRecord], each: int, detector: str, colours: str, rules: Rules) -> GenEvalResult:
    """The result of these images."""
    tasks = []
    for tag in TAGS:
        mine = [r for r in records if r.tag == tag]
        if mine:
            names = dict.fromkeys(name for r in mine for name in r.aspects)
            tasks.append(
                TaskScore(
                    tag=tag,
                    prompts=len(mine) // each,
                    correct=_share(r.correct for r in mine),
                    shuffled=_share(r.shuffled for r in mine if r.shuffled is not None),
                    aspects={name: _share(r.aspects[name] for r in mine if name in r.aspects) for name in names},
                )
            )
    return GenEvalResult(
        detector=detector, colours=colours, rules=rules, each=each, tasks=tuple(tasks), images=tuple(records)
    )


def _share(verdicts: Iterable[bool]) -> Share:
    told = list(verdicts)
    return Share(right=sum(told), of=len(told))
