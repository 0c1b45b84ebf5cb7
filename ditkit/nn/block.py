"""The adaLN-Zero transformer block, the layer behind it, and a row of blocks.

Shapes: B batch, N tokens, L text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ditkit.nn.attention import Attention, CrossAttention
from ditkit.nn.mlp import MLP
from ditkit.nn.modulation import Modulation, modulate
from ditkit.nn.norm import QKNorm, layer_norm


class BlockShape(Protocol):
    """The fields of a network's settings that a block reads."""

    @property
    def width(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def mlp_ratio(self) -> float: ...
    @property
    def qk_norm(self) -> QKNorm: ...


class AdaLNZeroBlock(nn.Module):
    """h += gate Attn(LN(h) (1 + scale) + shift), the same with the MLP; the six vectors are regressed from c (DiT).

    cross: between the two, h += CrossAttn(h, context) without norm, modulation or gate (PixArt-alpha, arXiv
    2310.00426, section 2.3). Without it the context is ignored, and the mask is one of h's own tokens.
    """

    def __init__(self, s: BlockShape, *, cross: bool = False):
        super().__init__()
        self.norm1, self.norm2 = layer_norm(s.width), layer_norm(s.width)
        self.attention = Attention(s.width, s.heads, qk_norm=s.qk_norm)
        self.mlp = MLP(s.width, round(s.width * s.mlp_ratio))
        self.modulation = Modulation(s.width, 6)
        self.cross = CrossAttention(s.width, s.heads, qk_norm=s.qk_norm) if cross else None

    def forward(self, h: Tensor, c: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """h (B, N, D), c (B, D), context (B, L, D), mask (B, N) bool, or (B, L) with cross -> (B, N, D)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c)
        own = mask if self.cross is None else None
        h = h + gate_a * self.attention(modulate(self.norm1(h), shift_a, scale_a), mask=own)
        if self.cross is not None:
            assert context is not None
            h = h + self.cross(h, context, mask)
        return h + gate_m * self.mlp(modulate(self.norm2(h), shift_m, scale_m))


class FinalLayer(nn.Module):
    """LayerNorm modulated by c (shift, scale), Linear D -> `numbers` of each token."""

    def __init__(self, width: int, numbers: int):
        super().__init__()
        self.norm = layer_norm(width)
        self.modulation = Modulation(width, 2)
        self.linear = nn.Linear(width, numbers)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.modulation(c)
        return self.linear(modulate(self.norm(h), shift, scale))


class Blocks(nn.ModuleList):
    """Blocks (h, *rest) -> h one after the other; they count from 1."""

    def run(
        self, h: Tensor, *rest: Tensor | None, capture: tuple[int, ...], skip: tuple[int, ...], checkpointing: bool
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """(h after the last block, h after each block in `capture`); blocks in `skip` are passed by.

        checkpointing: each block is computed again in backward.
        """
        hidden: dict[int, Tensor] = {}
        for i, block in enumerate(self, start=1):
            if i not in skip:
                again = checkpointing and torch.is_grad_enabled()
                h = checkpoint(block, h, *rest, use_reentrant=False) if again else block(h, *rest)
            if i in capture:
                hidden[i] = h
        return h, hidden


@torch.no_grad()
def zero_start(
    model: nn.Module,
    embeddings: Iterable[nn.Module | None],
    last: Iterable[nn.Linear | nn.Conv2d],
    generator: torch.Generator | None = None,
) -> None:
    """DiT's initialisation: blocks begin as the identity, and layers in `last` are zero.

    Weights are Xavier-uniform (a convolution's as of a Linear), those of `embeddings` normal with deviation 0.02,
    modulations and what blocks add of their context zero, biases zero. Scales of norms are left alone.
    """
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(layer.weight.flatten(1), generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for weight in (p for part in embeddings if part is not None for p in part.parameters() if p.ndim == 2):
        nn.init.normal_(weight, std=0.02, generator=generator)
    for module in model.modules():
        if isinstance(module, Modulation):
            nn.init.zeros_(module.linear.weight)
        if isinstance(module, AdaLNZeroBlock) and module.cross is not None:
            nn.init.zeros_(module.cross.proj.weight)
    for layer in last:
        nn.init.zeros_(layer.weight)
