"""Made-up claims that train nothing, and made-up results of them."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ditkit.config import Settings
from ditkit.recipes.claims import CLAIMS
from ditkit.recipes.reproduce.claim import HOLDS, Claim, Finding, Question
from ditkit.recipes.reproduce.result import Result

PAPER = "First Things (ONE, arXiv 1234.56789)"


class Amount(Settings):
    """A budget."""

    steps: int = Field(2, ge=1)


def only_claims(monkeypatch, **studies) -> None:
    """Make-believe claims are all that there are; the real ones come back in their order."""
    for name in list(reversed(CLAIMS)):  # undoing goes backwards
        monkeypatch.delitem(CLAIMS, name)
    for name, study in studies.items():
        monkeypatch.setitem(CLAIMS, name, a_claim(name, open=study))


class NoArms:
    """A study without runs: its judge says at once that the claim holds."""

    arms = ()

    def __init__(self, q: Question):
        self.q, self.shelf, self.data = q, q.shelf, {"source": q.data, "size": "8x8", "training": 1437, "classes": 10}

    def begin(self, show):
        raise AssertionError("nothing is to be judged")

    def score(self, arm, folder, part, show):
        raise AssertionError("no arm")

    def find(self, scores, folders):
        return Finding({}, {}, HOLDS, "It was said.", [], number=f"{self.q.budget.steps} steps", effect=[0.5, 0.25])


def a_claim(name: str, **changes: Any) -> Claim:
    """A claim whose study is NoArms."""
    told: dict[str, Any] = {
        "paper": PAPER, "table": "Table 1", "says": f"{name} is better | by far", "rule": "Holds: always.",
        "data": "digits", "budgets": {size: Amount() for size in ("smoke", "small", "gpu")}, "minutes": {"small": 1},
        "open": NoArms, "number": "FID 2 * 3",
    }  # fmt: skip
    return Claim(name=name, **{**told, **changes})


def a_result(claim: str, verdict: str = HOLDS, keys: str = "", **changes: Any) -> Result:
    """A result of three seeds on digits."""
    budget = changes.get("budget", "small")
    told: dict[str, Any] = {
        "paper": PAPER, "table": "Table 1", "says": "-", "rule": "Holds: always.", "reason": "Seen <so>.",
        "published": {}, "ours": {}, "budget": "small", "settings": {}, "seeds": (0, 1, 2), "seconds": 125.0,
        "data": {"source": "digits", "size": "8x8", "training": 1437, "classes": 10}, "our_number": "-13 % ± 4",
        "commands": (f"ditkit reproduce {claim} --data digits --seeds 3 --budget {budget} {keys}".strip(),),
        "environment": {"cpu": "A CPU", "device": "cpu", "threads": 1, "cpu_count": 2, "python": "3.11",
                        "packages": {"torch": "2.9"}, "git": {"commit": "abcdef0123", "dirty": False}},
        "commit": "abcdef0123", "date": "2026-01-02", "effect": (0.5, 0.7, 0.9),
    }  # fmt: skip
    return Result(claim=claim, verdict=verdict, **{**told, **changes})  # type: ignore[arg-type]
