"""Published REPA checkpoints (SiT with projectors) <-> our DiT and a list of projectors.

Time 1 = noise and velocity eps - x are ours already: network time = t, no sign. Projectors live apart from the model.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ditkit.checkpoints.dit import Official
from ditkit.checkpoints.projectors import attach, official_projectors, split_projectors
from ditkit.checkpoints.published import CheckpointError, Published, Shape, State
from ditkit.diffusion.path import AnyPath, Linear
from ditkit.diffusion.prediction import Kind
from ditkit.models import SIZES

# arXiv 2410.06940 and the authors' correction (REPA issue 5): B aligns block 4, L and XL block 8
ALIGN_DEPTHS = {(SIZES[f"{n}/2"]["depth"], SIZES[f"{n}/2"]["width"]): d for n, d in (("B", 4), ("L", 8), ("XL", 8))}
_PREFIX = "projectors."
_BODY = Official("repa", (1.0, 0.0), Linear(), ("velocity",), None, qk_norm=True)


@dataclass(frozen=True)
class Repa:
    """The REPA format; files with legacy `decoder_blocks.` keys load too and are exported with today's keys."""

    source: str = "repa"
    arguments: tuple[str, ...] = ("heads", "null", "align_depth")

    def load(self, state: State, shape: Shape, path: AnyPath | None, prediction: Kind | None) -> Published:
        """Official tensors -> model, projectors (None where the file has none) and the block that they read."""
        state, legacy_depth = modern_keys(state)
        body, heads = split_projectors(state, _PREFIX)
        published = _BODY.load(body, shape, path, prediction)
        s = published.settings
        depth = legacy_depth or ALIGN_DEPTHS.get((s.depth, s.width))
        published = attach(published, heads, _PREFIX, shape.align_depth, depth)
        if heads and legacy_depth not in (None, published.align_depth):
            raise CheckpointError(
                f"source 'repa': align_depth={published.align_depth} does not fit {legacy_depth} blocks"
            )
        return published

    def export(self, model: nn.Module, projectors: nn.ModuleList | None, prediction: Kind | None) -> State:
        """Our model and projectors -> official keys and tensors."""
        state = _BODY.export(model, None, prediction)
        if projectors is None:
            return state
        return state | official_projectors(self.source, projectors, _PREFIX, len(state["x_embedder.proj.bias"]))


def modern_keys(state: State) -> tuple[State, int | None]:
    """Legacy `decoder_blocks.j` is block j + E, with E = number of `blocks.`; returns E too, None for modern files."""
    if not any(k.startswith("decoder_blocks.") for k in state):
        return state, None
    encoder = len({k.split(".")[1] for k in state if k.startswith("blocks.")})

    def modern(key: str) -> str:
        if not key.startswith("decoder_blocks."):
            return key
        _, index, rest = key.split(".", 2)
        return f"blocks.{int(index) + encoder}.{rest}"

    return {modern(k): v for k, v in state.items()}, encoder


REPA = Repa()
