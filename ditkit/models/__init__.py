"""Networks, one published architecture per file; every one of them is a `Denoiser`."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from ditkit.config import Settings
from ditkit.models.ddt import DDT, DDT_SIZES, DDTSettings, ddt_settings
from ditkit.models.dit import SIZES, DiT, DiTSettings, dit_settings
from ditkit.protocols import Condition, Output, SelfCondition

AnyModel = Annotated[DiTSettings | DDTSettings, Field(discriminator="kind")]

_MODELS: dict[type[Settings], type[nn.Module]] = {DiTSettings: DiT, DDTSettings: DDT}


def build_model(settings: AnyModel, *, generator: torch.Generator | None = None) -> nn.Module:
    """The network that `settings` describes, with its published initialisation drawn from `generator`."""
    return _MODELS[type(settings)](settings, generator=generator)


__all__ = [
    "DDT", "DDT_SIZES", "SIZES", "AnyModel", "Condition", "DDTSettings", "DiT", "DiTSettings", "Output",
    "SelfCondition", "build_model", "ddt_settings", "dit_settings",
]  # fmt: skip
