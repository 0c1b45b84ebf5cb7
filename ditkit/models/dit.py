"""DiT (Peebles and Xie, arXiv 2212.09748). SiT (arXiv 2401.08740) and REPA (arXiv 2410.06940) train the same network.

Shapes: B batch, C channels, H, W latent size, P patch, h = H / P rows, w = W / P columns, N = h w tokens, D width.
Times are ours: t in [0, 1], 0 = data, 1 = noise; the network sees time_scale t + time_offset.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ditkit.config import Settings
from ditkit.models.labels import check_call, null_condition, token_grid
from ditkit.nn.attention import Attention, CrossAttention
from ditkit.nn.block import AdaLNZeroBlock
from ditkit.nn.embed import LabelEmbed, TimeEmbed
from ditkit.nn.mlp import MLP
from ditkit.nn.modulation import Modulation, modulate
from ditkit.nn.norm import QKNorm, layer_norm
from ditkit.nn.patch import PatchEmbed, unpatchify
from ditkit.nn.position import sincos_table, table_for
from ditkit.nn.precision import full_precision
from ditkit.protocols import Condition, Output

Conditioning = Literal["adaln_zero", "adaln", "cross_attention", "in_context"]
Variance = Literal["none", "learned", "dropped"]

# name: depth, width, heads of the DiT paper's Table 1; each comes with patch 2, 4 and 8
_WIDTHS = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
SIZES: dict[str, dict[str, int]] = {
    f"{name}/{patch}": {"depth": depth, "width": width, "heads": heads, "patch": patch}
    for name, (depth, width, heads) in _WIDTHS.items()
    for patch in (2, 4, 8)
}

# what the paper never gave and we chose, by conditioning block
OURS: dict[Conditioning, str] = {
    "adaln": "initialisation: the modulation starts at zero, as in adaLN-Zero",
    "in_context": "order of the appended tokens: time, then label; LayerNorms are affine; final Linear starts at zero",
    "cross_attention": "order of the context: time, then label; LayerNorms are affine; final Linear starts at zero",
}


class DiTSettings(Settings):
    """One DiT. `dit_settings("XL/2")` fills in the published sizes."""

    kind: Literal["dit"] = "dit"
    depth: int = Field(gt=0, description="number of blocks")
    width: int = Field(gt=0, description="token width D")
    heads: int = Field(gt=0, description="attention heads; must divide the width")
    patch: int = Field(2, gt=0, description="patch side P")
    channels: int = Field(4, gt=0, description="latent channels C")
    size: tuple[int, int] = Field((32, 32), description="native latent (H, W); others work, with their own table")
    num_classes: int = Field(1000, ge=0, description="0 = unconditional: no label table")
    null_label: bool = Field(True, description="one more label row, id num_classes, for guidance and label drop")
    mlp_ratio: float = Field(4.0, gt=0, description="MLP hidden width / D")
    variance: Variance = Field("none", description="2C output channels: returned (learned) or cut to C (dropped, SiT)")
    qk_norm: QKNorm = Field("none", description="norm of queries and keys per head: REPA's option is layer")
    conditioning: Conditioning = Field("adaln_zero", description="the DiT paper's four blocks")
    time_scale: float = Field(1.0, description="network time = time_scale t + time_offset (DiT 999, SiT -1, REPA 1)")
    time_offset: float = Field(0.0, description="see time_scale (DiT 0, SiT 1, REPA 0)")
    checkpointing: bool = Field(False, description="recompute each block in backward: less memory, about 1/3 slower")

    @model_validator(mode="after")
    def _fits(self) -> DiTSettings:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.width % 4:
            raise ValueError(f"width {self.width} is not a multiple of 4 (sin-cos position table)")
        if any(side <= 0 or side % self.patch for side in self.size):
            raise ValueError(f"size {self.size} is not a multiple of patch {self.patch}")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Token rows and columns of the native size."""
        return self.size[0] // self.patch, self.size[1] // self.patch

    @property
    def out_channels(self) -> int:
        """Channels that the final layer computes: C, or 2C with a variance half."""
        return self.channels * (1 if self.variance == "none" else 2)


def dit_settings(name: str, **overrides: Any) -> DiTSettings:
    """Settings of a published size, `dit_settings("XL/2", num_classes=10)`. Raises ValueError for an unknown name."""
    if name not in SIZES:
        raise ValueError(f"dit_settings: no size {name!r}; choose from {', '.join(SIZES)}")
    return DiTSettings(**{**SIZES[name], **overrides})


class AdaLNBlock(nn.Module):
    """adaLN without gates: four vectors regressed from c. The paper gives no initialisation; ours: zero."""

    def __init__(self, s: DiTSettings):
        super().__init__()
        self.norm1, self.norm2 = layer_norm(s.width), layer_norm(s.width)
        self.attention = Attention(s.width, s.heads, qk_norm=s.qk_norm)
        self.mlp = MLP(s.width, round(s.width * s.mlp_ratio))
        self.modulation = Modulation(s.width, 4)

    def forward(self, h: Tensor, c: Tensor, context: Tensor) -> Tensor:
        shift_a, scale_a, shift_m, scale_m = self.modulation(c)
        h = h + self.attention(modulate(self.norm1(h), shift_a, scale_a))
        return h + self.mlp(modulate(self.norm2(h), shift_m, scale_m))


class CrossAttentionBlock(nn.Module):
    """Self-attention, cross-attention to the context (time and label vectors), MLP; pre-LN, affine (ours)."""

    def __init__(self, s: DiTSettings):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (layer_norm(s.width, affine=True) for _ in range(3))
        self.attention = Attention(s.width, s.heads, qk_norm=s.qk_norm)
        self.cross = CrossAttention(s.width, s.heads, qk_norm=s.qk_norm)
        self.mlp = MLP(s.width, round(s.width * s.mlp_ratio))

    def forward(self, h: Tensor, c: Tensor, context: Tensor) -> Tensor:
        h = h + self.attention(self.norm1(h))
        h = h + self.cross(self.norm2(h), context)
        return h + self.mlp(self.norm3(h))


