"""What re-tests a claim: questions, plans, shared runs, judges, rules and results. The claims are in recipes/claims."""

from ditkit.recipes.reproduce.claim import Arm, Claim, Finding, Question, Study
from ditkit.recipes.reproduce.result import Result, read_result
from ditkit.recipes.reproduce.study import Plan, carry_out, make_plan

__all__ = [
    "Arm",
    "Claim",
    "Finding",
    "Plan",
    "Question",
    "Result",
    "Study",
    "carry_out",
    "make_plan",
    "read_result",
]
