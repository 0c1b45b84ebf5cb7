"""Alignment projectors inside a published file <-> a ModuleList of ours, whatever prefix their keys have there."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ditkit.align import Projector
from ditkit.checkpoints.keys import check, need
from ditkit.checkpoints.published import CheckpointError, Published, State


def split_projectors(state: State, prefix: str) -> tuple[State, State]:
    """(the other keys, the keys that begin with `prefix`, without it)."""
    heads = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return {k: v for k, v in state.items() if not k.startswith(prefix)}, heads


def attach(published: Published, heads: State, prefix: str, given: int | None, default: int | None) -> Published:
    """`published` with the projectors of `heads` and the block that they read; as it is where there are none.

    heads: `i.0|2|4.weight|bias`, one projector an i. given: the caller's align_depth; default: the published one.
    Raises CheckpointError for keys that do not fit, an unknown depth or one that the model does not have.
    """
    source, blocks, width = published.source, published.settings.depth, published.settings.width
    if not heads:
        if given:
            raise CheckpointError(f"source {source!r}: align_depth was given, but the checkpoint has no projectors")
        return published
    projectors = _projectors(source, heads, prefix)
    depth = given or default
    if depth is None:
        raise CheckpointError(
            f"source {source!r}: {blocks} blocks of width {width} are no published size; give align_depth="
        )
    if depth > blocks:
        raise CheckpointError(f"source {source!r}: align_depth={depth} does not fit {blocks} blocks")
    return replace(published, projectors=projectors.eval(), align_depth=depth)


def official_projectors(source: str, projectors: nn.ModuleList, prefix: str, width: int) -> State:
    """Official keys and copies of the tensors; CheckpointError unless all read `width` through one hidden width."""
    heads = projectors.state_dict()
    first = {tuple(value.shape) for key, value in heads.items() if key.split(".", 1)[1] == "0.weight"}
    if len(first) != 1 or first.pop()[1] != width:
        raise CheckpointError(
            f"export_published: the projectors do not fit source {source!r}: all must read the model's tokens of width "
            f"{width} through one hidden width"
        )
    return {f"{prefix}{key}": value.detach().clone() for key, value in heads.items()}


def _projectors(source: str, state: State, prefix: str) -> nn.ModuleList:
    """`i.0|2|4.weight|bias` -> one Projector an i, sizes from the tensors."""
    named = {f"{prefix}{k}": v for k, v in state.items()}
    count = len({k.split(".")[0] for k in state})
    need(source, named, *(f"{prefix}{i}.{layer}.weight" for i in range(count) for layer in (0, 4)))
    with torch.device("meta"):
        projectors = nn.ModuleList(
            Projector(state[f"{i}.0.weight"].shape[1], len(state[f"{i}.4.weight"]), len(state[f"{i}.0.weight"]))
            for i in range(count)
        )
    check(source, named, {f"{prefix}{k}": v for k, v in projectors.state_dict().items()})
    projectors.load_state_dict({k: v.clone() for k, v in state.items()}, assign=True)
    return projectors
