"""How alike projected tokens and teacher tokens are, as a loss per sample. REPA trains with either of these.

Both take projected (B, N, D) and target (B, N, D), work in float32 whatever comes in (a half-precision norm
overflows at 65504: REPA issue 46), and return (B,), lower is better.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ditkit.config import Settings


def unit(tokens: Tensor) -> Tensor:
    """(..., D) -> float32 vectors of length 1 (a zero vector stays zero)."""
    return F.normalize(tokens.float(), dim=-1)


class Cosine(Settings):
    """Minus the cosine, averaged over tokens: in [-1, 1], -1 when aligned (REPA eq. 8 and its released code)."""

    kind: Literal["cosine"] = "cosine"

    def __call__(self, projected: Tensor, target: Tensor) -> Tensor:
        """(B, N, D), (B, N, D) -> (B,)."""
        return -(unit(projected) * unit(target)).sum(-1).mean(-1)


class NTXent(Settings):
    """Each token must find its own teacher token among those of its image, and the other way round.

    The paper names NT-Xent (appendix of REPA) but publishes neither its temperature nor its negatives: both are ours.
    Negatives stay inside one image, so the loss does not depend on how a batch is cut over devices or accumulation.
    """

    kind: Literal["nt_xent"] = "nt_xent"
    temperature: float = Field(0.1, gt=0, description="Ours: the paper gives none.")

    def __call__(self, projected: Tensor, target: Tensor) -> Tensor:
        """(B, N, D), (B, N, D) -> (B,), at least 0."""
        logits = unit(projected) @ unit(target).transpose(1, 2) / self.temperature
        forth = logits.log_softmax(2).diagonal(dim1=1, dim2=2)
        back = logits.log_softmax(1).diagonal(dim1=1, dim2=2)
        return -torch.stack((forth, back)).mean((0, 2))


AnySimilarity = Annotated[Cosine | NTXent, Field(discriminator="kind")]
