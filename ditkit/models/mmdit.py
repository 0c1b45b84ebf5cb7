"""MMDiT (SD3: Esser et al., arXiv 2403.03206, section 4) and MMDiT-X (SD3.5 medium): a set of weights a modality.

Text and image tokens are modulated, projected and passed through MLPs by their own weights, and attend to each other
in one joint attention over [text, image]. REPA's text-to-image MMDiT is `repa_mmdit_settings`.
Shapes: B batch, C channels, H, W latent size, P patch, N = H W / P^2 image tokens, L text tokens, D width.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from ditkit.config import Settings
from ditkit.models.labels import token_grid
from ditkit.models.texts import attended, check_shape, check_text, global_vector, null_text
from ditkit.nn.block import FinalLayer, zero_start
from ditkit.nn.embed import PooledEmbed, TimeEmbed
from ditkit.nn.mlp import MLP
from ditkit.nn.modulation import Modulation, modulate
from ditkit.nn.norm import QKNorm, head_norm, layer_norm
from ditkit.nn.patch import PatchEmbed, unpatchify
from ditkit.nn.position import centred, sincos_table
from ditkit.protocols import Condition, Output


class MMDiTSettings(Settings):
    """One MMDiT. `mmdit_settings(24)` is SD3 medium's; see also SD3_SIZES."""

    num_classes: ClassVar[int] = 0
    null_label: ClassVar[bool] = False
    variance: ClassVar[Literal["none"]] = "none"

    kind: Literal["mmdit"] = "mmdit"
    depth: int = Field(gt=0, description="number of joint blocks d")
    width: int = Field(gt=0, description="token width D; SD3: 64 d")
    heads: int = Field(gt=0, description="attention heads; SD3: d, 64 channels each")
    patch: int = Field(2, gt=0, description="patch side P")
    channels: int = Field(16, gt=0, description="latent channels C")
    size: tuple[int, int] = Field((128, 128), description="native latent (H, W): its tokens stand at 0, step, ...")
    text_width: int = Field(4096, gt=0, description="width of the text tokens")
    pooled_width: int = Field(2048, ge=0, description="width of the pooled text vector; 0: the model takes none")
    text_length: int = Field(154, gt=0, description="text tokens that costs are counted for; any number is taken")
    sets: Literal[2, 3] = Field(2, description="sets of weights: text and image, or two texts (CLIP, T5) and image")
    text_split: int = Field(77, ge=1, description="3 sets: tokens of the first text")
    qk_norm: QKNorm = Field("none", description="norm of queries and keys per head and set: SD3.5 has rms")
    dual: tuple[int, ...] = Field((), description="blocks (1-based) with a second attention of the image (MMDiT-X)")
    mlp_ratio: float = Field(4.0, gt=0, description="MLP hidden width / D")
    table: int = Field(0, ge=0, description="side M of the stored position table; 0: made for each size as needed")
    step: float = Field(1.0, gt=0, description="distance of neighbouring tokens; SD3 at 1024 pixels: 16 / 64")
    init: Literal["zero", "torch"] = Field("zero", description="zero: as DiT, identity blocks; torch: as released code")
    time_scale: float = Field(1000.0, description="network time = time_scale t + time_offset")
    time_offset: float = Field(0.0, description="see time_scale")
    checkpointing: bool = Field(False, description="recompute each block in backward: less memory, about 1/3 slower")

    @model_validator(mode="after")
    def _fits(self) -> MMDiTSettings:
        check_shape(self, self.patch)
        if wrong := [i for i in self.dual if not 1 <= i <= self.depth]:
            raise ValueError(f"dual {wrong} names no block; blocks count from 1 to {self.depth}")
        if self.table and max(self.grid) > self.table:
            raise ValueError(f"size {self.size} needs {max(self.grid)} positions a side; the table has {self.table}")
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Token rows and columns of the native size."""
        return self.size[0] // self.patch, self.size[1] // self.patch


def mmdit_settings(depth: int, **overrides: Any) -> MMDiTSettings:
    """The paper's ladder (section 5.4): width 64 depth, depth heads; SD3 medium is 24, SD3.5 large 38 with qk_norm."""
    return MMDiTSettings(**{"depth": depth, "width": 64 * depth, "heads": depth, **overrides})


# published models at 1024 pixels: 64 x 64 native tokens on the coordinates 0 .. 15.75 of a larger stored table
SD3_SIZES: dict[str, MMDiTSettings] = {
    "sd3-medium": mmdit_settings(24, table=192, step=0.25),
    "sd3.5-medium": mmdit_settings(24, table=384, step=0.25, qk_norm="rms", dual=tuple(range(1, 14))),
    "sd3.5-large": mmdit_settings(38, table=192, step=0.25, qk_norm="rms"),
}


