"""How fast the data come when nobody trains: the loader alone, with and without decoding, by workers."""

from __future__ import annotations

from ditkit.data.rate import loader_rates
from ditkit.recipes.benches.bench import Bench, Progress, silent
from ditkit.recipes.build import open_images

WORKERS = (0, 1, 2)


def loading(bench: Bench, progress: Progress | None = None) -> dict:
    """The recipe's data into nothing: samples a second for 0, 1, 2 worker processes and for the recipe's own number."""
    recipe, settings, told = bench.recipe, bench.settings, progress or silent
    told("loading", 0, 1)
    _, source = open_images(recipe, bench.device)
    workers = tuple(sorted({*WORKERS, recipe.data.workers}))
    rows = loader_rates(source, bench.batch, workers, settings.seconds)
    told("loading", 1, 1)
    return {"images": len(source), "size": list(source.size), "rows": rows}
