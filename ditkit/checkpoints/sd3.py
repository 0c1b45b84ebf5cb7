"""Stability's SD3 and SD3.5 files (MMDiT, MMDiT-X) <-> our MMDiT, and the layout that REPA's MMDiT shares with them.

Time 1 = noise and velocity eps - x are ours already: network time = 1000 t, no sign. A Stability file holds more than
the network: everything under `model.diffusion_model.` is it; VAE and text encoders are left aside, which is told.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, replace

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ditkit.checkpoints.grids import native_of, stored_table
from ditkit.checkpoints.keys import Table, check, inverse, need, rename
from ditkit.checkpoints.published import CheckpointError, Published, Shape, State
from ditkit.diffusion.path import AnyPath, Linear
from ditkit.diffusion.prediction import Kind
from ditkit.models import MMDiT, MMDiTSettings

_TABLE: Table = (
    ("context_embedder.", "context.0."),  # before the t_embedder at its end
    ("pos_embed", "position"),
    ("x_embedder.proj.", "patch.project."),
    ("t_embedder.", "time."),
    ("y_embedder.mlp.", "pooled."),
    ("joint_blocks.", "blocks."),
    (".x_block.", ".image."),
    (".context_block.", ".text.0."),
    (".attn.", ".attention."),
    (".attn2.", ".attention2."),
    (".ln_q.", ".q_norm."),
    (".ln_k.", ".k_norm."),
    (".adaLN_modulation.1.", ".modulation.linear."),
    ("final_layer.", "final."),
)
SIZES = ("x_embedder.proj.weight", "pos_embed", "joint_blocks.0.x_block.mlp.fc1.bias", "context_embedder.weight")
_ASIDE = {"first_stage_model": "the VAE", "text_encoders": "the text encoders"}


@dataclass(frozen=True)
class Official:
    """One publisher of MMDiTs in this layout; the fields are what differs between them."""

    source: str
    time_scale: float
    head_width: int  # heads are width / head_width, and the official class has width = head_width depth
    native: tuple[int, float]  # side of the published native grid in tokens, and its step, where no table tells it
    prefix: str = ""  # of the network's keys in the published file
    side: int | None = None  # M of the position table, where the official class takes one only
    arguments: tuple[str, ...] = ("size",)

    def load(self, state: State, shape: Shape, path: AnyPath | None, prediction: Kind | None) -> Published:
        """Official tensors (copied) -> our model, strict; what stands beside the network in the file is noted."""
        self.check_kind(prediction)
        network, notes = self._network(state)
        settings = self.settings(network, shape)
        check(self.source, network, self.blank(settings))
        model = self.assemble({key: value.clone() for key, value in network.items()}, settings)
        return replace(self.published(model, path), notes=notes)

    def export(self, model: nn.Module, projectors: nn.ModuleList | None, prediction: Kind | None) -> State:
        """Our model -> official keys and tensors (copies), under the published file's prefix."""
        if projectors is not None:
            raise CheckpointError(f"export_published: source {self.source!r} has no projectors; leave them out")
        self.check_kind(prediction)
        mmdit = self.exportable(model)
        s = mmdit.settings
        if s.width != self.head_width * s.depth or s.heads != s.depth:
            other = " (diffusers-sd3 takes any)" if self.prefix else ""
            raise self.refusal(
                f"it has {s.depth} blocks of width {s.width} with {s.heads} heads; the official class has {s.depth} "
                f"of width {self.head_width * s.depth} with {s.depth} heads{other}"
            )
        return {f"{self.prefix}{key}": value for key, value in self.official(mmdit).items()}

    def published(self, model: MMDiT, path: AnyPath | None) -> Published:
        """The loaded model with the family's path and prediction."""
        return Published(model.eval(), path or Linear(), "velocity", None, None, model.settings, self.source)

    def assemble(self, official: State, settings: MMDiTSettings) -> MMDiT:
        """A model around these official tensors, which are taken over and not copied."""
        ours = {rename(key, _TABLE): value for key, value in official.items()}
        side = settings.table
        ours["position"] = ours["position"].view(side, side, settings.width)
        with torch.device("meta"):
            model = MMDiT(settings)
        model.load_state_dict(ours, assign=True)
        return model

    def official(self, model: MMDiT) -> State:
        """Official keys and copies of the tensors; the position table is always among them."""
        state: State = {rename(k, inverse(_TABLE)): v.detach().clone() for k, v in model.state_dict().items()}
        table = stored_table(model, self.side)
        return state | {"pos_embed": table.detach().clone().flatten(0, 1)[None]}

    def blank(self, settings: MMDiTSettings) -> State:
        """The official state dict of such a model, on the meta device: its keys and shapes."""
        with torch.device("meta"):
            return self.official(MMDiT(settings))

    def settings(self, state: State, shape: Shape) -> MMDiTSettings:
        """Sizes from the tensors; the native size from the argument, the position table or the published one."""
        patch_weight, table, hidden, context = need(self.source, state, *SIZES)
        for key, value, axes in zip(SIZES, (patch_weight, table, hidden, context), (4, 3, 1, 2), strict=True):
            if value.ndim != axes:
                raise self.error(f"{key} has {value.ndim} axes instead of {axes}")
        width, channels, patch = patch_weight.shape[:3]
        side = math.isqrt(table.shape[1])
        if side * side != table.shape[1]:
            raise self.error(f"pos_embed {tuple(table.shape)} is no square grid")
        q_norm, pooled = state.get("joint_blocks.0.x_block.attn.ln_q.weight"), state.get("y_embedder.mlp.0.weight")
        size, step = self._native(table.view(side, side, -1), patch, shape)
        dual = {n for k in state if k.endswith(".x_block.attn2.qkv.weight") and (n := block_of(k))}
        published = {} if self.head_width == 64 else {"text_length": 77, "init": "torch"}
        try:
            return MMDiTSettings(
                depth=depth_of(state),
                width=width,
                heads=self._heads(width, shape.heads, q_norm),
                patch=patch,
                channels=channels,
                size=size,
                text_width=context.shape[1],
                pooled_width=0 if pooled is None else pooled.shape[1],
                qk_norm="none" if q_norm is None else "rms",
                dual=tuple(sorted(dual)),
                mlp_ratio=len(hidden) / width,
                table=side,
                step=step,
                time_scale=self.time_scale,
                **published,  # type: ignore[arg-type]
            )
        except ValidationError as error:
            raise self.error(error.errors()[0]["msg"].removeprefix("Value error, ")) from None

    def _native(self, table: Tensor, patch: int, shape: Shape) -> tuple[tuple[int, int], float]:
        """Native latent size and step: as the table tells, else published; a size that was given replaces it."""
        tokens, step = self.native
        grid = (min(tokens, len(table)),) * 2
        if not table.is_meta and (told := native_of(table)) is not None:
            grid, step = told
        return shape.size or (grid[0] * patch, grid[1] * patch), step

    def _heads(self, width: int, given: int | None, q_norm: Tensor | None) -> int:
        """From qk-norm's tensors, the argument, or the published heads of 64 (REPA: 32) channels."""
        told = None if q_norm is None else width // len(q_norm)
        if told is not None and given not in (None, told):
            raise self.error(f"heads={given}, but the qk-norm tensors say {told}")
        if (heads := told or given) is None and width % self.head_width:
            raise self.error(f"width {width} is no multiple of heads of {self.head_width} channels; give heads=")
        return heads or width // self.head_width

    def _network(self, state: State) -> tuple[State, tuple[str, ...]]:
        """(the network's tensors without the file's prefix, notes on the others); unknown keys stay, to be listed."""
        if not self.prefix or not any(key.startswith(self.prefix) for key in state):
            return state, ()
        aside = Counter(key.split(".")[0] for key in state if key.split(".")[0] in _ASIDE)
        network = {k.removeprefix(self.prefix): v for k, v in state.items() if k.split(".")[0] not in aside}
        return network, tuple(f"left aside: {_ASIDE[part]}, {n} tensors {part}.*" for part, n in aside.items())

    def check_kind(self, prediction: Kind | None) -> None:
        """CheckpointError unless it is the velocity."""
        if prediction not in (None, "velocity"):
            raise CheckpointError(f"source {self.source!r} predicts velocity, not {prediction}")

    def exportable(self, model: nn.Module) -> MMDiT:
        """Refuse, with the reason, what no official class could load or would compute differently."""
        if not isinstance(model, MMDiT):
            raise CheckpointError(
                f"export_published: source {self.source!r} takes an MMDiT, not a {type(model).__name__}"
            )
        s = model.settings
        refusals = (
            (s.sets == 3, "it has three sets of weights; only two were released"),
            (
                (s.time_scale, s.time_offset) != (self.time_scale, 0.0),
                f"it sees network time {s.time_scale:g} t + {s.time_offset:g}, the family {self.time_scale:g} t, and a "
                f"time embedding cannot be remapped; train with time_scale={self.time_scale:g}, time_offset=0",
            ),
            (s.qk_norm == "layer", "its qk_norm is layer"),
        )
        if reason := next((reason for holds, reason in refusals if holds), None):
            raise self.refusal(reason)
        return model

    def refusal(self, reason: str) -> CheckpointError:
        """Why this model cannot be written in this format."""
        return CheckpointError(f"export_published: this model is no {self.source!r}: {reason}")

    def error(self, what: str) -> CheckpointError:
        """What is wrong with a file."""
        return CheckpointError(f"source {self.source!r}: {what}")


def block_of(key: str) -> int:
    """The number, from 1, of the block that an official key belongs to; 0: none."""
    found = re.match(r"joint_blocks\.(\d+)\.", key)
    return int(found[1]) + 1 if found else 0


def depth_of(state: State) -> int:
    """The number of blocks that official keys count up to."""
    return max(map(block_of, state), default=0)


SD3 = Official("sd3", 1000.0, 64, (64, 0.25), prefix="model.diffusion_model.")
