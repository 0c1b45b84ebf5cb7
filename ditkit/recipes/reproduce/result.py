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


def make_result(q: Question, found: Finding, data: dict, seconds: float, environment: dict) -> Result:
    """The result of a question. A smoke run decides nothing, whatever its numbers say."""
    verdict, reason = found.verdict, found.reason
    if q.size == "smoke":
        verdict, reason = UNDECIDED, f"A smoke run proves that everything works; its numbers mean nothing. {reason}"
    return Result(
        claim=q.claim.name, paper=q.claim.paper, table=q.claim.table, says=q.claim.says, rule=q.claim.rule,
        verdict=verdict, reason=reason, published=plain(found.paper), ours=plain(found.ours), budget=q.size,
        settings=q.settings, seeds=q.seeds, data=data, commands=(q.command,),
        seconds=round(seconds, 2), environment=environment, commit=(environment.get("git") or {}).get("commit"),
        date=datetime.now(UTC).date().isoformat(),
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
