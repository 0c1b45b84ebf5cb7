"""What blocks of a network know of images, measured: a linear probe's accuracy, and likeness to teachers.

As in REPA's section 2: mean token of a block, null condition, no projector, one noise for all times and blocks; of
teachers the mean token of the clean image. The analyses `layers` and `progress` look at networks through a `Bench`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from ditkit.analysis.capture import token_means
from ditkit.analysis.linear import PaperProbe, predict_logistic, predict_paper, predict_ridge
from ditkit.analysis.similarity import (
    Neighbours,
    cka,
    cknna,
    cknna_of,
    mutual_knn_of,
    nearest,
    normalised,
    platonic,
)
from ditkit.config import Settings
from ditkit.evaluation.uncertainty import Interval, jackknife_interval, share_interval
from ditkit.protocols import Extractor
from ditkit.recipes.analyses.analysis import Bar
from ditkit.recipes.analyses.subject import Pictures, Subject
from ditkit.recipes.analyses.verdicts import above, halves, paired

FEWEST = 20  # labelled training images that a probe needs
MOST_RESAMPLED = 4000  # images up to which limits of CKNNA are computed; beyond, they are narrow and costly
Kind = Literal["ridge", "logistic", "paper", "none"]
Preparation = Literal["normalise", "platonic", "none"]
PREPARE = {"normalise": normalised, "platonic": platonic, "none": Tensor.double}


class How(Settings):
    """How representations are looked at; stored with what was found."""

    probe: Kind = "ridge"
    paper: PaperProbe = PaperProbe()
    k: int = 10
    prepare: Preparation = "normalise"


class Likeness(Settings):
    """Of two representations of the same images; None where a score is undefined (features that do not vary)."""

    cknna: float | None = None
    cka: float | None = None
    mutual_knn: float


class Look(Settings):
    """One block at one time: accuracy of a probe with its Wilson limits, likeness to each teacher by name."""

    block: int
    t: float
    accuracy: float | None = None
    limits: Interval | None = None
    alike: dict[str, Likeness] = Field(default_factory=dict)


class Peak(Settings):
    """Where something is highest over blocks and times by half of the images, and what the others have there.

    value, limits: of those others, `images` of them. rivals: blocks at that time that it is not above there beyond
    noise; right: of a probe, "1" for each image that it names, in order.
    """

    block: int
    t: float
    value: float
    limits: Interval | None = None
    images: int
    rivals: tuple[int, ...] = ()
    right: str = ""


class TeacherLook(Settings):
    """The same of a teacher, on clean images, and likeness to the other teachers."""

    accuracy: float | None = None
    limits: Interval | None = None
    alike: dict[str, Likeness] = Field(default_factory=dict)


class Seen(NamedTuple):
    """Features (N, D) as likeness is measured on them, and each image's nearest neighbours among the others."""

    features: Tensor
    near: Neighbours


class Leader(NamedTuple):
    """The block that is most alike to a teacher by half of the images: that CKNNA, and features (N, D) of all."""

    chosen: float
    block: int
    t: float
    features: Tensor


