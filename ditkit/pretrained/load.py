"""From settings, or the short text of a command line, to a teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator

from ditkit.config import Settings
from ditkit.pretrained.hub import check_there, fetch, is_local
from ditkit.pretrained.missing import PretrainedMissing, optional
from ditkit.pretrained.toy import ToyExtractor
from ditkit.pretrained.vision import FAMILIES, VisionTeacher, load_vision
from ditkit.pretrained.vit import CARD, SelfTaught

# REPA's names of its teachers -> (kind, published weights)
TEACHERS = {
    **{
        f"dinov2{reg}-vit-{size}": (f"dinov2{'_reg' if reg else ''}", f"facebook/dinov2{hub}-{word}")
        for reg, hub in (("", ""), ("reg", "-with-registers"))
        for size, word in (("s", "small"), ("b", "base"), ("l", "large"), ("g", "giant"))
    },
    "dinov1-vit-b": ("dinov1", "facebook/dino-vitb16"),
    "mae-vit-l": ("mae", "facebook/vit-mae-large"),
    "clip-vit-L": ("clip", "openai/clip-vit-large-patch14"),
    "siglip-vit-l": ("siglip", "google/siglip-large-patch16-256"),
    "jepa-vit-h": ("ijepa", "facebook/ijepa_vith14_1k"),
}


class TeacherSettings(Settings):
    """Which frozen network gives the targets."""

    kind: Literal["dinov2", "dinov2_reg", "dinov1", "mocov3", "mae", "clip", "siglip", "ijepa", "selftaught", "toy"] = (
        Field("dinov2", description="Family: preprocessing and features follow from it.")
    )
    source: str = Field("", description="Hub id, folder, or published file; empty: the published one of this kind.")

    @model_validator(mode="after")
    def _check(self) -> TeacherSettings:
        if self.kind == "selftaught" and not self.source:
            raise ValueError("teacher.kind 'selftaught' needs source, the folder that `ditkit teacher` wrote")
        return self

    @classmethod
    def parse(cls, text: str) -> TeacherSettings:
        """'toy', one of REPA's names ('dinov2-vit-b'), KIND:SOURCE, a `ditkit teacher` folder, a hub id or a folder."""
        if text == "toy":
            return cls(kind="toy")
        named = {name.lower(): found for name, found in TEACHERS.items()}  # REPA spells one of them clip-vit-L
        if text.lower() in named:
            kind, source = named[text.lower()]
            return cls(kind=kind, source=source)  # type: ignore[arg-type]
        kind, _, source = text.partition(":")
        if kind in FAMILIES:
            return cls(kind=kind, source=source)  # type: ignore[arg-type]
        if (Path(text).expanduser() / CARD).is_file():
            return cls(kind="selftaught", source=text)
        return cls(kind=kind_of(text), source=text)  # type: ignore[arg-type]


def kind_of(source: str) -> str:
    """The family of a folder or hub id, from its config.json; a plain ViT counts as DINOv1 (same preprocessing)."""
    what = f"teacher {source!r}"
    config = Path(source).expanduser() / "config.json"
    if config.is_file():
        model_type = json.loads(config.read_text()).get("model_type")
    elif is_local(source):
        check_there(source, what)
        raise PretrainedMissing(what, f"no teacher: neither {CARD} nor config.json is there")
    else:
        auto = optional("transformers", what, source).AutoConfig
        model_type = fetch(auto.from_pretrained, source, what).model_type
    for kind, family in FAMILIES.items():
        if model_type in family.types:
            return kind
    raise PretrainedMissing(what, f"a {model_type} model is none of {', '.join(FAMILIES)}")


def load_teacher(
    spec: TeacherSettings | str, device: torch.device | str = "cpu"
) -> SelfTaught | VisionTeacher | ToyExtractor:
    """The teacher, ready to be called on uint8 images. PretrainedMissing if it cannot be had."""
    settings = TeacherSettings.parse(spec) if isinstance(spec, str) else spec
    if settings.kind == "toy":
        return ToyExtractor()
    if settings.kind == "selftaught":
        return SelfTaught.load(settings.source, device)
    return load_vision(settings.kind, settings.source).to(device)
