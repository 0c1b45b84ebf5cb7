"""The runs that the claims of the DDT paper compare: its blocks split into encoder and decoder, and not split."""

from __future__ import annotations

from ditkit.analysis.cost import cost
from ditkit.diffusion import LogitNormal
from ditkit.models import DDTSettings
from ditkit.recipes.recipe import Recipe
from ditkit.recipes.reproduce.testbed import Testbed

IMPROVED, IMPROVED_REPA, DDT, DDT_ALONE = "improved SiT", "improved SiT + REPA", "DDT", "DDT without REPA"
PARAMETERS = 0.05  # two models of one claim differ by no larger share


def improved(bed: Testbed, size: str = "medium", encoder: int = 0, depth: int | None = None) -> Recipe:
    """SiT with DDT's blocks (RMSNorm, SwiGLU, RoPE) and logit-normal times, as the paper's "improved" baselines.

    encoder: blocks of a condition encoder, of `depth` blocks in all; 0: not split. Everything else is SiT's.
    """
    sit = bed.sit(size, {} if depth is None else {"model.depth": depth})
    m = sit.model
    blocks = DDTSettings(
        encoder_blocks=encoder, decoder_blocks=m.depth - encoder, width=m.width, heads=m.heads, patch=m.patch,
        channels=m.channels, size=m.size, num_classes=m.num_classes,
    )  # fmt: skip
    return sit.with_({"model": blocks, "objective.density": LogitNormal()})


def with_repa(bed: Testbed, recipe: Recipe) -> Recipe:
    """The recipe with REPA, where REPA aligns SiT or, in a shorter encoder, at its last block."""
    aligned = bed.aligned(recipe)
    encoder = getattr(recipe.model, "encoder_blocks", 0)
    assert aligned.align is not None
    depth = aligned.align.depth
    return aligned.with_({"align.depth": min(depth, encoder)}) if encoder else aligned


def ddt(bed: Testbed, size: str = "medium", decoder: int | None = None, depth: int | None = None) -> Recipe:
    """DDT with REPA in its encoder. decoder: its blocks; none: one in six, at least one, as the paper's L has."""
    return with_repa(bed, ddt_alone(bed, size, decoder, depth))


def ddt_alone(bed: Testbed, size: str = "medium", decoder: int | None = None, depth: int | None = None) -> Recipe:
    """DDT without REPA."""
    blocks = depth or bed.sit(size).model.depth
    return improved(bed, size, blocks - (decoder or fewest(blocks)), depth)


def fewest(depth: int) -> int:
    """Decoder blocks of the split with the largest encoder: a sixth of all, at least one (4 of 24, 2 of 12)."""
    return max(1, round(depth / 6))


def check_equal(recipes: list[Recipe]) -> list[int]:
    """Parameters of each network. ValueError where the largest is more than `PARAMETERS` larger than the smallest."""
    counts = [cost(recipe.model).trainable for recipe in recipes]
    if max(counts) > (1 + PARAMETERS) * min(counts):
        raise ValueError(
            f"networks of {min(counts):,} to {max(counts):,} parameters are not equal: choose another width"
        )
    return counts
