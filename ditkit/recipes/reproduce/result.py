"""result.json: what a study found, with everything that a ledger of claims wants to know of it."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from ditkit.config import Settings, dump, read_file, read_settings
from ditkit.files import write_text
from ditkit.recipes.reproduce.claim import UNDECIDED, Finding, Question, Verdict

RESULT = "result.json"


class Result(Settings):
    """One re-tested claim. Written by `ditkit reproduce` alone, never by hand; holds no path and no host name."""

    claim: str
    paper: str
    table: str
    says: str = Field(description="the claim in words")
    rule: str = Field(description="what decides, fixed before anything was run")
    verdict: Verdict
    reason: str
    paper_number: str = Field("", description="the paper's number in a few words")
    our_number: str = Field("", description="ours, with its spread")
    effect: tuple[float | None, ...] = Field((), description="better over worse, a ratio for each seed")
    published: dict[str, Any] = Field(description="the paper's numbers")
    ours: dict[str, Any] = Field(description="ours, with their spread; None where a number was not finite")
    budget: str
    settings: dict[str, Any] = Field(description="of the budget, with what the command changed")
    seeds: tuple[int, ...]
    data: dict[str, Any]
    commands: tuple[str, ...]
    seconds: float = Field(ge=0, description="of all trainings and scores, whatever interruptions there were")
    environment: dict[str, Any]
    commit: str | None
    date: str
    scores: dict[str, Any] = Field({}, description="run -> score -> values: the verdict follows from them by the rule")


def make_result(
    q: Question, found: Finding, data: dict, seconds: float, environment: dict, scores: dict[str, Any] | None = None
) -> Result:
    """The result of a question. A smoke run decides nothing, whatever its numbers say. scores: of every run."""
    verdict, reason = found.verdict, found.reason
    if q.size == "smoke":
        verdict, reason = UNDECIDED, f"A smoke run proves that everything works; its numbers mean nothing. {reason}"
    return Result(
        claim=q.claim.name, paper=q.claim.paper, table=q.claim.table, says=q.claim.says, rule=q.claim.rule,
        verdict=verdict, reason=reason, published=plain(found.paper), ours=plain(found.ours), budget=q.size,
        settings=q.settings, seeds=q.seeds, data=data, commands=(q.command,),
        seconds=round(seconds, 2), environment=environment, commit=(environment.get("git") or {}).get("commit"),
        date=datetime.now(UTC).date().isoformat(), paper_number=q.claim.number, our_number=found.number,
        effect=plain(found.effect), scores=plain(scores or {}),
    )  # fmt: skip


def save_result(result: Result, folder: Path) -> Path:
    """Write result.json."""
    return write_text(folder / RESULT, dump(result, "json"))


def read_result(folder: Path) -> Result:
    """Read result.json. SettingsError, one line, where there is none or it is something else."""
    return read_settings(Result, read_file(folder / RESULT), str(folder / RESULT))


def plain(value: Any) -> Any:
    """JSON values with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
