"""Networks, one published architecture per file; every one of them is a `Denoiser`."""

from __future__ import annotations

import torch
from torch import nn

from ditkit.config import Settings
from ditkit.models.dit import SIZES, DiT, DiTSettings, dit_settings
from ditkit.protocols import Condition, Output

AnyModel = DiTSettings  # a union discriminated by `kind` as soon as there are two

_MODELS: dict[type[Settings], type[nn.Module]] = {DiTSettings: DiT}


def build_model(settings: AnyModel, *, generator: torch.Generator | None = None) -> nn.Module:
    """The network that `settings` describes, with its published initialisation drawn from `generator`."""
    return _MODELS[type(settings)](settings, generator=generator)


__all__ = ["SIZES", "AnyModel", "Condition", "DiT", "DiTSettings", "Output", "build_model", "dit_settings"]