class Bench:
    """The images, labels and teachers that networks are looked at with; the same for every look."""

    def __init__(self, subject: Subject, how: How, bar: Bar):
        self.subject, self.how, self.bar = subject, how, bar
        self.test: Pictures = subject.test
        self.right: dict[str | tuple[int, float], Tensor] = {}  # who -> which labelled test images a probe got right
        self.best: dict[str, Leader] = {}  # by teacher
        self.choose, self.judge = halves(len(self.test))
        self.missing = ""
        if self.teachers and not 2 <= how.k < len(self.judge):
            n, most = len(self.test), len(self.judge) - 1
            raise ValueError(f"k={how.k}: CKNNA among half of {n} images needs k from 2 to {most}; change k or n")

    @cached_property
    def unprobed(self) -> str:
        """Why no probe is fitted; "" where one is."""
        if self.how.probe == "none":
            return "no probe was asked for"
        if not self.subject.asked.train:
            return "there are no images for probes to learn from (train=0)"
        known = self.train.labels[self.train.labels >= 0]
        if len(known.unique()) < 2 or int((self.test.labels >= 0).sum()) < 2:
            return "the images have no classes"
        return "" if len(known) >= FEWEST else f"{len(known)} labelled training images are too few (least: {FEWEST})"

    @cached_property
    def train(self) -> Pictures:
        """The images that probes learn from."""
        return self.subject.train

    @cached_property
    def classes(self) -> int:
        """Classes that probes tell apart; 0 without probes."""
        return 0 if self.unprobed else int(torch.cat([self.train.labels, self.test.labels]).max()) + 1

    @property
    def probed(self) -> tuple[int, int]:
        """Labelled images that probes learn from, and that they are scored on."""
        if self.unprobed:
            return 0, 0
        return int((self.train.labels >= 0).sum()), int((self.test.labels >= 0).sum())

    @cached_property
    def noise(self) -> tuple[Tensor, Tensor]:
        """Of the test and of the training images, all drawn apart."""
        test = self.subject.noise
        return test, test[:0] if self.unprobed else self.subject.noise_of(self.train)

    @cached_property
    def teachers(self) -> dict[str, Extractor]:
        """By name. The recipe's own may be missing, which is told; any other may not."""
        found = self.subject.teachers
        self.missing = self.subject.missing
        return found

    @cached_property
    def taught(self) -> dict[str, Seen]:
        """What each teacher sees of the test images."""
        return {name: self._seen(means) for name, means in self.means_of_teachers.items()}

    @cached_property
    def means_of_teachers(self) -> dict[str, Tensor]:
        """Their mean tokens of the test images."""
        return {name: self._teacher_means(name, self.test.images) for name in self.teachers}

    def teacher_looks(self) -> dict[str, TeacherLook]:
        """Each teacher's own probe, and its likeness to the others."""
        looks = {}
        for name in self.teachers:
            accuracy, limits = None, None
            if not self.unprobed:
                train = self._teacher_means(name, self.train.images)
                accuracy, limits = self._probe(name, train, self.means_of_teachers[name])
            others = {other: self._likeness(self.taught[name], other) for other in self.teachers if other != name}
            looks[name] = TeacherLook(accuracy=accuracy, limits=limits, alike=others)
        return looks

    def look(self, model: nn.Module, t: float, blocks: Sequence[int], stage: str) -> list[Look]:
        """All these blocks of a network at one time."""
        test = self._means(model, t, blocks, self.test, self.noise[0], stage)
        train = {} if self.unprobed else self._means(model, t, blocks, self.train, self.noise[1], stage)
        looks = []
        for done, block in enumerate(blocks, start=1):
            accuracy, limits = (None, None) if self.unprobed else self._probe((block, t), train[block], test[block])
            alike = self._compare(test[block], block, t) if self.teachers else {}
            looks.append(Look(block=block, t=t, accuracy=accuracy, limits=limits, alike=alike))
            self.bar(f"{stage}: blocks", done, len(blocks))
        return looks

    def begin(self) -> None:
        """Forget which blocks were best: another network is looked at, or another time for itself."""
        self.best = {}
        self.right = {who: right for who, right in self.right.items() if isinstance(who, str)}

    def probe_peak(self) -> Peak | None:
        """The best probe of the blocks that were looked at; None without probes."""
        blocks = {who: right for who, right in self.right.items() if not isinstance(who, str)}
        if not blocks:
            return None
        choose, judge = halves(len(next(iter(blocks.values()))))
        (block, t), right = max(blocks.items(), key=lambda pair: float(pair[1][choose].double().mean()))
        others = {b: found[judge] for (b, at), found in blocks.items() if at == t and b != block}
        right = right[judge]
        value = right.double().mean().item()
        return Peak(
            block=block, t=t, value=value, limits=share_interval(value, len(right)), images=len(right),
            rivals=tuple(b for b, other in others.items() if not above(right.double() - other.double())),
            right="".join(map(str, right.long().tolist())),
        )  # fmt: skip

    def gap(self, teacher: str, best: Peak) -> tuple[float, Interval | None]:
        """How much more often a teacher's probe is right than the best block's, on the same images, with limits."""
        theirs = self.right[teacher]
        theirs = theirs[halves(len(theirs))[1]].double()
        difference = paired(theirs - torch.tensor([int(c) for c in best.right]))
        return difference.difference, difference.limits

    def cknna_peak(self, teacher: str) -> Peak | None:
        """The block that is most alike to a teacher; None where that was undefined everywhere."""
        if teacher not in self.best:
            return None
        _, block, t, features = self.best[teacher]
        alike = self._resampled(teacher, features)
        n = len(self.judge)
        try:
            value = alike(torch.arange(n))
            limits = jackknife_interval(value, alike, n, -1.0, 1.0) if n <= MOST_RESAMPLED else None
        except ValueError:  # undefined, as in _likeness
            return None
        return Peak(block=block, t=t, value=value, limits=limits, images=n)

    def cknna_change(self, teacher: str, first: Tensor, last: Tensor) -> tuple[float, Interval | None]:
        """How much more alike to a teacher `last` (N, D) are than `first`, with limits. ValueError where undefined."""
        before, after = (self._resampled(teacher, features) for features in (first, last))

        def change(rows: Tensor) -> float:
            return after(rows) - before(rows)

        n = len(self.judge)
        value = change(torch.arange(n))
        return value, jackknife_interval(value, change, n, -2.0, 2.0) if n <= MOST_RESAMPLED else None

    def _resampled(self, teacher: str, features: Tensor) -> Callable[[Tensor], float]:
        """CKNNA of some of the images that judge: rows of them -> a number."""
        judge = self.judge.to(features.device)
        ours, theirs = features[judge], self.taught[teacher].features[judge]

        def alike(rows: Tensor) -> float:
            rows = rows.to(features.device)
            return cknna(ours[rows], theirs[rows], min(self.how.k, len(rows) - 1))

        return alike

    def _compare(self, features: Tensor, block: int, t: float) -> dict[str, Likeness]:
        seen = self._seen(features)
        alike = {name: self._likeness(seen, name) for name in self.teachers}
        some = self.choose.to(seen.features.device)
        for name in [name for name, found in alike.items() if found.cknna is not None]:
            try:
                chosen = cknna(seen.features[some], self.taught[name].features[some], self.how.k)
            except ValueError:  # as in _likeness
                continue
            if name not in self.best or chosen > self.best[name].chosen:
                self.best[name] = Leader(chosen, block, t, seen.features)
        return alike

    def _seen(self, features: Tensor) -> Seen:
        device = self.subject.loaded.device
        prepared = PREPARE[self.how.prepare](features.to(device if device.type == "cuda" else "cpu"))
        return Seen(prepared, nearest(prepared, self.how.k))

    def _likeness(self, seen: Seen, teacher: str) -> Likeness:
        theirs = self.taught[teacher]
        scores: dict[str, float | None] = {"mutual_knn": mutual_knn_of(seen.near, theirs.near)}
        for name, score in (
            ("cknna", lambda: cknna_of(seen.near, theirs.near)),
            ("cka", lambda: cka(seen.features, theirs.features)),
        ):
            try:
                scores[name] = score()
            except ValueError:  # undefined: nothing varies, as in the last block of an untrained network
                scores[name] = None
        return Likeness(**scores)

    def _probe(self, who: str | tuple[int, float], train: Tensor, test: Tensor) -> tuple[float, Interval]:
        here, there = self.train.labels >= 0, self.test.labels >= 0
        part = train[here], self.train.labels[here], test[there], self.classes
        seed = self.subject.asked.seed
        if self.how.probe == "paper":
            device = self.subject.loaded.device
            predicted = predict_paper(*part, settings=self.how.paper, seed=seed, device=device)
        else:
            predicted = predict_ridge(*part, seed=seed)[0] if self.how.probe == "ridge" else predict_logistic(*part)
        right = predicted == self.test.labels[there]
        self.right[who] = right
        accuracy = right.double().mean().item()
        return accuracy, share_interval(accuracy, len(right))

    def _means(
        self, model: nn.Module, t: float, blocks: Sequence[int], pictures: Pictures, eps: Tensor, stage: str
    ) -> dict[int, Tensor]:
        cond = self.test.cond.index(torch.tensor([0]))  # its null condition is that of every image
        return token_means(
            model, self.subject.noised(pictures.latents, t, eps), t, cond, blocks,
            path=self.subject.loaded.path, batch=self.subject.asked.batch,
            progress=lambda done, total: self.bar(f"{stage}: images", done, total),
        )  # fmt: skip

    @torch.no_grad()
    def _teacher_means(self, name: str, images: Tensor) -> Tensor:
        teacher = self.teachers[name]
        parts = images.split(self.subject.asked.batch)
        return torch.cat([teacher(part).tokens.float().mean(1).cpu() for part in parts])


def no_null(subject: Subject) -> str:
    """Why representations cannot be looked at without a condition; "" where they can."""
    settings = subject.loaded.settings
    if settings.num_classes and not settings.null_label:
        return "it has no null label, and with a label a probe would read what the network was told"
    return ""
