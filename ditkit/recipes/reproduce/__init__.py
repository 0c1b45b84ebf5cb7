"""`ditkit reproduce`: claims of the papers, re-tested at a size that a small machine can run. One file a claim."""

from ditkit.recipes.reproduce.ask import ask, find_claim
from ditkit.recipes.reproduce.claim import Arm, Claim, Finding, Question, Study
from ditkit.recipes.reproduce.ledger import CLAIMS
from ditkit.recipes.reproduce.result import Result, read_result
from ditkit.recipes.reproduce.study import Plan, carry_out, make_plan

__all__ = [
    "CLAIMS",
    "Arm",
    "Claim",
    "Finding",
    "Plan",
    "Question",
    "Result",
    "Study",
    "ask",
    "carry_out",
    "find_claim",
    "make_plan",
    "read_result",
]
