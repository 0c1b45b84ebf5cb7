"""A recipe's published scores beside measured ones."""

from __future__ import annotations

from ditkit.evaluation import Protocol
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.registry import RECIPES
from ditkit.recipes.sampling import describe_sampler


def published_lines(recipe: Recipe, protocol: Protocol) -> list[str]:
    """The recipe's published scores, each with the ways in which it came about differently.

    Rows of the sampler in use where there are any, else all; none where the network is not the published row's.
    """
    row_of = RECIPES.get(recipe.name)
    if row_of is not None and row_of().model != recipe.model:
        return []
    rows = [p for p in recipe.published if p.sampling.model_dump(exclude={"guidance"}) == protocol.sampler]
    lines = []
    for row in rows or recipe.published:
        numbers = {"FID": row.fid, "sFID": row.sfid, "IS": row.inception_score, "P": row.precision, "R": row.recall}
        told = ", ".join(f"{name} {value:g}" for name, value in numbers.items() if value is not None)
        guidance = None if row.sampling.guidance is None else row.sampling.guidance.model_dump(mode="json")
        facts = (
            ("features and reference", row.reference, f"{protocol.extractor} and {protocol.reference_n:,} images"),
            ("images", f"{row.images:,}", f"{protocol.n:,}"),
            ("labels", row.labels, protocol.labels),
            ("guidance", guidance and guidance["scale"], protocol.guidance and protocol.guidance["scale"]),
            ("uint8", row.quantise, protocol.quantiser),
        )
        apart = "; ".join(f"{key} {there}, here {here}" for key, there, here in facts if there != here)
        lines.append(
            f"{row.table}, {row.steps:,} steps, {describe_sampler(row.sampling)}: {told} (not comparable: {apart})"
        )
    return lines
