"""The claims of the papers that `ditkit reproduce` re-tests; one file for those that ask alike."""

from ditkit.recipes.claims.ask import ask, ask_all, find_claim
from ditkit.recipes.claims.registry import CLAIMS

__all__ = ["CLAIMS", "ask", "ask_all", "find_claim"]
