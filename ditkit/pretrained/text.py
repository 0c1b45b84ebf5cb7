"""From settings, or the short text of a command line, to a text encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator

from ditkit.config import Settings
from ditkit.pretrained.missing import PretrainedMissing
from ditkit.pretrained.text_networks import (
    FOLDERS,
    PUBLISHED,
    ROLES,
    CLIPText,
    Place,
    Precision,
    Role,
    is_pipeline,
    load_network,
    widths_of,
)
from ditkit.pretrained.text_sd3 import LastCLIP, SD3Text
from ditkit.pretrained.text_toy import ToySD3Text
from ditkit.pretrained.tokens import Style
from ditkit.pretrained.toy import ToyTextEncoder

NONE = "none"


class TextSettings(Settings):
    """Which frozen networks read the prompts."""

    kind: Literal["toy", "toy-sd3", "clip", "sd3"] = Field(
        "toy",
        description="toy: random word vectors; toy-sd3: three such in SD3's places; clip: CLIP-L's last states (REPA); "
        "sd3: CLIP-L, CLIP-G and T5.",
    )
    source: str = Field(
        "",
        description="sd3: a diffusers pipeline (folder or hub id) or file with all encoders; clip: folder, id, file.",
    )
    clip_l: str = Field(
        "",
        description="sd3: folder, hub id or file; empty: from source, or published; none: left out.",
    )
    clip_g: str = Field("", description="sd3: likewise; toy-sd3: empty or none.")
    t5: str = Field("", description="sd3: likewise; toy-sd3: empty or none.")
    tokenizers: str = Field("", description="sd3, clip: pipeline whose tokenizers serve files; empty: the published.")
    t5_length: int = Field(
        77, ge=0, le=512, description="sd3: tokens of T5 (77 in training, diffusers samples at 256)."
    )
    widths: tuple[int, int, int] = Field(
        (768, 1280, 4096), description="sd3: widths of CLIP-L, CLIP-G and T5 where one is left out and no config says."
    )
    tokens: Style = Field("diffusers", description="sd3: how prompts are split: as diffusers or as Stability does.")
    precision: Precision = Field("fp32", description="sd3, clip: of the networks; what comes out is fp32.")
    batch: int = Field(1, ge=1, description="sd3, clip: prompts a pass; at 1 no prompt depends on its neighbours.")
    width: int = Field(48, ge=2, multiple_of=2, description="toys: width of a token and of the pooled vector.")
    length: int = Field(16, ge=1, description="toys: words that are read.")
    seed: int = Field(0, ge=0, description="toys: of the random vectors.")

    @model_validator(mode="after")
    def _check(self) -> TextSettings:
        own = FIELDS[self.kind]
        fields = type(self).model_fields
        odd = [n for n in fields if n not in ("kind", *own) and getattr(self, n) != fields[n].default]
        if odd:
            raise ValueError(f"text.kind {self.kind!r} takes no {odd[0]}; it takes {', '.join(own)}")
        if self.kind == "sd3" and self.t5 != NONE and not self.t5_length:
            raise ValueError("text.t5_length 0 means no tokens of T5 at all: set text.t5 to 'none' too")
        if self.kind == "toy-sd3" and (odd := [role for role in ROLES if getattr(self, role) not in ("", NONE)]):
            raise ValueError(f"text.{odd[0]}: the toy comes from nowhere; leave it empty, or 'none' leaves it out")
        return self

    @property
    def left_out(self) -> list[Role]:
        """The encoders whose places hold zeros because the settings say so."""
        return [role for role in ROLES if getattr(self, role) == NONE]

    @property
    def roles(self) -> tuple[Role, ...]:
        """The encoders that can be left out one by one; none where there is a single one."""
        return ROLES if self.kind in ("sd3", "toy-sd3") else ()

    def places(self) -> list[str]:
        """Folders, files and hub ids that its networks come from; none for toys."""
        if self.kind in TOYS:
            return []
        roles = ROLES if self.kind == "sd3" else ROLES[:1]
        return [own or self.source or PUBLISHED[role] for role in roles if (own := getattr(self, role)) != NONE]

    @classmethod
    def parse(cls, text: str) -> TextSettings:
        """'toy', 'toy-sd3', 'clip', 'sd3', 'clip:SOURCE', 'sd3:SOURCE' or the folder of an SD3 pipeline."""
        kind, _, source = text.partition(":")
        if kind in FIELDS:
            return cls(kind=kind, source=source)  # type: ignore[arg-type]
        if is_pipeline(text):
            return cls(kind="sd3", source=text)
        reason = "neither toy, toy-sd3, clip, sd3, clip:SOURCE or sd3:SOURCE nor the folder of an SD3 pipeline"
        raise PretrainedMissing(f"text encoder {text!r}", reason)


TOY = ("width", "length", "seed")
CLIP = ("source", "tokenizers", "precision", "batch")
SD3 = (*CLIP, *ROLES, "t5_length", "widths", "tokens")
FIELDS = {"toy": TOY, "toy-sd3": (*TOY, *ROLES), "clip": CLIP, "sd3": SD3}  # that a kind takes
TOYS = ("toy", "toy-sd3")


def load_text(
    spec: TextSettings | str, device: torch.device | str = "cpu"
) -> ToyTextEncoder | ToySD3Text | LastCLIP | SD3Text:
    """The text encoder. PretrainedMissing if a network cannot be had; one that is left out is never opened.

    Beside the protocol's surface: parts, notes (what to tell the user), device and to(device).
    """
    s = TextSettings.parse(spec) if isinstance(spec, str) else spec
    if s.kind == "toy":
        return ToyTextEncoder(s.width, s.length, s.seed).to(device)
    if s.kind == "toy-sd3":
        return ToySD3Text(s.width, s.length, s.seed, s.left_out).to(device)
    marks = "" if s.precision == "fp32" else f"-{s.precision}"
    if s.kind == "clip":
        network = load_network(_clip_place(s), precision=s.precision)
        return LastCLIP(cast(CLIPText, network), batch=s.batch, id=marks).to(device)
    marks += "" if s.tokens == "diffusers" else f"-{s.tokens}"
    places = {role: place for role in ROLES if (place := _place(s, role))}
    networks = {
        role: load_network(place, t5_length=s.t5_length, style=s.tokens, precision=s.precision)
        for role, place in places.items()
    }
    widths = {role: (n.width, n.pooled_width) for role, n in networks.items()}
    for role, known in zip(ROLES, s.widths, strict=True):
        if role not in widths:
            widths[role] = _width_of_missing(s, role, known)
    return SD3Text(networks, widths, t5_length=s.t5_length, batch=s.batch, id=marks).to(device)


def _clip_place(s: TextSettings) -> Place:
    """Of kind "clip"; a pipeline's text_encoder serves."""
    source = s.source or PUBLISHED["clip_l"]
    return Place("clip_l", source, FOLDERS["clip_l"] if is_pipeline(source) else "", s.tokenizers)


