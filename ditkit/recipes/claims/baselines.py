"""The runs that most claims compare with. A claim that takes them as they are shares them with all others."""

from __future__ import annotations

from ditkit.recipes.recipe import Recipe
from ditkit.recipes.reproduce.testbed import Testbed

SIT, REPA = "SiT", "SiT + REPA"


def sit(bed: Testbed, size: str = "medium") -> Recipe:
    """SiT; the medium one for the long run, whose checkpoints serve as the shorter run too: the rate is constant."""
    return bed.sit(size, {"training.steps": bed.budget.long} if size == "medium" else None)


def repa(bed: Testbed, size: str = "medium") -> Recipe:
    """The same with REPA towards our own teacher."""
    return bed.aligned(sit(bed, size))
