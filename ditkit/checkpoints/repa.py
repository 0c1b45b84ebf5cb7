"""Published REPA checkpoints (SiT with projectors) <-> our DiT and a list of projectors.

Time 1 = noise and velocity eps - x are ours already: network time = t, no sign. Projectors live apart from the model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ditkit.align import Projector
from ditkit.checkpoints.dit import Official
from ditkit.checkpoints.keys import check, need
from ditkit.checkpoints.published import CheckpointError, Published, Shape, State
from ditkit.diffusion.path import AnyPath, Linear
from ditkit.diffusion.prediction import Kind
from ditkit.models import SIZES

# arXiv 2410.06940 and the authors' correction (REPA issue 5): B aligns block 4, L and XL block 8
_ALIGN = {(SIZES[f"{n}/2"]["depth"], SIZES[f"{n}/2"]["width"]): d for n, d in (("B", 4), ("L", 8), ("XL", 8))}
_BODY = Official("repa", (1.0, 0.0), Linear(), ("velocity",), None, qk_norm=True)


@dataclass(frozen=True)
class Repa:
    """The REPA format; files with legacy `decoder_blocks.` keys load too and are exported with today's keys."""

    source: str = "repa"
    arguments: tuple[str, ...] = ("heads", "null", "align_depth")

    def load(self, state: State, shape: Shape, path: AnyPath | None, prediction: Kind | None) -> Published:
        """Official tensors -> model, projectors (None where the file has none) and the block that they read."""
        state, legacy_depth = modern_keys(state)
        body = {k: v for k, v in state.items() if not k.startswith("projectors.")}
        heads = {k.removeprefix("projectors."): v for k, v in state.items() if k.startswith("projectors.")}
        published = _BODY.load(body, shape, path, prediction)
        if not heads:
            if shape.align_depth:
                raise CheckpointError("source 'repa': align_depth was given, but the checkpoint has no projectors")
            return published
        projectors = _projectors(heads)
        s = published.settings
        depth = shape.align_depth or legacy_depth or _ALIGN.get((s.depth, s.width))
        if depth is None:
            raise CheckpointError(
                f"source 'repa': {s.depth} blocks of width {s.width} are no published size; give align_depth="
            )
        if depth > s.depth or legacy_depth not in (None, depth):
            raise CheckpointError(f"source 'repa': align_depth={depth} does not fit {legacy_depth or s.depth} blocks")
        return replace(published, projectors=projectors.eval(), align_depth=depth)

    def export(self, model: nn.Module, projectors: nn.ModuleList | None, prediction: Kind | None) -> State:
        """Our model and projectors -> official keys and tensors."""
        state = _BODY.export(model, None, prediction)
        if projectors is None:
            return state
        heads, width = projectors.state_dict(), len(state["x_embedder.proj.bias"])
        first = {tuple(value.shape) for key, value in heads.items() if key.split(".", 1)[1] == "0.weight"}
        if len(first) != 1 or first.pop()[1] != width:
            raise CheckpointError(
                "export_published: the projectors do not fit source 'repa': all must read the model's tokens of width "
                f"{width} through one hidden width"
            )
        return state | {f"projectors.{key}": value.detach().clone() for key, value in heads.items()}


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


def _projectors(state: dict[str, Tensor]) -> nn.ModuleList:
    """`i.0|2|4.weight|bias` -> one Projector an encoder, sizes from the tensors."""
    count = len({k.split(".")[0] for k in state})
    weights = [f"{i}.{layer}.weight" for i in range(count) for layer in (0, 4)]
    need("repa", {f"projectors.{k}": v for k, v in state.items()}, *(f"projectors.{w}" for w in weights))
    with torch.device("meta"):
        projectors = nn.ModuleList(
            Projector(state[f"{i}.0.weight"].shape[1], len(state[f"{i}.4.weight"]), len(state[f"{i}.0.weight"]))
            for i in range(count)
        )
    expected = {f"projectors.{k}": v for k, v in projectors.state_dict().items()}
    check("repa", {f"projectors.{k}": v for k, v in state.items()}, expected)
    projectors.load_state_dict({k: v.clone() for k, v in state.items()}, assign=True)
    return projectors


REPA = Repa()
