"""REPA's choices of one setting: the block that is aligned, lambda, and what is called similar (Tables 2 and 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ditkit.align import NTXent
from ditkit.evaluation import Panel, Section
from ditkit.evaluation.sections import curves
from ditkit.recipes.claims.baselines import SIT, repa, sit
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED, Finding, Verdict
from ditkit.recipes.reproduce.comparison import PAPERS, Table, Trial, claim
from ditkit.recipes.reproduce.measures import Quality
from ditkit.recipes.reproduce.rules import PAIRED, Paired, percent, shown
from ditkit.recipes.reproduce.shown import numbers, scores, series
from ditkit.recipes.reproduce.testbed import Testbed

WEIGHTS = (0.25, 0.5, 0.75, 1.0)
COSINE, NT_XENT = "cosine", "NT-Xent"
KEPT = 0.5  # of the best one's gain
ROBUST = (
    "Holds: with each of them the distance is smaller than without alignment, "
    f"{PAIRED}, and each keeps at least half of the best one's gain (mean over seeds of the logarithm of the distance "
    "without over that with alignment). Does not hold: one is worse than no alignment by the first measure, or one "
    "that is worse than the best by that measure keeps less than half of its gain. Undecided: else."
)


def against_none(bed: Testbed, arms: Mapping[str, Recipe]) -> list[Trial]:
    """SiT without alignment and these arms, scored at the usual step."""
    return [Trial(name, recipe, [Quality(bed.budget.steps)]) for name, recipe in ({SIT: sit(bed)} | dict(arms)).items()]


def distances_of(found: Table) -> dict[str, np.ndarray]:
    """By trial, the distance at the usual step, seed by seed."""
    return {t.name: found.distance(t.name, found.bed.budget.steps) for t in found.trials}


def told(found: Table, more: Mapping[str, Any]) -> dict[str, Any]:
    """`ours`: distances, class agreement, and what else a claim has."""
    distances = {name: values.tolist() for name, values in distances_of(found).items()}
    return {
        "distance": distances,
        "agreement": numbers(found, [Quality(found.bed.budget.steps)], "agreement"),
        **more,
    }


def over(found: Table, title: str, x: Mapping[str, float]) -> Section:
    """The distance over what was varied, bars from the least to the most over seeds. x: by trial."""
    distances = distances_of(found)
    lines = [series("with REPA", list(x.values()), [distances[name] for name in x])]
    return curves(f"Over {title}", [Panel("distance", lines, title)])


def gains(found: Table) -> dict[str, np.ndarray]:
    """By aligned trial, the logarithm of the distance without alignment over that with it, seed by seed."""
    by = distances_of(found)
    none = by.pop(SIT)
    with np.errstate(divide="ignore"):
        return {name: -np.log(Paired.of(values, none).ratio) for name, values in by.items()}


def kept(found: Table) -> dict[str, float]:
    """By aligned trial, its mean gain over the best one's; nan where none gains."""
    mean = {name: float(values.mean()) for name, values in gains(found).items()}
    best = max(mean.values())
    return {name: value / best if best > 0 else float("nan") for name, value in mean.items()}


def robust(found: Table) -> Verdict:
    """ROBUST."""
    by, share = distances_of(found), kept(found)
    none = by.pop(SIT)
    alone = {name: Paired.of(values, none) for name, values in by.items()}
    best = max(share, key=lambda name: np.nan_to_num(share[name], nan=-np.inf))
    behind = [name for name in by if Paired.of(by[best], by[name]).better() and share[name] < KEPT]
    if behind or any(pair.worse() for pair in alone.values()):
        return FAILS
    return HOLDS if all(alone[name].better() and share[name] >= KEPT for name in by) else UNDECIDED


def each(found: Table) -> str:
    """What each arm changes: "cosine -13 % ± 4, NT-Xent -12 % ± 3"."""
    return ", ".join(f"{name} {percent(np.exp(-values))}" for name, values in gains(found).items())


def weakest(found: Table) -> np.ndarray:
    """The distance of the arm that gains least over that without alignment, seed by seed."""
    by = gains(found)
    return np.exp(-min(by.values(), key=lambda values: float(values.mean())))


def depths(bed: Testbed) -> dict[str, int]:
    """By trial, the block that is aligned: about a quarter in, the usual one, three quarters in, and the last."""
    blocks, usual = bed.sit().model.depth, aligned_block(repa(bed))
    chosen = sorted({max(1, round(blocks / 4)), usual, max(1, round(blocks * 0.75)), blocks})
    return {f"block {depth}": depth for depth in chosen}


def aligned_block(recipe: Recipe) -> int:
    """The block that a recipe with one teacher aligns, counted from 1."""
    assert recipe.align is not None
    return recipe.align.depths(1)[0]


def at_depths(bed: Testbed) -> list[Trial]:
    """Alignment at different blocks; at the usual one it is the common baseline."""
    usual = aligned_block(repa(bed))
    return against_none(
        bed,
        {n: repa(bed) if depth == usual else bed.aligned(bed.sit(), depth=depth) for n, depth in depths(bed).items()},
    )


