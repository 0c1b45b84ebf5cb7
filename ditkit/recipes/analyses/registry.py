"""Every analysis by its name, in the order of a report."""

from __future__ import annotations

from ditkit.recipes.analyses import attention, cost, layers, maps, path, progress, spatial, spectrum
from ditkit.recipes.analyses.analysis import Analysis

ANALYSES: dict[str, Analysis] = {
    module.ANALYSIS.name: module.ANALYSIS
    for module in (layers, progress, spatial, maps, spectrum, path, attention, cost)
}
