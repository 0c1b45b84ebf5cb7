"""What the analysis `layers` found, in sentences: of one model, and of several side by side."""

from __future__ import annotations

from collections.abc import Mapping

from ditkit.evaluation.uncertainty import share_interval
from ditkit.recipes.analyses.layers_found import (
    LayersResult,
    TeacherFound,
    accuracy,
    at,
    highest,
    shared_teachers,
)
from ditkit.recipes.analyses.representation import Peak
from ditkit.recipes.analyses.verdicts import HALVES, Standing, between, judged, listed, ranked, side_by_side

PROBES = {
    "ridge": "ridge regression in closed form",
    "logistic": "logistic regression",
    "paper": "the paper's: batch norm and one Linear",
}
PREPARED = {
    "normalise": "of unit length",
    "platonic": "with outliers clamped at the 0.95 quantile, then of unit length",
    "none": "as they are",
}


def note(r: LayersResult) -> str:
    """How it was measured."""
    parts = ["Mean image token after a block (1-based), null condition, no projector, one noise for all times."]
    if r.best is not None:
        steps = (
            f", {r.how.paper.epochs} epochs, batch {min(r.how.paper.batch, r.train_images):,}, lr {r.how.paper.lr:g}"
        )
        probe = PROBES[r.how.probe] + (steps if r.how.probe == "paper" else "")
        parts.append(
            f"Probe: {probe}; learns from {r.train_images:,} images of {r.classes} classes, scored on "
            f"{r.test_images:,} others; limits are Wilson's (95 %), blocks are compared image by image."
        )
    if r.teachers:
        parts.append(
            f"Likeness to teachers, which see the clean images: {r.images:,} images, features "
            f"{PREPARED[r.how.prepare]}, k = {r.how.k}, unbiased CKNNA (REPA eq. 21-24), biased CKA. CKNNA and mutual "
            "k-NN depend on the number of images: compare at equal numbers only."
        )
    return " ".join([*parts, f"{HALVES}; curves and tables of blocks are of all."])


def percent(value: float) -> str:
    """0.912 -> "91.2 %"."""
    return f"{100 * value:.1f} %"


def points(value: float) -> str:
    """0.0213 -> "2.1"."""
    return f"{100 * value:.1f}"


def score(value: float) -> str:
    """A likeness."""
    return f"{value:.3f}"


def of_block(r: LayersResult, block: int) -> str:
    """ "block 2 of 4", and what it is where that is known."""
    what = []
    if r.encoder_blocks:
        what.append("encoder" if block <= r.encoder_blocks else "decoder")
    if block == r.align_depth:
        what.append("the aligned one")
    return f"block {block} of {r.depth}" + (f" ({', '.join(what)})" if what else "")


def say_one(r: LayersResult, name: str = "") -> list[str]:
    """Sentences about one model."""
    said = say_probe(r)
    for teacher, f in r.teachers.items():
        said.append(say_teacher(r, teacher, f))
        said += [
            f"{teacher} and {other}, both teachers, have a CKNNA of {score(alike.cknna)} with each other."
            for other, alike in f.own.alike.items()
            if teacher < other and alike.cknna is not None
        ]
    if r.missing:
        said.append(f"Likeness to the recipe's teacher was not measured: {r.missing}")
    elif not r.teachers:
        said.append("No teacher to be alike to: the recipe has none, and none was named (teachers=A,B).")
    return said


