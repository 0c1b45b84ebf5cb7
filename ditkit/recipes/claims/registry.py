"""All claims that can be re-tested. Each module lists its own in CLAIMS; a new module is one line here."""

from __future__ import annotations

from ditkit.recipes.claims import (
    best_stack,
    ddt_convergence,
    ddt_share,
    ddt_sharing,
    ddt_similarity,
    repa_choices,
    repa_gain,
    repa_representation,
    repa_samples,
    repa_size,
    repa_stop,
    repa_teacher,
    sd3_backbones,
    sd3_channels,
    sd3_dpo,
    sd3_formulations,
    sd3_qknorm,
    sd3_shift,
    sd3_straightness,
    sd3_text,
)
from ditkit.recipes.reproduce.claim import Claim

MODULES = (
    repa_gain,
    repa_size,
    repa_choices,
    repa_teacher,
    repa_stop,
    repa_representation,
    repa_samples,
    ddt_convergence,
    ddt_share,
    ddt_similarity,
    ddt_sharing,
    sd3_formulations,
    sd3_shift,
    sd3_channels,
    sd3_qknorm,
    sd3_backbones,
    sd3_text,
    sd3_dpo,
    sd3_straightness,
    best_stack,
)  # in the order of the papers
CLAIMS: dict[str, Claim] = {claim.name: claim for module in MODULES for claim in module.CLAIMS}
