"""DDT's splits: a larger share of encoder blocks helps more as the model grows (Figures 7 and 8)."""

from __future__ import annotations

import numpy as np

from ditkit.evaluation import Panel
from ditkit.evaluation.sections import Cell, Section, curves, table
from ditkit.recipes.claims.ddt_arms import ddt, fewest
from ditkit.recipes.reproduce.claim import Finding
from ditkit.recipes.reproduce.comparison import PAPERS, Table, Trial, claim
from ditkit.recipes.reproduce.measures import Quality
from ditkit.recipes.reproduce.rules import PAIRED, Paired, percent, shown
from ditkit.recipes.reproduce.shown import numbers, scores, series
from ditkit.recipes.reproduce.testbed import Testbed

SIZES = ("small", "medium")
PAPER = {
    "FID at 400K steps, by encoder and decoder blocks": {
        "B": {"4/8": 18.61, "6/6": 16.86, "8/4": 16.32, "10/2": 17.65},
        "L": {"10/14": 8.66, "12/12": 8.21, "16/8": 8.03, "20/4": 7.98},
    },
    "fewest decoder blocks over half and half": {"B, 10/2 over 6/6": 1.047, "L, 20/4 over 12/12": 0.972},
}


def depth_of(bed: Testbed, size: str) -> int:
    """Blocks of a size; the small one has as many as the medium one, so that it can be split in the same ways."""
    return bed.sit("medium" if size == "small" else size).model.depth


def splits(depth: int) -> list[int]:
    """Encoder blocks: half, and all but the fewest decoder blocks (five sixths of 12 and of 24)."""
    return sorted({depth // 2, depth - fewest(depth)})


def named(size: str, depth: int, encoder: int) -> str:
    """ "medium, 3/1": encoder and decoder blocks."""
    return f"{size}, {encoder}/{depth - encoder}"


def trained(bed: Testbed) -> list[Trial]:
    """DDT with REPA in two sizes, each split in two ways."""
    made = []
    for size in SIZES:
        depth = depth_of(bed, size)
        own = depth if size == "small" else None
        for encoder in splits(depth):
            recipe = ddt(bed, size, depth - encoder, own)
            made.append(Trial(named(size, depth, encoder), recipe, [Quality(bed.budget.steps)]))
    return made


def judge(found: Table) -> Finding:
    """The split with the largest encoder against half and half, size by size; then medium against small."""
    step = found.bed.budget.steps
    rows: list[list[Cell]] = []
    by_size: dict[str, dict[int, np.ndarray]] = {}
    for size in SIZES:
        depth = depth_of(found.bed, size)
        by_size[size] = {k: found.distance(named(size, depth, k), step) for k in splits(depth)}
    ratios = {}
    for size, each in by_size.items():
        depth = depth_of(found.bed, size)
        ratios[size] = Paired.of(each[depth - fewest(depth)], each[depth // 2])
        for encoder, values in each.items():
            against = percent(Paired.of(values, each[depth // 2]).ratio) if encoder != depth // 2 else ""
            rows.append([size, f"{encoder}/{depth - encoder}", f"{encoder / depth:.0%}", shown(values), against])
    grown = Paired.of(ratios["medium"].ratio, ratios["small"].ratio)
    told = "; ".join(f"{size} {percent(pair.ratio)}" for size, pair in ratios.items())
    best = {size: best_share(found, each, size) for size, each in by_size.items()}
    reason = (
        f"The largest encoder's distance against that of half and half: {told}. The medium model's ratio over the "
        f"small one's: {percent(grown.ratio)}. Best split by the mean: "
        + ", ".join(f"{size} {share}" for size, share in best.items())
        + "."
    )
    ours = {
        "distance": {size: {str(k): v.tolist() for k, v in each.items()} for size, each in by_size.items()},
        "largest encoder over half": {size: pair.ratio.tolist() for size, pair in ratios.items()},
        "medium over small": grown.ratio.tolist(),
        "best split": best,
        "agreement": numbers(found, [Quality(step)], "agreement"),
    }
    head = ("size", "encoder/decoder", "encoder's share", "distance", "against half and half")
    sections = [shares(found, by_size), table("Splits", head, rows), scores(found, step)]
    return Finding(
        PAPER, ours, grown.verdict(), reason, sections, number=f"largest encoder against half and half: {told}",
        effect=grown.ratio.tolist(),
    )  # fmt: skip


def best_share(found: Table, each: dict[int, np.ndarray], size: str) -> str:
    """The split with the smallest mean distance."""
    depth = depth_of(found.bed, size)
    encoder = min(each, key=lambda k: float(each[k].mean()))
    return f"{encoder}/{depth - encoder}"


def shares(found: Table, by_size: dict[str, dict[int, np.ndarray]]) -> Section:
    """A line for each size: the distance relative to half and half, over the encoder's share."""
    lines = []
    for size, each in by_size.items():
        depth = depth_of(found.bed, size)
        half = each[depth // 2]
        lines.append(series(size, [k / depth for k in each], [v / half for v in each.values()]))
    panel = Panel("Distance relative to half and half", lines, "encoder's share of the blocks")
    return curves("Encoder share by size", [panel], "Bars: from the least to the most over seeds.")


SHARE = claim(
    "ddt-share",
    (PAPERS["DDT"], "Figures 7 and 8"),
    "the larger the model, the larger the share of encoder blocks that is best",
    "For each size, r is the distance of the split with the fewest decoder blocks (a sixth of the blocks, at least "
    "one) over that of half encoder, half decoder. Holds: the medium model's r is smaller than the small one's, "
    f"{PAIRED}. Does not hold: it is larger by the same measure. Undecided: else. The distance is the geometric mean "
    "of the Fréchet distances in both spaces.",
    trials=trained,
    judge=judge,
    number="FID of 10/2 blocks against 6/6 in B +5 %, of 20/4 against 12/12 in L -3 %",
    minutes=9,
)
CLAIMS = (SHARE,)
