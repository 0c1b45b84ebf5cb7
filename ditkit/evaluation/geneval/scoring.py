"""GenEval's verdict on one image: are the objects there that the prompt asks for, so many, so coloured, so placed?

Source: arXiv 2310.11513, section 3, with the thresholds of the published evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import Field
from torch import Tensor

from ditkit.config import Settings
from ditkit.evaluation.geneval.metadata import Prompt, Requirement
from ditkit.protocols import Colours, Detection

Box = tuple[float, float, float, float]
NO_OFFSET = 1e-3  # pixels of revised offset below which two objects stand in no relation
ASPECTS = ("number", "classes", "colours", "pairs", "relation")


class Rules(Settings):
    """The numbers of the protocol; the defaults are the published ones."""

    threshold: float = Field(0.3, description="confidence above which an object counts")
    counting: float = Field(0.9, description="the same for the counting task")
    most: int = Field(16, ge=1, description="objects of one class that are looked at")
    overlap: float = Field(1.0, description="IoU above which the less confident of two boxes goes; 1: never")
    near: float = Field(0.1, description="share of both sizes that an offset must exceed to be one")


class Verdict(NamedTuple):
    """correct, and one line for every clause of the prompt that the image breaks."""

    correct: bool
    reasons: tuple[str, ...]


@dataclass
class Examined:
    """What a detector found in one image (3, H, W) uint8; colours are asked for once for each object."""

    image: Tensor
    found: Sequence[Detection]
    colours: Colours
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        self.found = sorted(self.found, key=lambda d: -d.score)
        self._named: dict[int, str] = {}

    def confident(self, tag: str) -> list[Detection]:
        """Objects of all classes above the task's threshold, the most confident first."""
        threshold = self.rules.counting if tag == "counting" else self.rules.threshold
        return [d for d in self.found if d.score > threshold]

    def objects(self, name: str, tag: str) -> list[Detection]:
        """Objects of one class that the task `tag` may look at."""
        kept: list[Detection] = []
        for candidate in self.confident(tag):
            if candidate.label == name and all(iou(candidate.box, k.box) <= self.rules.overlap for k in kept):
                kept.append(candidate)
        return kept[: self.rules.most]

    def colours_of(self, objects: Sequence[Detection]) -> list[str]:
        """The colour name of each of these objects."""
        new = [d for d in objects if id(d) not in self._named]
        if new:
            self._named |= zip(map(id, new), self.colours(self.image, new), strict=True)
        return [self._named[id(d)] for d in objects]

    def known_colour(self, detection: Detection) -> str:
        """Its colour if it was asked for, else an empty string."""
        return self._named.get(id(detection), "")


def judge(prompt: Prompt, examined: Examined) -> Verdict:
    """Every requirement of `include` must hold and none of `exclude` may; all broken ones are told."""
    groups: list[list[Detection] | None] = []
    reasons: list[str] = []
    for requirement in prompt.include:
        objects = examined.objects(requirement.name, prompt.tag)[: requirement.count]
        problem = _problem(requirement, objects, groups, examined)
        groups.append(None if problem else objects)
        reasons += [problem] if problem else []
    for requirement in prompt.exclude:
        count = len(examined.objects(requirement.name, prompt.tag))
        if count >= requirement.count:
            reasons.append(f"expected fewer than {requirement.count} {requirement.name}, found {count}")
    return Verdict(not reasons, tuple(reasons))


def _problem(
    requirement: Requirement, objects: list[Detection], groups: Sequence[list[Detection] | None], examined: Examined
) -> str:
    """What is wrong with the `count` most confident objects of the class; empty if nothing is."""
    name, count = requirement.name, requirement.count
    if len(objects) < count:
        return f"expected {count} {name}, found {len(objects)}"
    if requirement.colour:
        seen = examined.colours_of(objects)
        if seen.count(requirement.colour) < count:
            return f"expected {count} {requirement.colour} {name}, found {', '.join(seen)}"
    if requirement.position:
        relation, other = requirement.position
        targets = groups[other]
        if targets is None:
            return f"no object that {name} could be {relation}"
        for thing in objects:
            for target in targets:
                held = relations(thing.box, target.box, examined.rules.near)
                if relation not in held:
                    return f"expected {name} {relation} {target.label}, found {' and '.join(held) or 'no relation'}"
    return ""


def iou(a: Box, b: Box) -> float:
    """Intersection over union of boxes (x0, y0, x1, y1) whose last pixels count: a side is x1 - x0 + 1 long."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    common = max(0.0, width) * max(0.0, height)
    areas = ((box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b))
    return common / (sum(areas) - common)


def relations(a: Box, b: Box, near: float = 0.1) -> tuple[str, ...]:
    """Where a lies as seen from b: of "left of", "right of", "above", "below" none, one or two (y points down).

    The offset of the centres loses `near` times the sum of both sizes along each axis (never changing its sign); a
    component larger than half of the whole offset is a relation.
    """
    offset, revised = [], []
    for axis in (0, 1):
        distance = (a[axis] + a[axis + 2]) / 2 - (b[axis] + b[axis + 2]) / 2
        sizes = abs(a[axis + 2] - a[axis]) + abs(b[axis + 2] - b[axis])
        offset.append(distance)
        revised.append(math.copysign(max(abs(distance) - near * sizes, 0.0), distance))
    if all(abs(r) < NO_OFFSET for r in revised):
        return ()
    dx, dy = (r / math.hypot(*offset) for r in revised)
    held = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return tuple(relation for relation, holds in held.items() if holds)


def aspects(prompt: Prompt, examined: Examined) -> dict[str, bool]:
    """What of the prompt an image got right, where only what it asks for may be there (scenes, not photographs).

    number: of objects. classes, colours, pairs: the sets of class names, of colours, and of (class, colour).
    relation: only where the pairs are right. An aspect that the prompt does not speak of is missing.
    """
    objects = examined.confident(prompt.tag)
    labels = [d.label for d in objects]
    right = {
        "number": len(objects) == sum(r.count for r in prompt.include),
        "classes": set(labels) == {r.name for r in prompt.include},
    }
    complete = right["classes"]
    if all(r.colour for r in prompt.include):
        seen = examined.colours_of(objects)
        right["colours"] = set(seen) == {r.colour for r in prompt.include}
        complete = right["pairs"] = {*zip(labels, seen, strict=True)} == {(r.name, r.colour) for r in prompt.include}
    if any(r.position for r in prompt.include) and complete and right["number"]:
        right["relation"] = judge(prompt, examined).correct
    return right
