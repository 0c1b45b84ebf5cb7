"""Published files <-> our models: the only place that knows foreign names, signs and time axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ditkit.checkpoints.ddt import DDT, IMPROVED_DIT
from ditkit.checkpoints.diffusers_dit import DIFFUSERS_DIT
from ditkit.checkpoints.diffusers_sd3 import DIFFUSERS_SD3
from ditkit.checkpoints.dit import DIT, SIT
from ditkit.checkpoints.families import require
from ditkit.checkpoints.files import Weights, folder_shape, read, select
from ditkit.checkpoints.published import CheckpointError, Converter, Published, Shape, State
from ditkit.checkpoints.repa import REPA
from ditkit.checkpoints.repa_mmdit import REPA_MMDIT
from ditkit.checkpoints.sd3 import SD3
from ditkit.diffusion.path import AnyPath
from ditkit.diffusion.prediction import Kind

_ALL: tuple[Converter, ...] = (DIT, SIT, REPA, DDT, IMPROVED_DIT, DIFFUSERS_DIT, SD3, DIFFUSERS_SD3, REPA_MMDIT)
SOURCES: dict[str, Converter] = {c.source: c for c in _ALL}


def load_published(
    checkpoint: str | Path | Mapping[str, Any],
    source: str,
    *,
    weights: Weights = "ema",
    path: AnyPath | None = None,
    prediction: Kind | None = None,
    **shape: Any,
) -> Published:
    """Load a published checkpoint into our conventions.

    checkpoint: a .pt, .ckpt or .safetensors file, a diffusers folder, or the dictionary that such a file holds (a state
    dict, or one with model / ema / state_dict inside; `weights` chooses). source: a name in SOURCES.
    shape: what tensors cannot tell (fields of `Shape`: heads, patch, encoder_blocks, null, align_depth, size; default:
    the published table).
    path, prediction: for a model trained otherwise than published. Tensors are copied; dtype and device stay.
    Raises CheckpointError (a ValueError): unknown source, unsafe file, wrong family, or keys that do not match, listed.
    """
    converter = _converter(source)
    shape = {k: v for k, v in shape.items() if v is not None}
    file = None if isinstance(checkpoint, Mapping) else Path(checkpoint)
    content = checkpoint if isinstance(checkpoint, Mapping) else read(checkpoint)
    told = folder_shape(file) if file else {}
    arguments = Shape.read(source, converter.arguments, shape, told)
    try:
        state, found = select(content, weights)
        require(source, state, SOURCES)
        published = converter.load(state, arguments, path, prediction)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}" if file else str(error)) from None
    return replace(published, weights=found)


def export_published(
    model: nn.Module,
    source: str,
    projectors: nn.ModuleList | None = None,
    *,
    prediction: Kind | None = None,
) -> State:
    """The exact inverse of `load_published`: official keys, equal tensors (copies), ready to save.

    prediction: what the model predicts, where it is not the family's published one. Raises CheckpointError with the
    reason when the official class could not load the model or would compute something else (another time map, say).
    """
    return _converter(source).export(model, projectors, prediction)


def _converter(source: str) -> Converter:
    if source not in SOURCES:
        raise CheckpointError(f"checkpoints: no source {source!r}; choose from {', '.join(SOURCES)}")
    return SOURCES[source]


__all__ = [
    "SOURCES",
    "CheckpointError",
    "Converter",
    "Published",
    "Shape",
    "State",
    "Weights",
    "export_published",
    "load_published",
    "read",
]