def judge_depth(found: Table) -> Finding:
    """The usual block over the last one."""
    by, x = distances_of(found), depths(found.bed)
    usual = f"block {aligned_block(repa(found.bed))}"
    last = list(x)[-1]
    pair = Paired.of(by[usual], by[last])
    lowest = min(x, key=lambda name: float(by[name].mean()))
    values = ", ".join(f"{name} {shown(by[name])}" for name in by)
    reason = f"{pair.words(usual, last)} Distance at {found.bed.budget.steps} steps: {values}. Lowest: {lowest}."
    paper = {"FID by block of 24 (SiT-L/2)": {"6": 10.3, "8": 10.0, "10": 10.5, "12": 11.2, "14": 11.6, "16": 12.1}}
    return Finding(
        paper, told(found, {"lowest": lowest, "usual over last": pair.ratio.tolist()}), pair.verdict(), reason,
        [over(found, "aligned block", x), scores(found, found.bed.budget.steps)],
        number=f"{usual} over {last} of {len(x)} tried: {percent(pair.ratio)}; lowest at {lowest}",
        effect=pair.ratio.tolist(),
    )  # fmt: skip


def weighted(bed: Testbed) -> list[Trial]:
    """Alignment with different lambda; 0.5 is the common baseline."""
    usual = repa(bed).align
    assert usual is not None
    return against_none(
        bed,
        {f"lambda {w:g}": repa(bed) if w == usual.weight else bed.aligned(bed.sit(), weight=w) for w in WEIGHTS},
    )


def judge_weight(found: Table) -> Finding:
    """ROBUST over lambda."""
    share = kept(found)
    reason = f"Against no alignment: {each(found)}. Of the best one's gain " + ", ".join(
        f"{name} keeps {100 * value:.0f} %" for name, value in share.items()
    )
    x = {f"lambda {w:g}": w for w in WEIGHTS}
    paper = {"FID (SiT-XL/2, 400K steps)": {"0": 17.2, "0.25": 8.6, "0.5": 7.9, "0.75": 7.8, "1.0": 7.8}}
    return Finding(
        paper, told(found, {"share of the best gain": share}), robust(found), f"{reason}.",
        [over(found, "lambda", x), scores(found, found.bed.budget.steps)], number=each(found),
        effect=weakest(found).tolist(),
    )  # fmt: skip


def similar(bed: Testbed) -> list[Trial]:
    """Alignment by the cosine, which is the common baseline, and by NT-Xent."""
    return against_none(bed, {COSINE: repa(bed), NT_XENT: bed.aligned(bed.sit(), similarity=NTXent())})


def judge_similarity(found: Table) -> Finding:
    """ROBUST over the two."""
    by, share = distances_of(found), kept(found)
    pair = Paired.of(by[NT_XENT], by[COSINE])
    reason = (
        f"Against no alignment: {each(found)}. {pair.words(NT_XENT, COSINE)} "
        f"The weaker one keeps {100 * min(share.values()):.0f} % of the other's gain."
    )
    paper = {"FID (SiT-L/2, 400K steps, DINOv2-L)": {"none": 18.8, NT_XENT: 10.0, COSINE: 9.9}}
    more = {"share of the best gain": share, "NT-Xent over cosine": pair.ratio.tolist()}
    remark = (
        "The paper publishes neither the temperature nor the negatives of its NT-Xent; ours are 0.1 and one image's."
    )
    return Finding(
        paper, told(found, more), robust(found), reason, [scores(found, found.bed.budget.steps)], [remark],
        number=f"{each(found)}; NT-Xent over cosine {percent(pair.ratio)}", effect=weakest(found).tolist(),
    )  # fmt: skip


DEPTH = claim(
    "repa-depth",
    (PAPERS["REPA"], "Table 2"),
    "aligning an early block is better than aligning a late one",
    f"Holds: the distance is smaller with alignment at the usual block (two fifths in) than at the last one, {PAIRED}. "
    "Does not hold: it is larger by the same measure. Undecided: else.",
    trials=at_depths,
    judge=judge_depth,
    number="FID 10.0 at block 8, 10.3 at 6, 12.1 at 16 of 24 (SiT-L/2)",
    minutes=4,
)
WEIGHT = claim(
    "repa-weight",
    (PAPERS["REPA"], "Table 5"),
    "lambda matters little between 0.25 and 1",
    ROBUST,
    trials=weighted,
    judge=judge_weight,
    number="FID 8.6, 7.9, 7.8, 7.8 for lambda 0.25, 0.5, 0.75, 1 (17.2 without)",
    minutes=4,
)
SIMILARITY = claim(
    "repa-similarity",
    (PAPERS["REPA"], "Table 2"),
    "the cosine and NT-Xent serve alike",
    ROBUST,
    trials=similar,
    judge=judge_similarity,
    number="FID 10.0 with NT-Xent, 9.9 with the cosine (SiT-L/2, DINOv2-L)",
    minutes=3,
)
CLAIMS = (DEPTH, WEIGHT, SIMILARITY)
