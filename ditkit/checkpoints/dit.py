"""Published DiT and SiT checkpoints (and the layout that REPA shares with them) <-> our DiT.

DiT: index k in 0..999, 999 = noise, predicts noise (and variance logits): our t = k / 999, network time = 999 t.
SiT: time 0 = noise, predicts x - eps: network time = 1 - t, and the final Linear is negated (exact, undone on export).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ditkit.checkpoints.families import require
from ditkit.checkpoints.keys import Table, check, inverse, need, rename
from ditkit.checkpoints.published import CheckpointError, Published, Shape, State
from ditkit.diffusion import DDPM, AnyPath, Kind, Linear
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
        require(self.source, state)
        prediction = self._kind(prediction)
        settings = self.settings(state, shape)
        with torch.device("meta"):
            model = DiT(settings)
        ours = model.state_dict()
        names = {key: rename(key, inverse(_TABLE)) for key in ours}
        shapes = {names[k]: v.shape if k != "position" else torch.Size((1, *v.shape)) for k, v in ours.items()}
        check(self.source, state, shapes)
        loaded = {key: _reshaped(key, state[name]).clone() for key, name in names.items()}
        self._fold_sign(loaded, prediction)
        model.load_state_dict(loaded, assign=True)
        return Published(model.eval(), path or self.path, prediction, None, None, settings, self.source)

    def export(self, model: nn.Module, projectors: nn.ModuleList | None, prediction: Kind | None) -> State:
        """Our model -> official keys and tensors (copies)."""
        if projectors is not None:
            raise CheckpointError(
                f"export_published: source {self.source!r} has no projectors; leave them out, or use 'repa'"
            )
        self._exportable(model)
        state = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self._fold_sign(state, self._kind(prediction))
        state["position"] = state["position"].unsqueeze(0)
        return {rename(k, inverse(_TABLE)): v for k, v in state.items()}

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
        depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
        side = math.isqrt(table.shape[1])
        if side * side != table.shape[1]:
            raise CheckpointError(
                f"source {self.source!r}: pos_embed has {table.shape[1]} tokens, which is no square grid"
            )
        q_norm = state.get("blocks.0.attn.q_norm.weight") if self.qk_norm else None
        return DiTSettings(
            depth=depth,
            width=width,
            heads=_heads(self.source, depth, width, shape.heads, q_norm),
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

    def _fold_sign(self, state: State, prediction: Kind) -> None:
        """A family whose time runs backwards has the opposite velocity; noise and score have the same sign."""
        if self.time[0] < 0 and prediction == "velocity":
            for key in ("final.linear.weight", "final.linear.bias"):
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
                f"it sees network time {s.time_scale:g} t + {s.time_offset:g}, the family {scale:g} t + {offset:g}, and a "
                f"time embedding cannot be remapped; train with time_scale={scale:g}, time_offset={offset:g}",
            ),
            (s.conditioning != "adaln_zero", f"its conditioning is {s.conditioning}; only adaln_zero was released"),
            (s.num_classes == 0, "it is unconditional; the official class has a label table"),
            (
                s.variance not in ("none", self.doubled),
                f"its variance is {s.variance}; the family has none or {self.doubled}",
            ),
            (s.qk_norm not in (("none", "layer") if self.qk_norm else ("none",)), f"its qk_norm is {s.qk_norm}"),
            (s.grid[0] != s.grid[1], f"its size {s.size[0]} x {s.size[1]} is not square"),
        )
        if reason := next((reason for holds, reason in refusals if holds), None):
            raise CheckpointError(f"export_published: this model is no {self.source!r}: {reason}")


def _heads(source: str, depth: int, width: int, given: int | None, q_norm: Tensor | None) -> int:
    told = _HEADS.get((depth, width)) if q_norm is None else width // len(q_norm)
    if q_norm is not None and given not in (None, told):
        raise CheckpointError(f"source {source!r}: heads={given}, but the qk-norm tensors say {told}")
    if given is None and told is None:
        raise CheckpointError(f"source {source!r}: {depth} blocks of width {width} are no published size; give heads=")
    heads = given or told
    if width % heads:
        raise CheckpointError(f"source {source!r}: heads={heads} does not divide width {width}")
    return heads


def _reshaped(key: str, tensor: Tensor) -> Tensor:
    return tensor.squeeze(0) if key == "position" else tensor


DIT = Official("dit", (999.0, 0.0), DDPM(), ("noise", "data"), "learned")
SIT = Official("sit", (-1.0, 1.0), Linear(), ("velocity", "noise", "score"), "dropped")