class InContextBlock(nn.Module):
    """The plain ViT block; time and label are extra tokens of h. Pre-LN, affine (ours)."""

    def __init__(self, s: DiTSettings):
        super().__init__()
        self.norm1, self.norm2 = layer_norm(s.width, affine=True), layer_norm(s.width, affine=True)
        self.attention = Attention(s.width, s.heads, qk_norm=s.qk_norm)
        self.mlp = MLP(s.width, round(s.width * s.mlp_ratio))

    def forward(self, h: Tensor, c: Tensor, context: Tensor) -> Tensor:
        h = h + self.attention(self.norm1(h))
        return h + self.mlp(self.norm2(h))


_BLOCKS: dict[str, type[nn.Module]] = {
    "adaln_zero": AdaLNZeroBlock,
    "adaln": AdaLNBlock,
    "cross_attention": CrossAttentionBlock,
    "in_context": InContextBlock,
}


class FinalLayer(nn.Module):
    """LayerNorm (modulated by c for the adaLN blocks only, as the published counts demand), Linear D -> P P C_out."""

    def __init__(self, s: DiTSettings):
        super().__init__()
        adaptive = s.conditioning in ("adaln_zero", "adaln")
        self.norm = layer_norm(s.width, affine=not adaptive)
        self.modulation = Modulation(s.width, 2) if adaptive else None
        self.linear = nn.Linear(s.width, s.patch * s.patch * s.out_channels)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        h = self.norm(h)
        if self.modulation is not None:
            shift, scale = self.modulation(c)
            h = modulate(h, shift, scale)
        return self.linear(h)


class DiT(nn.Module):
    """A `Denoiser`. Labels are dropped by the objective, never here; guidance lives outside."""

    def __init__(self, settings: DiTSettings, *, generator: torch.Generator | None = None):
        super().__init__()
        s = self.settings = settings
        self.patch = PatchEmbed(s.channels, s.width, s.patch)
        self.time = TimeEmbed(s.width)
        self.label = LabelEmbed(s.num_classes, s.width, null=s.null_label) if s.num_classes else None
        self.blocks = nn.ModuleList(_BLOCKS[s.conditioning](s) for _ in range(s.depth))
        self.final = FinalLayer(s)
        table = sincos_table(*s.grid, s.width).to(self.patch.project.weight.device)
        self.register_buffer("position", table)  # (N, D), frozen, in the state dict as published
        self.position: Tensor
        self.initialise(generator)

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """The published initialisation, drawn from `generator` (None: torch's global one). Output is 0 at the start."""
        for module in self.modules():
            if isinstance(module, nn.Linear):  # every Linear first; fused qkv is one matrix, so its bound is smaller
                nn.init.xavier_uniform_(module.weight, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        weight, bias = self.patch.project.parameters()
        nn.init.xavier_uniform_(weight.flatten(1), generator=generator)  # as a Linear of C P P numbers
        nn.init.zeros_(bias)
        embeddings = [*self.time.mlp.parameters(), *(self.label.parameters() if self.label else ())]
        for weight in (p for p in embeddings if p.ndim == 2):
            nn.init.normal_(weight, std=0.02, generator=generator)
        for module in self.modules():
            if isinstance(module, Modulation):  # adaLN-Zero: every block starts as the identity
                nn.init.zeros_(module.linear.weight)
        nn.init.zeros_(self.final.linear.weight)

    def forward(self, x: Tensor, t: Tensor, cond: Condition, *, capture: tuple[int, ...] = ()) -> Output:
        """x (B, C, H, W), t (B,) or scalar, cond.label (B,) -> Output(sample (B, C or 2C, H, W), hidden).

        hidden[i] (B, N, D) are the image tokens after block i (1-based) for each i in `capture`.
        Raises ValueError for sizes that the patch does not divide, a missing or unexpected label, no such block.
        """
        s = self.settings
        rows, columns = token_grid("DiT", s, x)
        check_call("DiT", s, cond, capture)
        h = self.patch(x) + table_for(self.position, s.grid, rows, columns)  # (B, N, D)
        n = h.shape[1]
        with full_precision(x.device):  # t, its sinusoid and the conditioning stay float32 under autocast
            context = self._context(t.expand(len(x)), cond)  # (B, 2, D): time, label
            c = context.sum(dim=1)  # (B, D)
        if s.conditioning == "in_context":
            h = torch.cat([h, context.to(h.dtype)], dim=1)  # (B, N + 2, D)
        hidden: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks, start=1):
            if s.checkpointing and torch.is_grad_enabled():
                h = checkpoint(block, h, c, context, use_reentrant=False)
            else:
                h = block(h, c, context)
            if i in capture:
                hidden[i] = h[:, :n]
        sample = unpatchify(self.final(h[:, :n], c), rows, columns, s.patch)
        return Output(sample[:, : s.channels] if s.variance == "dropped" else sample, hidden)

    def null(self, cond: Condition) -> Condition:
        """The unconditional counterpart: label num_classes everywhere; an unconditional model's condition is its own.

        Raises ValueError when the model has no null row or `cond` has no label.
        """
        return null_condition("DiT", self.settings, cond)

    def _context(self, t: Tensor, cond: Condition) -> Tensor:
        time = self.time(t.float() * self.settings.time_scale + self.settings.time_offset)
        return torch.stack([time] if self.label is None else [time, self.label(cond.label)], dim=1)
