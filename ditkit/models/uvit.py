"""U-ViT of Hoogeboom et al., "simple diffusion" (arXiv 2301.11093, section 3.4): a small U-Net around a transformer.

SD3 compares with it (arXiv 2403.03206, section 5.2.3); it is not the U-ViT of Bao et al. Convolutional levels, each
with skip connections, lead to the lowest resolution, where the transformer works without any.
Neither paper prints how the text enters or how large the network was. Ours: the transformer's blocks are `CrossDiT`'s
(the text is read by cross-attention, and at the lowest resolution only), c = time + pooled text modulates every block,
levels are halved by the mean and doubled by repetition, and all sizes.
Shapes: B batch, C channels, H, W latent size, S = patch 2^levels the stride, N = H W / S^2 tokens, L text tokens,
D width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn.functional import silu

from ditkit.config import Settings
from ditkit.models.labels import token_grid
from ditkit.models.texts import check_shape, check_text, global_vector, null_text
from ditkit.nn.block import AdaLNZeroBlock, Blocks, zero_start
from ditkit.nn.convolution import Down, ResBlock, Up, group_norm
from ditkit.nn.embed import PooledEmbed, TimeEmbed
from ditkit.nn.norm import QKNorm
from ditkit.nn.patch import PatchEmbed, unpatchify
from ditkit.nn.position import sincos_table, table_for
from ditkit.protocols import Condition, Output


class UViTSettings(Settings):
    """One U-ViT. Sizes are the user's: neither paper prints those of this comparison."""

    num_classes: ClassVar[int] = 0
    null_label: ClassVar[bool] = False
    variance: ClassVar[Literal["none"]] = "none"

    kind: Literal["uvit"] = "uvit"
    levels: tuple[PositiveInt, ...] = Field(
        (128, 256), min_length=1, description="channels of the levels, finest first"
    )
    level_blocks: int = Field(2, gt=0, description="residual blocks of a level, on each way")
    depth: int = Field(gt=0, description="transformer blocks at the lowest resolution")
    width: int = Field(gt=0, description="width D of the transformer's tokens")
    heads: int = Field(gt=0, description="heads of the transformer; must divide the width")
    patch: int = Field(1, gt=0, description="patch side of the finest level; each level doubles it")
    channels: int = Field(16, gt=0, description="latent channels C")
    size: tuple[int, int] = Field((32, 32), description="native latent (H, W); others work, with their own table")
    text_width: int = Field(4096, gt=0, description="width of the text tokens, before one Linear makes it D")
    pooled_width: int = Field(2048, ge=0, description="width of the pooled text vector; 0: the model takes none")
    text_length: int = Field(154, gt=0, description="text tokens that costs are counted for; any number is taken")
    qk_norm: QKNorm = Field("none", description="norm of queries and keys per head, in both attentions")
    mlp_ratio: float = Field(4.0, gt=0, description="MLP hidden width / D")
    time_scale: float = Field(1000.0, description="network time = time_scale t + time_offset")
    time_offset: float = Field(0.0, description="see time_scale")
    checkpointing: bool = Field(False, description="recompute the transformer's blocks in backward: less memory")

    @model_validator(mode="after")
    def _fits(self) -> UViTSettings:
        check_shape(self, self.stride, "patch x 2^levels =")
        return self

    @property
    def stride(self) -> int:
        """Latent numbers a side of one token of the transformer; it must divide H and W."""
        return self.patch * 2 ** len(self.levels)

    @property
    def grid(self) -> tuple[int, int]:
        """Token rows and columns of the native size, at the lowest resolution."""
        return self.size[0] // self.stride, self.size[1] // self.stride


class UViT(nn.Module):
    """A `Denoiser` that reads text. Texts are dropped by the objective, never here; guidance lives outside."""

    def __init__(self, settings: UViTSettings, *, generator: torch.Generator | None = None):
        super().__init__()
        s = self.settings = settings
        self.time = TimeEmbed(s.width)
        self.pooled = PooledEmbed(s.pooled_width, s.width) if s.pooled_width else None
        self.context = nn.Linear(s.text_width, s.width)
        self.patch = PatchEmbed(s.channels, s.levels[0], s.patch)
        steps = list(zip(s.levels, (*s.levels[1:], s.width), strict=True))  # channels of a level and of the next
        self.down = nn.ModuleList(Down(fine, coarse, s.width, s.level_blocks) for fine, coarse in steps)
        self.blocks = Blocks(AdaLNZeroBlock(s, cross=True) for _ in range(s.depth))
        self.up = nn.ModuleList(Up(coarse, fine, s.width, s.level_blocks) for fine, coarse in reversed(steps))
        self.norm = group_norm(s.levels[0])
        self.last = nn.Conv2d(s.levels[0], s.patch * s.patch * s.channels, 3, padding=1)
        self.register_buffer("position", sincos_table(*s.grid, s.width, device=self.context.weight.device))
        self.position: Tensor  # (N, D), frozen
        self.initialise(generator)

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """DiT's scheme, every residual branch zero; drawn from `generator`. Output is 0 at the start."""
        branches = [module.conv2 for module in self.modules() if isinstance(module, ResBlock)]
        zero_start(self, (self.time, self.pooled), (*branches, self.last), generator)

    def forward(
        self, x: Tensor, t: Tensor, cond: Condition, *, capture: tuple[int, ...] = (), skip: tuple[int, ...] = ()
    ) -> Output:
        """x (B, C, H, W), t (B,) or scalar, cond.text (B, L, text_width), cond.pooled -> Output(sample, hidden).

        hidden[i] (B, N, D) are the tokens after the transformer's block i (1-based) for each i in `capture`; blocks in
        `skip` are passed by. Raises ValueError for sizes that the stride does not divide, missing or misshapen text,
        no such block.
        """
        s = self.settings
        rows, columns = token_grid("UViT", s, x, s.stride)
        check_text("UViT", s, cond, (*capture, *skip), len(x))
        assert cond.text is not None
        c = global_vector(s, self.time, self.pooled, t.expand(len(x)), cond)  # (B, D)
        text = self.context(cond.text.to(self.context.weight.dtype))  # (B, L, D)
        fine = (x.shape[2] // s.patch, x.shape[3] // s.patch)
        h = self.patch(x).transpose(1, 2).unflatten(2, fine)  # (B, channels of the level, rows, columns), until tokens
        kept: list[list[Tensor]] = []
        for down in self.down:
            h, maps = down(h, c)
            kept.append(maps)
        tokens = h.flatten(2).transpose(1, 2) + table_for(self.position, s.grid, rows, columns)  # (B, N, D)
        tokens, hidden = self.blocks.run(
            tokens, c, text, cond.mask, capture=capture, skip=skip, checkpointing=s.checkpointing
        )
        h = (
            tokens.to(self.last.weight.dtype).transpose(1, 2).unflatten(2, (rows, columns))
        )  # blocks may be sharded in bf16
        for up in self.up:
            h = up(h, c, kept.pop())
        h = self.last(silu(self.norm(h)))
        return Output(unpatchify(h.flatten(2).transpose(1, 2), *fine, s.patch), hidden)

    def null(self, cond: Condition) -> Condition:
        """Zeros in place of the encoders' outputs, as in training; see `null_text` for inference."""
        return null_text(cond)
