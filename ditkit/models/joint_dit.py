"""DiT over text and image tokens with one set of weights: SD3's first comparison backbone (arXiv 2403.03206, 5.2.3).

It is MMDiT with text and image sharing every weight of a block: [text, image] passes through DiT's adaLN-Zero blocks,
modulated by c = time + pooled text. The paper prints no sizes.
Shapes: B batch, C channels, H, W latent size, P patch, N = H W / P^2 image tokens, L text tokens, D width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ditkit.config import Settings
from ditkit.models.labels import token_grid
from ditkit.models.texts import attended, check_shape, check_text, global_vector, null_text
from ditkit.nn.block import AdaLNZeroBlock, Blocks, FinalLayer, zero_start
from ditkit.nn.embed import PooledEmbed, TimeEmbed
from ditkit.nn.norm import QKNorm
from ditkit.nn.patch import PatchEmbed, unpatchify
from ditkit.nn.position import sincos_table, table_for
from ditkit.protocols import Condition, Output


class JointDiTSettings(Settings):
    """One DiT that reads text tokens beside image tokens. Sizes are the user's: the paper names none."""

    num_classes: ClassVar[int] = 0
    null_label: ClassVar[bool] = False
    variance: ClassVar[Literal["none"]] = "none"

    kind: Literal["joint_dit"] = "joint_dit"
    depth: int = Field(gt=0, description="number of blocks")
    width: int = Field(gt=0, description="token width D, of text and image")
    heads: int = Field(gt=0, description="attention heads; must divide the width")
    patch: int = Field(2, gt=0, description="patch side P")
    channels: int = Field(16, gt=0, description="latent channels C")
    size: tuple[int, int] = Field((32, 32), description="native latent (H, W); others work, with their own table")
    text_width: int = Field(4096, gt=0, description="width of the text tokens, before one Linear makes it D")
    pooled_width: int = Field(2048, ge=0, description="width of the pooled text vector; 0: the model takes none")
    text_length: int = Field(154, gt=0, description="text tokens that costs are counted for; any number is taken")
    qk_norm: QKNorm = Field("none", description="norm of queries and keys per head, the same for text and image")
    mlp_ratio: float = Field(4.0, gt=0, description="MLP hidden width / D")
    time_scale: float = Field(1000.0, description="network time = time_scale t + time_offset")
    time_offset: float = Field(0.0, description="see time_scale")
    checkpointing: bool = Field(False, description="recompute each block in backward: less memory, about 1/3 slower")

    @model_validator(mode="after")
    def _fits(self) -> JointDiTSettings:
        check_shape(self, self.patch)
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Token rows and columns of the native size."""
        return self.size[0] // self.patch, self.size[1] // self.patch


class JointDiT(nn.Module):
    """A `Denoiser` that reads text. Texts are dropped by the objective, never here; guidance lives outside."""

    def __init__(self, settings: JointDiTSettings, *, generator: torch.Generator | None = None):
        super().__init__()
        s = self.settings = settings
        self.patch = PatchEmbed(s.channels, s.width, s.patch)
        self.time = TimeEmbed(s.width)
        self.pooled = PooledEmbed(s.pooled_width, s.width) if s.pooled_width else None
        self.context = nn.Linear(s.text_width, s.width)
        self.blocks = Blocks(AdaLNZeroBlock(s) for _ in range(s.depth))
        self.final = FinalLayer(s.width, s.patch * s.patch * s.channels)
        table = sincos_table(*s.grid, s.width, device=self.context.weight.device)
        self.register_buffer("position", table)  # (N, D), frozen; text tokens have no position but their encoder's
        self.position: Tensor
        self.initialise(generator)

    def initialise(self, generator: torch.Generator | None = None) -> None:
        """DiT's scheme, drawn from `generator` (None: torch's global one). Output is 0 at the start."""
        zero_start(self, (self.time, self.pooled), (self.final.linear,), generator)

    def forward(
        self, x: Tensor, t: Tensor, cond: Condition, *, capture: tuple[int, ...] = (), skip: tuple[int, ...] = ()
    ) -> Output:
        """x (B, C, H, W), t (B,) or scalar, cond.text (B, L, text_width), cond.pooled -> Output(sample, hidden).

        hidden[i] (B, N, D) are the image tokens after block i (1-based) for each i in `capture`; blocks in `skip` are
        passed by. Raises ValueError for sizes that the patch does not divide, missing or misshapen text, no such block.
        """
        s = self.settings
        rows, columns = token_grid("JointDiT", s, x)
        check_text("JointDiT", s, cond, (*capture, *skip), len(x))
        assert cond.text is not None
        c = global_vector(s, self.time, self.pooled, t.expand(len(x)), cond)  # (B, D)
        image = self.patch(x) + table_for(self.position, s.grid, rows, columns)  # (B, N, D)
        text = self.context(cond.text.to(self.context.weight.dtype))  # (B, L, D)
        h, mask, length = torch.cat([text.to(image.dtype), image], dim=1), attended(cond, image.shape[1]), text.shape[1]
        h, hidden = self.blocks.run(
            h, c, None, mask, capture=capture, skip=skip, checkpointing=s.checkpointing
        )  # (B, L + N, D)
        sample = unpatchify(self.final(h[:, length:], c), rows, columns, s.patch)
        return Output(sample, {i: tokens[:, length:] for i, tokens in hidden.items()})

    def null(self, cond: Condition) -> Condition:
        """Zeros in place of the encoders' outputs, as in training; see `null_text` for inference."""
        return null_text(cond)
