"""SD3's shift of times with the resolution (Esser et al. 2024, section 5.3.2): at more pixels, more noise.

The same images at their own size and enlarged to twice the sides, with patches of twice the side: as many tokens, the
same blocks, and the constant image of the paper's argument comes true, since the enlarged pixels are nearly copies.
Shift s acts in training and in sampling, as in the paper. Either size is judged at that size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ditkit.diffusion.times import Shifted, Uniform, resolution_shift
from ditkit.evaluation import Panel
from ditkit.evaluation.sections import curves
from ditkit.recipes.claims.baselines import sit
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.reproduce.claim import Finding
from ditkit.recipes.reproduce.comparison import PAPERS, Table, Trial, claim
from ditkit.recipes.reproduce.measures import Quality, distance
from ditkit.recipes.reproduce.rules import PAIRED, Paired, percent, shown, together
from ditkit.recipes.reproduce.shown import series
from ditkit.recipes.reproduce.testbed import Testbed, validation_loss

TIMES = 2  # the sides of the enlarged images over their own
ALPHA = resolution_shift(1, TIMES**2)  # what the paper's formula gives
SHIFTS = (1.0, ALPHA, 2 * ALPHA)
LOW, HIGH = "own size", "enlarged"


class Enlarged:
    """The images at twice their sides, and who judges samples of that size; made when first asked."""

    def __init__(self, bed: Testbed):
        if bed.budget.latents:
            raise ValueError("sd3-shift compares sizes in pixels: leave latents=true out")
        height, width = bed.source.size
        self.bed = Testbed(bed.q, (TIMES * height, TIMES * width))
        self.ready = False

    def recipe(self) -> Recipe:
        """SiT on the enlarged images, with as many tokens as on the others."""
        changes = {"training.steps": self.bed.budget.steps, "model.patch": TIMES * self.bed.budget.patch}
        return self.bed.sit("medium", changes)

    def judges(self) -> Testbed:
        """The testbed of these images, ready to judge."""
        if not self.ready:
            self.bed.begin(lambda *_, **__: None)
            self.ready = True
        return self.bed


@dataclass(frozen=True)
class ShiftedQuality:
    """As Quality, with a shifted grid of the sampler; judged as the enlarged images are, where those are given."""

    step: int
    shift: float
    larger: Enlarged | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        """Quality's, and the sampler's shift where there is one; the run itself says of which size."""
        return Quality(self.step).name + ("" if self.shift == 1 else f", sampler shift {self.shift:g}")

    def cost(self, bed: Testbed) -> float:
        """All samples, all steps."""
        return Quality(self.step).cost(bed)

    def __call__(self, bed: Testbed, folder: Path, seed: int) -> dict[str, float | None]:
        """As Quality's."""
        on = bed if self.larger is None else self.larger.judges()
        loaded = on.load(folder, self.step)
        sampler = loaded.recipe.sampling.model_copy(update={"shift": self.shift})
        images, labels = on.sample(loaded, sampler=sampler, seed=seed)
        return {**on.judge(images, labels), "validation_loss": validation_loss(folder, self.step)}


def name_of(where: str, shift: float) -> str:
    """A trial: "own size, shift 2"."""
    return f"{where}, shift {shift:g}"


def shifted(recipe: Recipe, shift: float) -> Recipe:
    """The recipe with shifted training times; shift 1 leaves it as it is."""
    return recipe if shift == 1 else recipe.with_({"objective.density": Shifted(base=Uniform(), factor=shift)})


def measured(bed: Testbed) -> list[Trial]:
    """Both sizes with every shift; runs without one are sampled with all."""
    larger = Enlarged(bed)
    short = {"training.steps": bed.budget.steps}
    found = []
    for where, judge in ((LOW, None), (HIGH, larger)):
        for shift in SHIFTS:
            plain = larger.recipe() if judge else sit(bed) if shift == 1 else sit(bed).with_(short)
            asked = [shift] if shift != 1 else list(SHIFTS)
            measures = [ShiftedQuality(bed.budget.steps, s, judge) for s in asked]
            found.append(Trial(name_of(where, shift), shifted(plain, shift), measures))
    return found


def distances(found: Table, where: str, trained: float, sampled: float) -> np.ndarray:
    """Seed by seed; infinite where a run diverged."""
    measure = ShiftedQuality(found.bed.budget.steps, sampled)
    return np.array([distance(row) for row in found.of(name_of(where, trained), measure)])


def judge(found: Table) -> Finding:
    """The formula's shift against none at the larger size, and whether it pays more there than at the smaller."""
    both = {w: np.array([distances(found, w, s, s) for s in SHIFTS]) for w in (LOW, HIGH)}
    only = {w: np.array([distances(found, w, 1.0, s) for s in SHIFTS]) for w in (LOW, HIGH)}
    ratio = {w: Paired.of(rows[1], rows[0]) for w, rows in both.items()}
    more = Paired.of(ratio[HIGH].ratio, ratio[LOW].ratio)
    best = {w: [SHIFTS[i] for i in rows.argmin(axis=0)] for w, rows in both.items()}
    with np.errstate(invalid="ignore"):
        reason = (
            f"{ratio[HIGH].words(f'Shift {ALPHA:g}', 'none, enlarged')} At the images' own size: "
            f"{percent(ratio[LOW].ratio)}; ratio of the ratios {shown(more.ratio)}. Best shift by seed: "
            f"{', '.join(f'{s:g}' for s in best[HIGH])} enlarged, {', '.join(f'{s:g}' for s in best[LOW])} else."
        )
    panels = [
        Panel(
            f"Shift in {how}", [series(w, SHIFTS, list(rows)) for w, rows in values.items()], "shift",
            "distance", log_y=True,
        )
        for how, values in (("training and sampling", both), ("sampling alone", only))
    ]  # fmt: skip
    note = f"Geometric mean of the Fréchet distances in both spaces, at step {found.bed.budget.steps}."
    ours: dict[str, Any] = {
        "shifts": SHIFTS,
        "training and sampling": {w: rows.tolist() for w, rows in both.items()},
        "sampling alone": {w: rows.tolist() for w, rows in only.items()},
        "best": best,
    }
    paper = {"formula": "sqrt(m / n)", "chosen": 3.0, "from the formula": 4.0, "preferred": "above 1.5"}
    told = f"shift {ALPHA:g}: {percent(ratio[HIGH].ratio)} enlarged, {percent(ratio[LOW].ratio)} at their own size"
    return Finding(
        paper, ours, together(ratio[HIGH].verdict(), more.verdict()), reason,
        [curves("Distance over the shift", panels, note)], number=told, effect=ratio[HIGH].ratio.tolist(),
    )  # fmt: skip


SHIFT = claim(
    "sd3-shift",
    (PAPERS["SD3"], "Section 5.3.2, Figure 6"),
    "at a higher resolution, times shifted towards the noise by sqrt(m / n) in training and sampling are better",
    f"Holds: on images enlarged to twice their sides the distance with shift {ALPHA:g} = sqrt(m / n) is smaller than "
    f"with none, {PAIRED}, and the ratio of the two is smaller there than at the images' own size by the same measure. "
    "Does not hold: one of the two is larger by that measure. Undecided: else. The distance is the geometric mean of "
    "the Fréchet distances in both spaces.",
    trials=measured,
    judge=judge,
    number="shift 3 chosen at 1024² (the formula gives 4 from 256²); people prefer shifts above 1.5",
    minutes=6,
)
CLAIMS = (SHIFT,)