def repa_mmdit_settings(depth: int = 24, **overrides: Any) -> MMDiTSettings:
    """REPA's text-to-image MMDiT (arXiv 2410.06940, table 12): width 32 depth, CLIP-L's tokens, no pooled vector."""
    published = {"width": 32 * depth, "heads": depth, "channels": 4, "size": (32, 32), "table": 16, "time_scale": 1.0}
    text = {"text_width": 768, "pooled_width": 0, "text_length": 77, "init": "torch"}
    return MMDiTSettings(**{"depth": depth, **published, **text, **overrides})


class SelfAttention(nn.Module):
    """Queries, keys and values of one set of tokens, and the projection of what the attention answers."""

    def __init__(self, s: MMDiTSettings, *, answers: bool = True):
        super().__init__()
        self.heads = s.heads
        self.qkv = nn.Linear(s.width, 3 * s.width)
        self.q_norm = head_norm(s.qk_norm, s.width // s.heads)
        self.k_norm = head_norm(s.qk_norm, s.width // s.heads)
        self.proj = nn.Linear(s.width, s.width) if answers else None

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u (B, N, D) -> q, k, v, each (B, heads, N, D / heads)."""
        q, k, v = self.qkv(u).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype), v

    def answer(self, attention: Tensor) -> Tensor:
        """(B, heads, N, D / heads) -> (B, N, D)."""
        assert self.proj is not None
        return self.proj(attention.transpose(1, 2).flatten(2))


class Stream(nn.Module):
    """One modality's half of a joint block. `last`: text of the last block, which is read and then not needed."""

    def __init__(self, s: MMDiTSettings, *, last: bool = False, dual: bool = False):
        super().__init__()
        self.norm1 = layer_norm(s.width)
        self.attention = SelfAttention(s, answers=not last)
        self.attention2 = SelfAttention(s) if dual else None
        self.modulation = Modulation(s.width, 2 if last else 9 if dual else 6)
        self.norm2 = None if last else layer_norm(s.width)
        self.mlp = None if last else MLP(s.width, round(s.width * s.mlp_ratio))

    def before(self, h: Tensor, c: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """(q, k, v) for the joint attention, and the modulation vectors."""
        parts = self.modulation(c)
        return self.attention(modulate(self.norm1(h), parts[0], parts[1])), parts

    def after(self, h: Tensor, attention: Tensor, parts: tuple[Tensor, ...]) -> Tensor | None:
        """The tokens after this block; None where the block has read them for the last time."""
        if self.mlp is None or self.norm2 is None:
            return None
        gate, shift_m, scale_m, gate_m = parts[2:6]
        new = h + gate * self.attention.answer(attention)
        if self.attention2 is not None:  # MMDiT-X: reads the tokens as they were before the joint attention
            shift2, scale2, gate2 = parts[6:]
            own = scaled_dot_product_attention(*self.attention2(modulate(self.norm1(h), shift2, scale2)))
            new = new + gate2 * self.attention2.answer(own)
        return new + gate_m * self.mlp(modulate(self.norm2(new), shift_m, scale_m))


class JointBlock(nn.Module):
    """Every set of tokens with its own weights; one attention over [texts, image] (figure 2b)."""

    def __init__(self, s: MMDiTSettings, number: int):
        super().__init__()
        self.text = nn.ModuleList(Stream(s, last=number == s.depth) for _ in range(s.sets - 1))
        self.image = Stream(s, dual=number in s.dual)

    def forward(
        self, h: Tensor, texts: tuple[Tensor, ...], c: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """h (B, N, D), texts (B, L_i, D), c (B, D), mask (B, L + N) -> the same; no texts after the last."""
        streams, tokens = [*self.text, self.image], [*texts, h]
        seen = [stream.before(u, c) for stream, u in zip(streams, tokens, strict=True)]
        q, k, v = (torch.cat(parts, dim=2) for parts in zip(*(qkv for qkv, _ in seen), strict=True))
        keys = None if mask is None else mask[:, None, None]
        joint = scaled_dot_product_attention(q, k, v, attn_mask=keys).split([u.shape[1] for u in tokens], dim=2)
        new = [
            stream.after(u, own, parts) for stream, u, own, (_, parts) in zip(streams, tokens, joint, seen, strict=True)
        ]
        return new[-1], tuple(u for u in new[:-1] if u is not None)


class MMDiT(nn.Module):
    """A `Denoiser` that reads text. Texts are dropped by the objective, never here; guidance lives outside."""

    def __init__(self, settings: MMDiTSettings, *, generator: torch.Generator | None = None):
        super().__init__()
        s = self.settings = settings
        self.patch = PatchEmbed(s.channels, s.width, s.patch)
        self.time = TimeEmbed(s.width)
        self.pooled = PooledEmbed(s.pooled_width, s.width) if s.pooled_width else None
        self.context = nn.ModuleList(nn.Linear(s.text_width, s.width) for _ in range(s.sets - 1))
        self.blocks = nn.ModuleList(JointBlock(s, number) for number in range(1, s.depth + 1))
        self.final = FinalLayer(s.width, s.patch * s.patch * s.channels)
        rows, columns = (s.table, s.table) if s.table else s.grid
        self.register_buffer("position", self._positions(rows, columns, self.patch.project.weight.device))
        self.position: Tensor  # (rows, columns, D), frozen, in the state dict as published
        self.initialise(generator)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Drawn from `generator` (None: torch's global one). Output is 0 at the start with init "zero".

        No published code says how SD3 was initialised. "zero" is DiT's scheme: every block starts as the identity;
        "torch" is what the released classes do when built: PyTorch's defaults. Norms of queries and keys begin at 1.
        """
        if self.settings.init == "zero":
            zero_start(self, (self.time, self.pooled), (self.final.linear,), generator)
            return
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                flat = module.weight.flatten(1)  # a patch convolution is a Linear of C P P numbers
                nn.init.kaiming_uniform_(flat, a=math.sqrt(5), generator=generator)
                bound = 1 / math.sqrt(flat.shape[1])
                if module.bias is not None:
                    nn.init.uniform_(module.bias, -bound, bound, generator=generator)

    def forward(
        self, x: Tensor, t: Tensor, cond: Condition, *, capture: tuple[int, ...] = (), skip: tuple[int, ...] = ()
    ) -> Output:
        """x (B, C, H, W), t (B,) or scalar, cond.text (B, L, text_width), cond.pooled -> Output(sample, hidden).

        hidden[i] (B, N, D) are the image tokens after block i (1-based) for each i in `capture`; blocks in `skip` are
        passed by, for skip-layer guidance. Raises ValueError for sizes that the patch does not divide or the position
        table cannot hold, missing or misshapen text, no such block.
        """
        s = self.settings
        rows, columns = token_grid("MMDiT", s, x)
        check_text("MMDiT", s, cond, (*capture, *skip), len(x))
        assert cond.text is not None
        h = self.patch(x) + self._crop(rows, columns)  # (B, N, D)
        c = global_vector(s, self.time, self.pooled, t.expand(len(x)), cond)  # (B, D)
        words = (cond.text,) if s.sets == 2 else (cond.text[:, : s.text_split], cond.text[:, s.text_split :])
        dtype = self.patch.project.weight.dtype
        texts = tuple(embed(word.to(dtype)) for embed, word in zip(self.context, words, strict=True))  # (B, L, D)
        mask = attended(cond, h.shape[1])
        hidden: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks, start=1):
            if i in skip:
                pass
            elif s.checkpointing and torch.is_grad_enabled():
                h, texts = checkpoint(block, h, texts, c, mask, use_reentrant=False)
            else:
                h, texts = block(h, texts, c, mask)
            if i in capture:
                hidden[i] = h
        return Output(unpatchify(self.final(h, c), rows, columns, s.patch), hidden)

    def null(self, cond: Condition) -> Condition:
        """Zeros in place of the encoders' outputs, as in training; see `null_text` for inference."""
        return null_text(cond)

    def _positions(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """The table (rows, columns, D) of a grid that is centred on the native one (section 5.3.2)."""
        s = self.settings
        first = (centred(rows, s.grid[0], s.step), centred(columns, s.grid[1], s.step))
        table = sincos_table(rows, columns, s.width, step=s.step, first=first, device=device)
        return table.view(rows, columns, s.width)

    def _crop(self, rows: int, columns: int) -> Tensor:
        """(N, D): the middle of the stored table; without one, the native grid's or one made for this size."""
        side, stored = self.settings.table, self.position
        if not side:
            native = (rows, columns) == self.settings.grid
            made = stored if native else self._positions(rows, columns, stored.device).to(stored.dtype)
            return made.flatten(0, 1)
        if max(rows, columns) > side:
            raise ValueError(f"MMDiT: {rows} x {columns} tokens do not fit the position table of {side} x {side}")
        top, left = (side - rows) // 2, (side - columns) // 2
        return stored[top : top + rows, left : left + columns].flatten(0, 1)
