"""REPA's text-to-image MMDiT with its projectors <-> our MMDiT: Stability's layout, network time t, heads of 32."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ditkit.checkpoints.projectors import attach, official_projectors, split_projectors
from ditkit.checkpoints.published import Published, Shape, State
from ditkit.checkpoints.sd3 import Official
from ditkit.diffusion.path import AnyPath
from ditkit.diffusion.prediction import Kind

_ALIGN_DEPTH = 8  # encoder_depth of the released script
_PREFIX = "projectors."
_SIDE = 16  # tokens a side of its position table, and
_TEXT = 768  # width of CLIP-L's tokens: both stand in the official class
_BODY = Official("repa-mmdit", 1.0, 32, (_SIDE, 1.0), side=_SIDE)


@dataclass(frozen=True)
class RepaMMDiT:
    """The format of REPA's text-to-image script; like its class it takes no pooled vector."""

    source: str = "repa-mmdit"
    arguments: tuple[str, ...] = ("align_depth",)

    def load(self, state: State, shape: Shape, path: AnyPath | None, prediction: Kind | None) -> Published:
        """Official tensors -> model, projectors (None where the file has none) and the block that they read."""
        body, heads = split_projectors(state, _PREFIX)
        published = _BODY.load(body, shape, path, prediction)
        return attach(published, heads, _PREFIX, shape.align_depth, _ALIGN_DEPTH)

    def export(self, model: nn.Module, projectors: nn.ModuleList | None, prediction: Kind | None) -> State:
        """Our model and projectors -> official keys and tensors."""
        s = _BODY.exportable(model).settings
        refusals = (
            (s.pooled_width > 0, "it takes a pooled text vector; the official class has none"),
            (s.dual != (), "it has dual attention"),
            (s.text_width != _TEXT, f"its text is {s.text_width} wide; the official class reads {_TEXT}"),
            (
                (s.table or max(s.grid)) != _SIDE,
                f"its position table has {s.table or max(s.grid)} places a side; the official class has {_SIDE}",
            ),
        )
        if reason := next((reason for holds, reason in refusals if holds), None):
            raise _BODY.refusal(reason)
        state = _BODY.export(model, None, prediction)
        if projectors is None:
            return state
        return state | official_projectors(self.source, projectors, _PREFIX, s.width)


REPA_MMDIT = RepaMMDiT()