def _place(s: TextSettings, role: Role) -> Place | None:
    """Where an encoder of SD3 comes from, None if it is left out (by the settings, or by the pipeline itself)."""
    own = getattr(s, role)
    if own == NONE:
        return None
    source = own or s.source or PUBLISHED[role]
    if Path(source).expanduser().is_file():
        return Place(role, source, "", s.tokenizers)
    inside = is_pipeline(source) or (not own and bool(s.source))
    if inside and _index(source).get(FOLDERS[role], ("?",))[0] is None:
        if own:
            raise PretrainedMissing(f"text encoder {role} from {source!r}", "that pipeline has none")
        return None
    return Place(role, source, FOLDERS[role] if inside else "", s.tokenizers)


def _width_of_missing(s: TextSettings, role: Role, known: int) -> tuple[int, int]:
    """(width, pooled width) of an encoder that is left out: from the pipeline's configs, else the settings."""
    pooled = 0 if role == "t5" else known
    if not is_pipeline(s.source):
        return known, pooled
    folder = Path(s.source).expanduser()
    if (folder / FOLDERS[role] / "config.json").is_file():
        return widths_of(Place(role, s.source, FOLDERS[role]))
    transformer = folder / "transformer" / "config.json"
    if role == "t5" and transformer.is_file():
        return json.loads(transformer.read_text())["joint_attention_dim"], 0
    return known, pooled


def _index(source: str) -> dict[str, Any]:
    """model_index.json of a local pipeline; empty for one on the hub."""
    return json.loads((Path(source).expanduser() / "model_index.json").read_text()) if is_pipeline(source) else {}
