"""Published DiT and SiT checkpoints (and the layout that REPA shares with them) <-> our DiT.

DiT: index k in 0..999, 999 = noise, predicts noise (and variance logits): our t = k / 999, network time = 999 t.
SiT: time 0 = noise, predicts x - eps: network time = 1 - t, and the final Linear is negated (exact, undone on export).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ditkit.checkpoints.keys import Table, check, inverse, need, rename
from ditkit.checkpoints.published import CheckpointError, Published, Shape, State
from ditkit.diffusion.ddpm import DDPM
from ditkit.diffusion.path import AnyPath, Linear
from ditkit.diffusion.prediction import Kind
from ditkit.models import SIZES, DiT, DiTSettings

_TABLE: Table = (
    ("pos_embed", "position"),
    ("x_embedder.proj.", "patch.project."),
    ("t_embedder.", "time."),
    ("y_embedder.embedding_table.", "label.table."),
    (".attn.", ".attention."),
    (".adaLN_modulation.1.", ".modulation.linear."),
    ("final_layer.", "final."),
)
_HEADS = {(size["depth"], size["width"]): size["heads"] for size in SIZES.values()}


@dataclass(frozen=True)
class Official:
    """One family that publishes in DiT's layout; the fields are what differs between DiT, SiT and REPA."""

    source: str
    time: tuple[float, float]  # network time = time[0] t + time[1]
    path: AnyPath
    predictions: tuple[Kind, ...]  # the first is the published one
    doubled: str | None  # what a second half of output channels is here: learned, dropped; None: there is none
    qk_norm: bool = False
    arguments: tuple[str, ...] = ("heads", "null")

    def load(self, state: State, shape: Shape, path: AnyPath | None, prediction: Kind | None) -> Published:
        """Official tensors (copied) -> our model, strict."""
        prediction = self._kind(prediction)
        settings = self.settings(state, shape)
        check(self.source, state, self.blank(settings))
        ours = {rename(name, _TABLE): value.clone() for name, value in state.items()}
        ours["position"] = ours["position"].squeeze(0)
        self._fold_sign(ours, prediction, "final.linear")
        with torch.device("meta"):
            model = DiT(settings)
        model.load_state_dict(ours, assign=True)
        return Published(model.eval(), path or self.path, prediction, None, None, settings, self.source)

    def export(self, model: nn.Module, projectors: nn.ModuleList | None, prediction: Kind | None) -> State:
        """Our model -> official keys and tensors (copies)."""
        if projectors is not None:
            raise CheckpointError(
                f"export_published: source {self.source!r} has no projectors; leave them out, or use 'repa'"
            )
        self._exportable(model)
        state = self._official(model)
        self._fold_sign(state, self._kind(prediction), "final_layer.linear")
        return state

    def blank(self, settings: DiTSettings) -> State:
        """The official state dict of such a model, on the meta device: its keys and shapes."""
        with torch.device("meta"):
            return self._official(DiT(settings))

    def settings(self, state: State, shape: Shape) -> DiTSettings:
        """Sizes from the tensors; heads from qk-norm, the published table or the argument."""
        patch_weight, table, labels, hidden, final = need(
            self.source,
            state,
            "x_embedder.proj.weight",
            "pos_embed",
            "y_embedder.embedding_table.weight",
            "blocks.0.mlp.fc1.bias",
            "final_layer.linear.bias",
        )
        width, channels, patch = patch_weight.shape[:3]
        depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks.") and k.split(".")[1].isdigit())
        side = math.isqrt(table.shape[1])
        if side * side != table.shape[1]:
            raise CheckpointError(
                f"source {self.source!r}: pos_embed has {table.shape[1]} tokens, which is no square grid"
            )
        if len(labels) == shape.null:
            raise CheckpointError(
                f"source {self.source!r}: the label table has one row, the null label's; give null=False"
            )
        q_norm = state.get("blocks.0.attn.q_norm.weight") if self.qk_norm else None
        return DiTSettings(
            depth=depth,
            width=width,
            heads=heads_of(self.source, depth, width, shape.heads, q_norm),
            patch=patch,
            channels=channels,
            size=(side * patch, side * patch),
            num_classes=len(labels) - shape.null,
            null_label=shape.null,
            mlp_ratio=len(hidden) / width,
            variance="none" if len(final) == patch * patch * channels else self.doubled or "none",
            qk_norm="none" if q_norm is None else "layer",
            time_scale=self.time[0],
            time_offset=self.time[1],
        )

    def _kind(self, prediction: Kind | None) -> Kind:
        kind = prediction or self.predictions[0]
        if kind not in self.predictions:
            raise CheckpointError(f"source {self.source!r} predicts {' or '.join(self.predictions)}, not {kind}")
        return kind

    def _official(self, model: nn.Module) -> State:
        state = {rename(k, inverse(_TABLE)): v.detach().clone() for k, v in model.state_dict().items()}
        state["pos_embed"] = state["pos_embed"].unsqueeze(0)
        return state

    def _fold_sign(self, state: State, prediction: Kind, layer: str) -> None:
        """A family whose time runs backwards has the opposite velocity; noise and score have the same sign."""
        if self.time[0] < 0 and prediction == "velocity":
            for key in (f"{layer}.weight", f"{layer}.bias"):
                state[key] = -state[key]

    def _exportable(self, model: nn.Module) -> None:
        """Refuse, with the reason, what the official class could not load or would compute differently."""
        if not isinstance(model, DiT):
            raise CheckpointError(f"export_published: source {self.source!r} takes a DiT, not a {type(model).__name__}")
        s = model.settings
        scale, offset = self.time
        refusals = (
            (
                (s.time_scale, s.time_offset) != self.time,
                f"it sees network time {s.time_scale:g} t + {s.time_offset:g}, the family {scale:g} t + {offset:g}, "
                f"and a time embedding cannot be remapped; train with time_scale={scale:g}, time_offset={offset:g}",
            ),
            (s.conditioning != "adaln_zero", f"its conditioning is {s.conditioning}; only adaln_zero was released"),
            (s.num_classes == 0, "it is unconditional; the official class has a label table"),
            (
                s.variance not in ("none", self.doubled),
                f"its variance is {s.variance}; the family has none{f' or {self.doubled}' if self.doubled else ''}",
            ),
            (s.qk_norm not in (("none", "layer") if self.qk_norm else ("none",)), f"its qk_norm is {s.qk_norm}"),
            (s.grid[0] != s.grid[1], f"its size {s.size[0]} x {s.size[1]} is not square"),
        )
        if reason := next((reason for holds, reason in refusals if holds), None):
            raise CheckpointError(f"export_published: this model is no {self.source!r}: {reason}")


def heads_of(source: str, depth: int, width: int, given: int | None, q_norm: Tensor | None) -> int:
    """From qk-norm's tensors, the argument or the published table; CheckpointError where they do not fit."""
    told = _HEADS.get((depth, width)) if q_norm is None else width // len(q_norm)
    if q_norm is not None and given not in (None, told):
        raise CheckpointError(f"source {source!r}: heads={given}, but the qk-norm tensors say {told}")
    heads = told if given is None else given
    if heads is None:
        raise CheckpointError(f"source {source!r}: {depth} blocks of width {width} are no published size; give heads=")
    if width % heads:
        raise CheckpointError(f"source {source!r}: heads={heads} does not divide width {width}")
    return heads


DIT = Official("dit", (999.0, 0.0), DDPM(), ("noise", "data"), "learned")
SIT = Official("sit", (-1.0, 1.0), Linear(), ("velocity", "noise", "score"), "dropped")
