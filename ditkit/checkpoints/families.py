"""Which family a state dict looks like: only to say so in an error, never to choose a converter."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from ditkit.checkpoints.keys import listed
from ditkit.checkpoints.published import CheckpointError

# fragments that must all occur -> families; the first row that fits wins
_MARKS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("joint_blocks.", "projectors."), ("repa-mmdit",)),
    (("joint_blocks.", "y_embedder."), ("sd3",)),
    (("joint_blocks.",), ("sd3", "repa-mmdit")),
    (("transformer_blocks.", "norm1_context."), ("diffusers-sd3",)),
    (("transformer_blocks.", ".norm1.linear."), ("diffusers-dit",)),
    (("s_embedder.",), ("ddt",)),
    (("blocks.", "adaLN_modulation.0."), ("improved-dit",)),
    (("x_embedder.", "projectors."), ("repa",)),
    (("x_embedder.", "decoder_blocks."), ("repa",)),
    (("x_embedder.", ".q_norm.bias"), ("repa",)),
    (("x_embedder.", "adaLN_modulation.1."), ("dit", "sit", "repa")),
)
_OTHERS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("patch.project.", "final.linear."), "a ditkit model; open it with ditkit.load"),
    (("quant_conv.", "decoder."), "an autoencoder (a codec)"),
    (("cls_token",), "a vision transformer (a teacher)"),
)


def looks_like(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of the sources whose keys `state` has; empty when it is none of them."""
    for fragments, families in _MARKS:
        if all(any(f in key for key in state) for f in fragments):
            return tuple(f for f in families if f != "repa" or len(families) == 1 or not _doubled(state))
    return ()


def _doubled(state: Mapping[str, Tensor]) -> bool:
    """Two output channels per input channel: REPA never has them."""
    patch, final = state.get("x_embedder.proj.weight"), state.get("final_layer.linear.bias")
    return patch is not None and final is not None and final.numel() == 2 * patch[0].numel()


def require(source: str, state: Mapping[str, Tensor], sources: Collection[str]) -> None:
    """Raise CheckpointError, naming the family that it looks like, when `state` is not of family `source`.

    sources: those that can be loaded; of the other families the error says that they cannot.
    """
    found = looks_like(state)
    if source in found:
        return
    if found:
        names = " or ".join(repr(f) for f in found)
        hint = "load it with that source" if set(found) & set(sources) else "there is no converter for it"
        raise CheckpointError(f"source {source!r}: this checkpoint looks like {names}; {hint}")
    for fragments, what in _OTHERS:
        if all(any(f in key for key in state) for f in fragments):
            raise CheckpointError(f"source {source!r}: this looks like {what}")
    raise CheckpointError(f"source {source!r}: this looks like no family that ditkit knows; its keys: {listed(state)}")
