"""Every analysis by its name, in the order of a report."""

from __future__ import annotations

from ditkit.recipes.analyses import cost
from ditkit.recipes.analyses.analysis import Analysis

ANALYSES: dict[str, Analysis] = {analysis.name: analysis for analysis in (cost.ANALYSIS,)}
