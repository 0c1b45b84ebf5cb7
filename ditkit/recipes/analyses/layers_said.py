"""What the analysis `layers` found, in sentences: of one model, and of several side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ditkit.evaluation.uncertainty import Interval
from ditkit.recipes.analyses.layers_found import (
    LayersResult,
    Peak,
    TeacherFound,
    accuracy,
    at,
    highest,
    shared_teachers,
)

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
            f"{r.test_images:,} others; limits are Wilson's (95 %). The best of several is chosen on the images that "
            "it is scored on, which favours it a little."
        )
    if r.teachers:
        parts.append(
            f"Likeness to teachers, which see the clean images: {r.images:,} images, features "
            f"{PREPARED[r.how.prepare]}, k = {r.how.k}, unbiased CKNNA (REPA eq. 21-24), biased CKA. CKNNA and mutual "
            "k-NN depend on the number of images: compare at equal numbers only."
        )
    return " ".join(parts)


def percent(value: float) -> str:
    """0.912 -> "91.2 %"."""
    return f"{100 * value:.1f} %"


def within(limits: Interval | None, form: Callable[[float], str] = percent) -> str:
    """ " (limits 88.0 % to 94.0 %)"; nothing where they are unknown."""
    return f" (limits {form(limits[0])} to {form(limits[1])})" if limits is not None else ""


def score(value: float) -> str:
    """A likeness."""
    return f"{value:.3f}"


def overlap(a: Interval | None, b: Interval | None) -> bool:
    """Whether two intervals share a number; unknown ones do not decide."""
    return a is None or b is None or (a[0] <= b[1] and b[0] <= a[1])


def listed(words: Sequence[str]) -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


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
        f"of {r.test_images:,} held-out images{within(best.limits)}, where guessing gives {percent(1 / r.classes)}."
    )
    rivals = [x for x in at(r, best.t) if x.block != best.block and overlap(x.limits, best.limits)]
    if rivals:
        which = f"block{'s' if len(rivals) > 1 else ''} {listed([str(x.block) for x in rivals])}"
        line += f" The limits of {which} at that time overlap with it: which of them is best is within noise."
    elif len(r.blocks) > 1:
        line += " No other block's limits at that time reach it."
    said = [line]
    if len(r.times) > 1:
        worst = min(r.times, key=lambda t: highest(map(accuracy, at(r, t))))
        top = max(at(r, worst), key=accuracy)
        said.append(f"It is lowest at t = {worst:g}, where the best block, {top.block}, has {percent(accuracy(top))}.")
    return said


def say_teacher(r: LayersResult, teacher: str, f: TeacherFound) -> str:
    """Likeness to one teacher, and how far from it the best block is."""
    line = f"CKNNA with {teacher} is undefined for every block: their features hardly vary."
    if f.best is not None:
        line = (
            f"CKNNA with {teacher} is highest after {of_block(r, f.best.block)} at t = {f.best.t:g}: "
            f"{score(f.best.value)}{within(f.best.limits, score)} (1: alike, 0: unrelated)."
        )
    return line + say_gap(teacher, f)


def say_gap(teacher: str, f: TeacherFound) -> str:
    """A teacher's own probe beside the best block's; nothing without probes."""
    if f.gap is None or f.own.accuracy is None:
        return ""
    sign = 1 if f.gap > 0 else -1
    ends = None if f.limits is None else sorted(100 * sign * v for v in f.limits)
    limits = "" if ends is None else f" (limits {ends[0]:.1f} to {ends[1]:.1f})"
    if f.gap == 0:
        told = "it is right as often as the best block"
    elif f.limits is not None and f.limits[0] <= 0 <= f.limits[1]:
        told = f"its distance of {100 * abs(f.gap):.1f} points from the best block{limits} is within noise"
    elif f.gap > 0:
        told = f"the semantic gap to the best block is {100 * f.gap:.1f} points{limits}"
    else:
        told = f"there is no semantic gap, the best block is ahead by {-100 * f.gap:.1f} points{limits}"
    return f" A probe of {teacher} itself has {percent(f.own.accuracy)}{within(f.own.limits)}: {told}."


def say_several(results: Mapping[str, LayersResult]) -> list[str]:
    """Which model is ahead, in accuracy and in likeness to each teacher, and how surely."""
    said = ranked("In the accuracy of a linear probe", {name: r.best for name, r in results.items()}, percent)
    for teacher in shared_teachers(results):
        peaks = {name: r.teachers[teacher].best for name, r in results.items()}
        said += ranked(f"In CKNNA with {teacher}", peaks, score)
        gaps = {name: gap for name, r in results.items() if (gap := r.teachers[teacher].gap) is not None}
        if gaps:
            each = listed([f"{name} {100 * gap:.1f} points" for name, gap in gaps.items()])
            below = " (below 0: ahead of it)" if min(gaps.values()) < 0 else ""
            said.append(f"Semantic gap to {teacher}{below}: {each}.")
    uneven = {(r.images, r.how.k, r.how.prepare) for r in results.values()}
    if len(uneven) > 1:
        said.append("They were measured with other numbers of images, k or preparations: likeness cannot be compared.")
    if not shared_teachers(results):
        said.append("They share no teacher: name one for all with teachers=A.")
    for name, r in results.items():
        said += [f"{name}: there is no linear probe: {r.unprobed}."] if r.best is None else []
    return said


def ranked(what: str, peaks: Mapping[str, Peak | None], form: Callable[[float], str]) -> list[str]:
    """One sentence that puts models in order, and says which of them the leader is not surely ahead of."""
    order = sorted(((name, p) for name, p in peaks.items() if p is not None), key=lambda pair: -pair[1].value)
    if len(order) < 2:
        return []
    told = [f"{name} with {form(p.value)} after block {p.block} at t = {p.t:g}" for name, p in order]
    line = f"{what} {told[0]} is ahead; then {listed(told[1:])}."
    (leader, best), *others = order
    close = [name for name, p in others if overlap(best.limits, p.limits)]
    if best.limits is None or any(p.limits is None for _, p in others):
        return [f"{line} Limits are not known for all of them."]
    if close:
        return [f"{line} The limits of {leader} and {listed(close)} overlap: on so few images that may be chance."]
    return [f"{line} Its limits lie above those of the others."]
