"""Published DDT checkpoints and those of its improved DiT baseline <-> our DDT.

Time 0 = noise and velocity x - eps: network time = 1 - t, and the final Linear is negated (exact, undone on export).
Patches are unfolded, (channel, row, column): the input Linear is our convolution reshaped, and the rows of the final
Linear move to our order (row, column, channel). The projector belongs to the trainer, not to the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from math import ceil

import torch
from pydantic import ValidationError
from torch import nn

from ditkit.checkpoints.dit import heads_of
from ditkit.checkpoints.files import EMA
from ditkit.checkpoints.keys import Table, check, inverse, need, rename
from ditkit.checkpoints.projectors import attach, official_projectors, split_projectors
from ditkit.checkpoints.published import CheckpointError, Published, Shape, State
from ditkit.checkpoints.repa import ALIGN_DEPTHS
from ditkit.diffusion.path import AnyPath, Linear
from ditkit.diffusion.prediction import Kind
from ditkit.models import DDT as Network
from ditkit.models import DDT_SIZES, DDTSettings

_TABLE: Table = (
    ("x_embedder.proj.", "patch.project."),
    ("s_embedder.proj.", "encoder_patch.project."),
    ("t_embedder.", "time."),
    ("y_embedder.embedding_table.", "label.table."),
    (".attn.", ".attention."),
    (".mlp.w1.", ".mlp.gate."),
    (".mlp.w2.", ".mlp.down."),
    (".mlp.w3.", ".mlp.up."),
    (".adaLN_modulation.0.", ".modulation.linear."),
    ("final_layer.", "final."),
)
_PATCHES = ("patch.project.weight", "encoder_patch.project.weight")
_FINAL = ("final.linear.weight", "final.linear.bias")
_PREFIX = "diffusion_trainer.proj."
_TIME = (-1.0, 1.0)  # network time = -t + 1
_ENCODER = {(s["encoder_blocks"] + s["decoder_blocks"], s["width"]): s["encoder_blocks"] for s in DDT_SIZES.values()}
_ALIGN = dict.fromkeys(_ENCODER, 8)  # the released configurations align block 8


@dataclass(frozen=True)
class Official:
    """The format of the DDT repository; the fields are what differs between DDT and its improved DiT baseline."""

    source: str
    split: bool  # a condition encoder of its own
    align: dict[tuple[int, int], int]  # depth and width -> the block that the projector reads, from 1
    arguments: tuple[str, ...]

    def load(self, state: State, shape: Shape, path: AnyPath | None, prediction: Kind | None) -> Published:
        """Official tensors (copied) -> our model, strict; the trainer's projector where the file has it."""
        self._check_kind(prediction)
        body, heads = split_projectors(state, f"{_PREFIX}0.")  # of a second one the official trainer knows nothing
        settings = self.settings(body, shape)
        check(self.source, body, self.blank(settings))
        with torch.device("meta"):
            model = Network(settings)
        model.load_state_dict(self._ours(body, settings), assign=True)
        published = Published(model.eval(), path or Linear(), "velocity", None, None, settings, self.source)
        heads, default = {f"0.{k}": v for k, v in heads.items()}, self.align.get((settings.depth, settings.width))
        return attach(published, heads, _PREFIX, shape.align_depth, default)

    def export(self, model: nn.Module, projectors: nn.ModuleList | None, prediction: Kind | None) -> State:
        """Our model -> the keys of the official network; with projectors those of its trainer's module, EMA weights."""
        self._check_kind(prediction)
        state = self._official(self._exportable(model))
        if projectors is None:
            return state
        if len(projectors) != 1:
            raise CheckpointError(
                f"export_published: source {self.source!r} has one projector, not {len(projectors)}; leave them out"
            )
        trainer = official_projectors(self.source, projectors, _PREFIX, len(state["x_embedder.proj.bias"]))
        return {f"{EMA}{key}": value for key, value in state.items()} | trainer

    def blank(self, settings: DDTSettings) -> State:
        """The official state dict of such a model, on the meta device: its keys and shapes."""
        with torch.device("meta"):
            return self._official(Network(settings))

    def settings(self, state: State, shape: Shape) -> DDTSettings:
        """Sizes from the tensors, heads from qk-norm; patch 2, 32 x 32 and the split of the published table."""
        patch_weight, labels, q_norm, hidden = need(
            self.source,
            state,
            "x_embedder.proj.weight",
            "y_embedder.embedding_table.weight",
            "blocks.0.attn.q_norm.weight",
            "blocks.0.mlp.w1.weight",
        )
        if patch_weight.ndim != 2:
            raise self._error(f"x_embedder.proj.weight has {patch_weight.ndim} dimensions, a Linear's has 2")
        width, numbers = patch_weight.shape
        depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks.") and k.split(".")[1].isdigit())
        patch = shape.patch or 2
        if numbers % patch**2:
            raise self._error(f"a patch of {numbers} numbers is no {patch} x {patch} of some channels; give patch=")
        if len(labels) == shape.null:
            raise self._error("the label table has one row, the null label's; give null=False")
        encoder = self._encoder_blocks(depth, width, shape.encoder_blocks)
        try:
            return DDTSettings(
                encoder_blocks=encoder,
                decoder_blocks=depth - encoder,
                width=width,
                heads=heads_of(self.source, depth, width, shape.heads, q_norm),
                patch=patch,
                channels=numbers // patch**2,
                size=shape.size or (32, 32),
                num_classes=len(labels) - shape.null,
                null_label=shape.null,
                mlp_ratio=_ratio(len(hidden), width),
                time_scale=_TIME[0],
                time_offset=_TIME[1],
            )
        except ValidationError as error:
            raise self._error(error.errors()[0]["msg"].removeprefix("Value error, ")) from None

    def _encoder_blocks(self, depth: int, width: int, given: int | None) -> int:
        if not self.split:
            return 0
        blocks = given or _ENCODER.get((depth, width))
        if blocks is None:
            raise self._error(f"{depth} blocks of width {width} are no published size; give encoder_blocks=")
        if blocks >= depth:
            raise self._error(f"encoder_blocks={blocks} leaves no decoder block of {depth} blocks")
        return blocks

    def _error(self, what: str) -> CheckpointError:
        return CheckpointError(f"source {self.source!r}: {what}")

    def _ours(self, official: State, settings: DDTSettings) -> State:
        """Official keys and layout -> ours (copies)."""
        state = {rename(name, _TABLE): value.clone() for name, value in official.items()}
        c, p = settings.channels, settings.patch
        for key in (k for k in _PATCHES if k in state):
            state[key] = state[key].unflatten(1, (c, p, p))
        for key in _FINAL:
            state[key] = -state[key].unflatten(0, (c, p * p)).transpose(0, 1).flatten(0, 1)
        return state

    def _official(self, model: Network) -> State:
        state: State = {k: v.detach().clone() for k, v in model.state_dict().items()}
        c, p = model.settings.channels, model.settings.patch
        for key in (k for k in _PATCHES if k in state):
            state[key] = state[key].flatten(1)
        for key in _FINAL:
            state[key] = -state[key].unflatten(0, (p * p, c)).transpose(0, 1).flatten(0, 1)
        return {rename(k, inverse(_TABLE)): v for k, v in state.items()}

    def _check_kind(self, prediction: Kind | None) -> None:
        if prediction not in (None, "velocity"):
            raise CheckpointError(f"source {self.source!r} predicts velocity, not {prediction}")

    def _exportable(self, model: nn.Module) -> Network:
        """Refuse, with the reason, what the official class could not load or would compute differently."""
        if not isinstance(model, Network):
            raise CheckpointError(f"export_published: source {self.source!r} takes a DDT, not a {type(model).__name__}")
        s = model.settings
        refusals = (
            (self.split and not s.encoder_blocks, "it has no encoder blocks; use 'improved-dit'"),
            (not self.split and s.encoder_blocks > 0, f"it has {s.encoder_blocks} encoder blocks; use 'ddt'"),
            (
                (s.time_scale, s.time_offset) != _TIME,
                f"it sees network time {s.time_scale:g} t + {s.time_offset:g}, the family -1 t + 1, and a time "
                "embedding cannot be remapped; train with time_scale=-1, time_offset=1",
            ),
            (s.num_classes == 0, "it is unconditional; the official class has a label table"),
        )
        if reason := next((reason for holds, reason in refusals if holds), None):
            raise CheckpointError(f"export_published: this model is no {self.source!r}: {reason}")
        return model


def _ratio(hidden: int, width: int) -> float:
    """The simplest mlp_ratio that gives this hidden width: int(2 ratio width / 3)."""
    low, high = Fraction(3 * hidden, 2 * width), Fraction(3 * (hidden + 1), 2 * width)
    for parts in count(1):
        ratio = Fraction(ceil(low * parts), parts)
        if ratio < high and int(2 * float(ratio) * width / 3) == hidden:
            return float(ratio)
    raise AssertionError("a rational number lies in every interval")


_SHAPE = ("heads", "patch", "size", "null", "align_depth")
DDT = Official("ddt", True, _ALIGN, (*_SHAPE, "encoder_blocks"))
IMPROVED_DIT = Official("improved-dit", False, ALIGN_DEPTHS, _SHAPE)  # its REPA rows are REPA on these blocks
