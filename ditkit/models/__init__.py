"""Networks, one published architecture per file; every one of them is a `Denoiser`."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from ditkit.config import Settings
from ditkit.models.cross_dit import CrossDiT, CrossDiTSettings
from ditkit.models.ddt import DDT, DDT_SIZES, DDTSettings, ddt_settings
from ditkit.models.dit import SIZES, DiT, DiTSettings, dit_settings
from ditkit.models.joint_dit import JointDiT, JointDiTSettings
from ditkit.models.mmdit import SD3_SIZES, MMDiT, MMDiTSettings, mmdit_settings, repa_mmdit_settings
from ditkit.models.uvit import UViT, UViTSettings
from ditkit.protocols import Condition, Output, SelfCondition

AnyModel = Annotated[
    DiTSettings | DDTSettings | MMDiTSettings | JointDiTSettings | CrossDiTSettings | UViTSettings,
    Field(discriminator="kind"),
]

_MODELS: dict[type[Settings], type[nn.Module]] = {
    DiTSettings: DiT, DDTSettings: DDT, MMDiTSettings: MMDiT, JointDiTSettings: JointDiT, CrossDiTSettings: CrossDiT,
    UViTSettings: UViT,
}  # fmt: skip


def build_model(settings: AnyModel, *, generator: torch.Generator | None = None) -> nn.Module:
    """The network that `settings` describes, with its published initialisation drawn from `generator`."""
    return _MODELS[type(settings)](settings, generator=generator)


def reads_text(settings: AnyModel) -> bool:
    """Whether the network is conditioned on text (and has no classes)."""
    return not isinstance(settings, (DiTSettings, DDTSettings))


def token_side(settings: AnyModel) -> int:
    """Latent numbers a side of one of the network's tokens: the patch, or more where a U-Net lies before them."""
    return settings.size[0] // settings.grid[0]


def example_condition(settings: AnyModel, n: int, device: torch.device | str = "cpu") -> Condition:
    """A condition of the form that the network takes, for n samples: zeros, as costs and memory are measured with."""
    if not isinstance(settings, (DiTSettings, DDTSettings)):
        text = torch.zeros(n, settings.text_length, settings.text_width, device=device)
        pooled = torch.zeros(n, settings.pooled_width, device=device) if settings.pooled_width else None
        return Condition(text=text, pooled=pooled)
    if settings.num_classes:
        return Condition(label=torch.zeros(n, dtype=torch.long, device=device))
    return Condition()


__all__ = [
    "DDT", "DDT_SIZES", "SD3_SIZES", "SIZES", "AnyModel", "Condition", "CrossDiT", "CrossDiTSettings", "DDTSettings",
    "DiT", "DiTSettings", "JointDiT", "JointDiTSettings", "MMDiT", "MMDiTSettings", "Output", "SelfCondition", "UViT",
    "UViTSettings", "build_model", "ddt_settings", "dit_settings", "example_condition", "mmdit_settings", "reads_text",
    "repa_mmdit_settings", "token_side",
]  # fmt: skip
