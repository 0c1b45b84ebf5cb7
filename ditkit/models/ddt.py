"""DDT, the decoupled diffusion transformer (Wang et al., arXiv 2504.05741), and its improved DiT baseline.

A condition encoder turns (x, t, label) into a self-condition s, one vector a token; a velocity decoder turns (x, s)
into the velocity. Without encoder blocks it is the improved DiT: the same blocks, modulated by time and label.

Shapes: B batch, C channels, H, W latent size, P patch, N = (H / P) (W / P) tokens, D width.
Times are ours: t in [0, 1], 0 = data, 1 = noise; the network sees time_scale t + time_offset (published: 1 - t).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ditkit.config import Settings
from ditkit.models.labels import check_call, null_condition, token_grid
from ditkit.nn.attention import Attention
from ditkit.nn.embed import LabelEmbed, TimeEmbed
from ditkit.nn.mlp import SwiGLU
from ditkit.nn.modulation import TokenModulation, modulate
from ditkit.nn.norm import RMSNorm, layer_norm
from ditkit.nn.patch import PatchEmbed, unpatchify
from ditkit.nn.position import Rotation, rope_table
from ditkit.nn.precision import full_precision
from ditkit.protocols import Condition, Output, SelfCondition

MAX_PERIOD = 10.0  # of the time sinusoid: DDT's times stay in [0, 1]

# name: encoder blocks, decoder blocks, width, heads (DDT appendix A)
_SPLITS = {"B": (8, 4, 768, 12), "L": (20, 4, 1024, 16), "XL": (22, 6, 1152, 16)}


class DDTSettings(Settings):
    """One DDT. `ddt_settings("XL/2")` fills in the published sizes; no encoder blocks: the improved DiT."""

    kind: Literal["ddt"] = "ddt"
    encoder_blocks: int = Field(ge=0, description="blocks of the condition encoder; 0 = the improved DiT baseline")
    decoder_blocks: int = Field(gt=0, description="blocks of the velocity decoder")
    width: int = Field(gt=0, description="token width D")
    heads: int = Field(gt=0, description="attention heads; the head width must be a multiple of 4 (2-D RoPE)")
    patch: int = Field(2, gt=0, description="patch side P")
    channels: int = Field(4, gt=0, description="latent channels C")
    size: tuple[int, int] = Field((32, 32), description="native latent (H, W); others work, positions interpolate")
    num_classes: int = Field(1000, ge=0, description="0 = unconditional: no label table")
    null_label: bool = Field(True, description="one more label row, id num_classes, for guidance and label drop")
    mlp_ratio: float = Field(4.0, gt=0, description="SwiGLU hidden width = int(2/3 mlp_ratio D)")
    variance: Literal["none"] = Field("none", description="DDT predicts no variance")
    adaln_zero: bool = Field(False, description="block modulations start at 0 (paper; the released code: no)")
    time_scale: float = Field(-1.0, description="network time = time_scale t + time_offset")
    time_offset: float = Field(1.0, description="see time_scale")
    checkpointing: bool = Field(False, description="recompute each block in backward: less memory, about 1/3 slower")

    @model_validator(mode="after")
    def _fits(self) -> DDTSettings:
        if self.width % self.heads or (self.width // self.heads) % 4:
            raise ValueError(f"width {self.width} is not heads {self.heads} times a multiple of 4 (2-D RoPE)")
        if any(side <= 0 or side % self.patch for side in self.size):
            raise ValueError(f"size {self.size} is not a multiple of patch {self.patch}")
        return self

    @property
    def depth(self) -> int:
        """All blocks; captures count through: encoder first, then decoder."""
        return self.encoder_blocks + self.decoder_blocks

    @property
    def hidden(self) -> int:
        """Width inside SwiGLU: 2048, 2730 and 3072 for B, L and XL, not rounded to a multiple."""
        return int(2 * self.mlp_ratio * self.width / 3)

    @property
    def grid(self) -> tuple[int, int]:
        """Token rows and columns of the native size."""
        return self.size[0] // self.patch, self.size[1] // self.patch


DDT_SIZES: dict[str, dict[str, int]] = {
    f"{name}/2": {"encoder_blocks": e, "decoder_blocks": d, "width": width, "heads": heads, "patch": 2}
    for name, (e, d, width, heads) in _SPLITS.items()
}


def ddt_settings(name: str, **overrides: Any) -> DDTSettings:
    """Settings of a published size: `ddt_settings("XL/2", num_classes=10)`. ValueError for an unknown name.

    encoder_blocks alone keeps the size's depth: `ddt_settings("B/2", encoder_blocks=6)` is 6En6De, and 0 the improved
    DiT of this size.
    """
    if name not in DDT_SIZES:
        raise ValueError(f"ddt_settings: no size {name!r}; choose from {', '.join(DDT_SIZES)}")
    size = DDT_SIZES[name]
    if "encoder_blocks" in overrides and "decoder_blocks" not in overrides:
        depth = size["encoder_blocks"] + size["decoder_blocks"]
        overrides["decoder_blocks"] = depth - overrides["encoder_blocks"]
    return DDTSettings(**{**size, **overrides})


class Block(nn.Module):
    """RMSNorm, modulation, attention with 2-D RoPE, gate; the same with SwiGLU. Six vectors a token (or a sample)."""

    def __init__(self, s: DDTSettings):
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(s.width), RMSNorm(s.width)
        self.attention = Attention(s.width, s.heads, qk_norm="rms", qkv_bias=False)
        self.mlp = SwiGLU(s.width, s.hidden)
        self.modulation = TokenModulation(s.width, 6)

    def forward(
        self, h: Tensor, c: Tensor, rotation: Rotation, modulation: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """h (B, N, D), c (B, 1 or N, D) -> (h, the modulation of c (B, 1 or N, 6 D)), to be given back if c returns."""
        if modulation is None:
            modulation = self.modulation(c)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.chunk(6, dim=-1)
        h = h + gate_a * self.attention(modulate(self.norm1(h), shift_a, scale_a), rotation)
        return h + gate_m * self.mlp(modulate(self.norm2(h), shift_m, scale_m)), modulation


class FinalLayer(nn.Module):
    """LayerNorm, modulated by s, Linear D -> P P C."""

    def __init__(self, s: DDTSettings):
        super().__init__()
        self.norm = layer_norm(s.width)
        self.modulation = TokenModulation(s.width, 2)
        self.linear = nn.Linear(s.width, s.patch * s.patch * s.channels)

    def forward(self, h: Tensor, c: Tensor, modulation: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """h (B, N, D) -> (tokens (B, N, P P C), the modulation)."""
        if modulation is None:
            modulation = self.modulation(c)
        shift, scale = modulation.chunk(2, dim=-1)
        return self.linear(modulate(self.norm(h), shift, scale)), modulation


class DDT(nn.Module):
    """A `Decoupled` denoiser. Labels are dropped by the objective, never here; guidance and sharing live outside."""

    def __init__(self, settings: DDTSettings, *, generator: torch.Generator | None = None):
        super().__init__()
        s = self.settings = settings
        self.patch = PatchEmbed(s.channels, s.width, s.patch)
        self.encoder_patch = PatchEmbed(s.channels, s.width, s.patch) if s.encoder_blocks else None
        self.time = TimeEmbed(s.width, max_period=MAX_PERIOD)
        self.label = LabelEmbed(s.num_classes, s.width, null=s.null_label) if s.num_classes else None
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.depth))  # encoder, then decoder, as published
        self.final = FinalLayer(s)
        self.initialise(generator)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """As released, drawn from `generator` (None: torch's global one). Output is 0 at the start.

        PyTorch's defaults but for patches, embeddings and a final layer of zeros; `adaln_zero` adds the paper's zeros.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
                if module.bias is not None:
                    bound = 1 / math.sqrt(module.in_features)
                    nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        for patch in (self.patch, self.encoder_patch):
            if patch is not None:
                weight, bias = patch.project.parameters()
                nn.init.xavier_uniform_(weight.flatten(1), generator=generator)  # as a Linear of C P P numbers
                nn.init.zeros_(bias)
        embeddings = [*self.time.mlp.parameters(), *(self.label.parameters() if self.label else ())]
        for weight in (p for p in embeddings if p.ndim == 2):
            nn.init.normal_(weight, std=0.02, generator=generator)
        zeros: list[nn.Linear] = [self.final.linear, self.final.modulation.linear]
        if self.settings.adaln_zero:
            zeros += [m.linear for m in self.modules() if isinstance(m, TokenModulation)]
        for parameter in (p for layer in zeros for p in layer.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, t: Tensor, cond: Condition, *, capture: tuple[int, ...] = ()) -> Output:
        """x (B, C, H, W), t (B,) or scalar, cond.label (B,) -> Output(sample (B, C, H, W), hidden).

        hidden[i] (B, N, D) are the tokens after block i (1-based, encoder first) for each i in `capture`.
        Raises ValueError for sizes that the patch does not divide, a missing or unexpected label, no such block.
        """
        s, early = self._encode(x, t, cond, capture)
        sample, late = self._decode(x, s, capture)
        return Output(sample, {**early, **late})

    def encode(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The self-condition s = SiLU(t_emb + encoder(x)) (B, N, D); SiLU(t_emb + label) (B, 1, D) without encoder.

        Raises ValueError for a missing or unexpected label, and for a size that the encoder's patches do not divide.
        """
        return self._encode(x, t, cond, ())[0]

    def decode(self, x: Tensor, s: Tensor | SelfCondition) -> Tensor:
        """The sample (B, C, H, W) of x under s. A SelfCondition keeps its modulations: same numbers, less work.

        They are those of these weights: a SelfCondition serves one model. Raises ValueError for an s that is not x's,
        or modulations of another decoder.
        """
        return self._decode(x, s, ())[0]

    def null(self, cond: Condition) -> Condition:
        """The unconditional counterpart: label num_classes everywhere; an unconditional model's condition is its own.

        Raises ValueError when the model has no null row or `cond` has no label.
        """
        return null_condition("DDT", self.settings, cond)

    def _encode(
        self, x: Tensor, t: Tensor, cond: Condition, capture: tuple[int, ...]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        check_call("DDT", self.settings, cond, capture)
        hidden: dict[int, Tensor] = {}
        with full_precision(x.device):  # t, its sinusoid and the conditioning stay float32 under autocast
            time = self.time(t.expand(len(x)).float() * self.settings.time_scale + self.settings.time_offset)
            time = time.unsqueeze(1)  # (B, 1, D)
            c = time if self.label is None else time + self.label(cond.label).unsqueeze(1)
            c = F.silu(c)
        if self.encoder_patch is None:
            return c, hidden
        rotation = self._rotation(x)
        h = self.encoder_patch(x).to(c.dtype)  # (B, N, D): the residual stream stays float32 under autocast as well
        for i in range(1, self.settings.encoder_blocks + 1):
            h = self._run(i, h, c, rotation)[0]
            if i in capture:
                hidden[i] = h
        return F.silu(time + h), hidden

    def _decode(
        self, x: Tensor, s: Tensor | SelfCondition, capture: tuple[int, ...]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        kept = s if isinstance(s, SelfCondition) else SelfCondition(s)
        self._check_self_condition(x, kept)
        rotation, known = self._rotation(x), iter(kept.modulations)
        made: list[Tensor] = []
        hidden: dict[int, Tensor] = {}
        h = self.patch(x).to(kept.s.dtype)
        for i in range(self.settings.encoder_blocks + 1, self.settings.depth + 1):
            h, modulation = self._run(i, h, kept.s, rotation, next(known, None))
            if kept is s:
                made.append(modulation)
            if i in capture:
                hidden[i] = h
        tokens, modulation = self.final(h, kept.s, next(known, None))
        if kept is s:
            kept.modulations = (*made, modulation)
        return unpatchify(tokens, *token_grid("DDT", self.settings, x), self.settings.patch), hidden

    def _run(
        self, i: int, h: Tensor, c: Tensor, rotation: Rotation, modulation: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        block = self.blocks[i - 1]
        if self.settings.checkpointing and torch.is_grad_enabled():
            return checkpoint(block, h, c, rotation, modulation, use_reentrant=False)
        return block(h, c, rotation, modulation)

    def _check_self_condition(self, x: Tensor, kept: SelfCondition) -> None:
        s = self.settings
        rows, columns = token_grid("DDT", s, x)
        want = (len(x), rows * columns if s.encoder_blocks else 1, s.width)
        if kept.s.shape != want:
            raise ValueError(f"DDT.decode: s is {tuple(kept.s.shape)}, and this x {tuple(x.shape)} needs {want}")
        if len(kept.modulations) not in (0, s.decoder_blocks + 1):
            made, own = len(kept.modulations), s.decoder_blocks + 1
            raise ValueError(f"DDT.decode: the SelfCondition keeps {made} modulations, this decoder makes {own}")

    def _rotation(self, x: Tensor) -> Rotation:
        """Made for the actual grid at each pass: a few small operations beside the blocks."""
        s = self.settings
        return rope_table(*token_grid("DDT", s, x), s.width // s.heads, device=x.device)
