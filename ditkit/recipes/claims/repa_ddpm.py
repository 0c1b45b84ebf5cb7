"""REPA's claim that alignment helps DiT with its DDPM objective too, not flow matching alone."""

from __future__ import annotations

from ditkit.recipes.claims.dit_recipe import dit
from ditkit.recipes.reproduce.claim import Finding
from ditkit.recipes.reproduce.comparison import PAPERS, Table, Trial, claim
from ditkit.recipes.reproduce.measures import Quality
from ditkit.recipes.reproduce.rules import PAIRED, Paired, percent
from ditkit.recipes.reproduce.shown import numbers, over_training, scores
from ditkit.recipes.reproduce.testbed import Testbed

DIT, ALIGNED = "DiT", "DiT + REPA"
PAPER = {"FID at 400K steps without, with REPA": {"DiT-L/2": [23.33, 15.6], "DiT-XL/2": [19.47, 12.3]}}


def trained(bed: Testbed) -> list[Trial]:
    """DiT and DiT + REPA, medium, for the long run: noise prediction is slow to learn what classes are."""
    plain = dit(bed, changes={"training.steps": bed.budget.long})
    measures = [Quality(step) for step in scored(bed)]
    return [Trial(DIT, plain, measures), Trial(ALIGNED, bed.aligned(plain), measures)]


def scored(bed: Testbed) -> list[int]:
    """The usual step, and the last of the long run."""
    return sorted({bed.budget.steps, bed.budget.long})


def judge(found: Table) -> Finding:
    """Whether the distance with alignment is smaller at the last step."""
    steps = scored(found.bed)
    distances = {t.name: [found.distance(t.name, step) for step in steps] for t in found.trials}
    last = Paired.of(distances[ALIGNED][-1], distances[DIT][-1])
    ours = {
        "distance": {name: [values.tolist() for values in each] for name, each in distances.items()},
        "steps": steps,
        "agreement": numbers(found, [Quality(step) for step in steps], "agreement"),
    }
    return Finding(
        PAPER, ours, last.verdict(), last.words(ALIGNED, DIT),
        [scores(found, steps[-1]), over_training(found, {DIT: steps, ALIGNED: steps})],
        number=f"{percent(last.ratio)} at {steps[-1]} steps", effect=last.ratio.tolist(),
    )  # fmt: skip


DDPM = claim(
    "repa-ddpm",
    (PAPERS["REPA"], "DiT + REPA"),
    "alignment also helps DiT, which predicts the noise of a DDPM chain",
    f"Holds: at the last step the distance with REPA is smaller than without, {PAIRED}. Does not hold: it is larger by "
    "the same measure. Undecided: else. The distance is the geometric mean of the Fréchet distances in both spaces.",
    trials=trained,
    judge=judge,
    number="FID 23.33 to 15.6 (DiT-L/2) and 19.47 to 12.3 (DiT-XL/2) at 400K steps",
    minutes=5,
)
CLAIMS = (DDPM,)
