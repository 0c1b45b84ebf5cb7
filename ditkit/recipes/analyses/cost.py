"""What a model costs: parameters, the papers' multiply-accumulates, and true floating point operations."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from ditkit.analysis.cost import cost
from ditkit.config import Settings
from ditkit.evaluation.sections import Cell
from ditkit.recipes.analyses.analysis import Analysis, Bar, Found, Shown, Table
from ditkit.recipes.analyses.subject import Subject


class CostSettings(Settings):
    """Nothing to set: the native size is counted."""


class CostResult(Settings):
    """Of one forward pass of one sample at the native size; matrix products only."""

    parameters: int = Field(description="trained numbers, without position tables, projectors, teachers and codec")
    stored: int = Field(description="with position tables")
    gmacs: float = Field(description="1e9 multiply-accumulates: what the papers print as Gflops")
    gflops: float = Field(description="1e9 floating point operations: twice that")
    size: tuple[int, int] = Field(description="latent rows and columns")


def measure(subject: Subject, settings: CostSettings, bar: Bar) -> Found:
    """Count on the meta device; nothing is computed."""
    spent = cost(subject.loaded.settings)
    size = getattr(subject.loaded.settings, "size", subject.loaded.recipe.model.size)
    return Found(
        CostResult(
            parameters=spent.trainable, stored=spent.parameters, gmacs=spent.gmacs, gflops=2 * spent.gmacs, size=size
        )
    )


def show(found: Mapping[str, Found]) -> Shown:
    """A row a model."""
    results: dict[str, CostResult] = {name: f.result for name, f in found.items()}  # type: ignore[misc]
    said = [
        f"{f'{name}: ' if name else ''}{r.parameters / 1e6:,.2f} million parameters; one forward pass of one sample "
        f"takes {r.gmacs:.4g} GMAC (what the papers call Gflops), which are {r.gflops:.4g} true GFLOP."
        for name, r in results.items()
    ]
    rows: list[list[Cell]] = [
        [name or "model", r.parameters, r.gmacs, r.gflops, f"{r.size[0]} x {r.size[1]}"] for name, r in results.items()
    ]
    columns = ("model", "parameters", "GMAC (papers: Gflops)", "GFLOP (true)", "latent size")
    note = "Matrix products of one forward pass of one sample; codec, teachers and projectors are not counted."
    return Shown(said, tables={"Models": Table(columns, rows)}, note=note)


ANALYSIS = Analysis("cost", "Parameters and operations", CostSettings, CostResult, measure, show, uses=())
