"""All claims that can be re-tested. A new one is one file with a CLAIM, and one line here."""

from __future__ import annotations

from ditkit.recipes.reproduce import sd3_backbones, sd3_dpo, sd3_formulations
from ditkit.recipes.reproduce.claim import Claim

CLAIMS: dict[str, Claim] = {
    module.CLAIM.name: module.CLAIM for module in (sd3_formulations, sd3_backbones, sd3_dpo)
}  # in the order of the papers
