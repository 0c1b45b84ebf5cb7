"""The page of a re-tested claim: the verdict and why, the numbers beside the paper's, how to do it again."""

from __future__ import annotations

from ditkit.evaluation import Report
from ditkit.evaluation.sections import facts, json_block, text
from ditkit.recipes.reproduce.claim import Finding
from ditkit.recipes.reproduce.result import Result


def page(result: Result, finding: Finding) -> Report:
    """The report of a result."""
    summary = [
        f"{result.paper}, {result.table}: {result.says}",
        f"Verdict: {result.verdict}. {result.reason}",
        *finding.remarks,
    ]
    how = {
        "command": result.commands[0],
        "seeds": ", ".join(map(str, result.seeds)),
        "budget": result.budget,
        **{f"budget, {key}": told(value) for key, value in result.settings.items()},
        **{f"data, {key}": told(value) for key, value in result.data.items()},
        "seconds of training and scoring": result.seconds,
        "commit": result.commit,
        "date": result.date,
    }
    sections = [
        *finding.sections,
        text("How it was decided", ["Fixed before anything was run.", result.rule]),
        facts("How it was measured", how),
        json_block("Environment", result.environment, "Show versions and machine"),
    ]
    return Report(f"{result.claim}: {result.verdict}", summary, sections, "Made by ditkit. Numbers are as measured.")


def told(value: object) -> str | int | float | None:
    """A value as a cell."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return value if isinstance(value, (str, int, float)) or value is None else str(value)