def say_probe(r: LayersResult) -> list[str]:
    """Where the probe is best, which blocks are as good, and what noise takes."""
    best = r.best
    if best is None:
        return [f"There is no linear probe: {r.unprobed}."]
    line = (
        f"A linear probe names the class best after {of_block(r, best.block)} at t = {best.t:g}: {percent(best.value)} "
        f"of {best.images:,} {r.watched}{between(best.limits, percent)}, where guessing gives {percent(1 / r.classes)}."
    )
    if best.rivals:
        which = f"block{'s' if len(best.rivals) > 1 else ''} {listed([str(block) for block in best.rivals])}"
        line += f" On the same images it is not ahead of {which} at that time beyond noise."
    elif len(r.blocks) > 1:
        line += " On the same images it is ahead of every other block at that time, beyond noise."
    said = [line]
    if len(r.times) > 1:
        worst = min(r.times, key=lambda t: highest(map(accuracy, at(r, t))))
        top = max(at(r, worst), key=accuracy)
        low = f"the best block, {top.block}, has {percent(accuracy(top))} of all {r.test_images:,}"
        said.append(f"It is lowest at t = {worst:g}, where {low}.")
    return said


def say_teacher(r: LayersResult, teacher: str, f: TeacherFound) -> str:
    """Likeness to one teacher, and how far from it the best block is."""
    line = f"CKNNA with {teacher} is undefined for every block: their features hardly vary."
    if f.best is not None:
        line = (
            f"CKNNA with {teacher} is highest after {of_block(r, f.best.block)} at t = {f.best.t:g}: "
            f"{score(f.best.value)}{between(f.best.limits, score)} (1: alike, 0: unrelated)."
        )
    return line + say_gap(r, teacher, f)


def say_gap(r: LayersResult, teacher: str, f: TeacherFound) -> str:
    """A teacher's own probe beside the best block's, on the same images; nothing without probes."""
    if f.gap is None or r.best is None:
        return ""
    sign = 1 if f.gap > 0 else -1
    ends = None if f.limits is None else sorted(100 * sign * v for v in f.limits)
    limits = "" if ends is None else f" (limits {ends[0]:.1f} to {ends[1]:.1f})"
    word, theirs = judged(f.gap, f.limits).word, min(1.0, max(0.0, r.best.value + f.gap))
    if word == "equal":
        told = "it is right as often as the best block"
    elif word == "within":
        told = f"its distance of {100 * abs(f.gap):.1f} points from the best block{limits} is within noise"
    elif f.gap > 0:
        told = f"the semantic gap to the best block is {100 * f.gap:.1f} points{limits}"
    else:
        told = f"there is no semantic gap, the best block is ahead by {-100 * f.gap:.1f} points{limits}"
    own = between(share_interval(theirs, r.best.images), percent)
    return f" A probe of {teacher} itself has {percent(theirs)}{own}: {told}."


def say_several(results: Mapping[str, LayersResult]) -> list[str]:
    """Which model is ahead, in accuracy and in likeness to each teacher, and how surely."""
    probed = {name: standing(r.best) for name, r in results.items() if r.best is not None}
    said = ranked("In the accuracy of a linear probe", probed, percent)
    for teacher in shared_teachers(results):
        found = {name: r.teachers[teacher] for name, r in results.items()}
        peaks = {name: standing(f.best) for name, f in found.items() if f.best is not None}
        said += ranked(f"In CKNNA with {teacher}", peaks, score)
        gaps = {name: (f.gap, between(f.limits, points)) for name, f in found.items() if f.gap is not None}
        if gaps:
            each = listed([f"{name} {points(gap)} points{limits}" for name, (gap, limits) in gaps.items()])
            below = " (below 0: ahead of it)" if min(gap for gap, _ in gaps.values()) < 0 else ""
            said.append(f"Semantic gap to {teacher}{below}: {each}.")
    said = side_by_side(said)
    uneven = {(r.images, r.how.k, r.how.prepare) for r in results.values()}
    if len(uneven) > 1:
        said.append("They were measured with other numbers of images, k or preparations: likeness cannot be compared.")
    if not shared_teachers(results):
        said.append("They share no teacher: name one for all with teachers=A.")
    for name, r in results.items():
        said += [f"{name}: there is no linear probe: {r.unprobed}."] if r.best is None else []
    return said


def standing(p: Peak) -> Standing:
    """A peak beside those of other models."""
    return Standing(p.value, p.limits, [int(c) for c in p.right], f" after block {p.block} at t = {p.t:g}")
