"""One frozen text network: CLIP's text tower or T5's encoder, from a folder, the hub, or one of Stability's files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ditkit.pretrained.hub import check_there, fetch, is_local, quiet
from ditkit.pretrained.identity import weight_hash
from ditkit.pretrained.missing import PretrainedMissing, optional
from ditkit.pretrained.text_file import read_text_file
from ditkit.pretrained.tokens import Style, Tokenizer

Role = Literal["clip_l", "clip_g", "t5"]
Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ROLES: tuple[Role, ...] = ("clip_l", "clip_g", "t5")
PUBLISHED = {
    "clip_l": "openai/clip-vit-large-patch14",
    "clip_g": "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
    "t5": "google/t5-v1_1-xxl",
}
# T5 v1.1 has the vocabulary of T5, whose tokenizer is there in a form that needs no sentencepiece.
TOKENIZERS = {"clip_l": PUBLISHED["clip_l"], "clip_g": PUBLISHED["clip_l"], "t5": "google-t5/t5-small"}
FOLDERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5": "text_encoder_3"}  # of a diffusers pipeline
CLIP_TYPES, T5_TYPES = ("clip", "clip_text_model"), ("t5",)


class Encoded(NamedTuple):
    """What a network makes of prompts, in float32: states (B, L, width), pooled (B, pooled_width) or None; the cuts."""

    states: Tensor
    pooled: Tensor | None = None
    cuts: Sequence[str] = ()


class CLIPText:
    """CLIP's text tower. Padding is attended behind the causal mask, as in SD3 and in Stable Diffusion.

    projected: whether the pooled vector is multiplied by text_projection (CLIP-G; CLIP-L's of SD3 is the identity).
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, *, projected: bool):
        self.model, self.tokenizer, self.projected = model.eval().requires_grad_(False), tokenizer, projected
        config = model.config
        self.width: int = config.hidden_size
        self.pooled_width: int = config.projection_dim if projected else config.hidden_size
        self.id = f"{weight_hash(model.state_dict())}.{tokenizer.id}"

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], *, last: bool = False) -> Encoded:
        """last False: the second to last block's output, no final LayerNorm (SD3). True: the last, normed (REPA)."""
        ids, cuts = self.tokenizer(prompts)
        ids = ids.to(self.model.device)
        with torch.autocast(ids.device.type, enabled=False):
            out = self.model.text_model(input_ids=ids, output_hidden_states=not last)
            pooled = self.model.text_projection(out.pooler_output) if self.projected else out.pooler_output
        states = out.last_hidden_state if last else out.hidden_states[-2]
        return Encoded(states.float(), pooled.float(), cuts)


class T5Text:
    """T5's encoder: the last states after its final norm. No mask, so padding is attended, as in SD3."""

    pooled_width = 0

    def __init__(self, model: Any, tokenizer: Tokenizer):
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.width: int = model.config.d_model
        self.id = f"{weight_hash(model.state_dict())}.{tokenizer.id}"

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Encoded:
        """Prompts -> states; pooled is None."""
        ids, cuts = self.tokenizer(prompts)
        ids = ids.to(self.model.device)
        with torch.autocast(ids.device.type, enabled=False):
            return Encoded(self.model(input_ids=ids).last_hidden_state.float(), None, cuts)


@dataclass(frozen=True)
class Place:
    """Where a network comes from: hub id, folder or file, perhaps a folder within (of a diffusers pipeline).

    tokenizers: a pipeline whose tokenizers serve a file, which has none; "": the published ones.
    """

    role: Role
    source: str
    folder: str = ""
    tokenizers: str = ""

    @property
    def what(self) -> str:
        """As errors name it."""
        inside = f" ({self.folder})" if self.folder else ""
        return f"text encoder {self.role} from {self.source!r}{inside}"

    @property
    def is_file(self) -> bool:
        """Whether it is one of Stability's files."""
        return Path(self.source).expanduser().is_file()

    @property
    def tokenizer(self) -> tuple[str, str]:
        """Source and folder of its tokenizer."""
        if self.folder:
            return self.source, self.folder.replace("text_encoder", "tokenizer")
        if self.is_file and self.tokenizers:
            return self.tokenizers, FOLDERS[self.role].replace("text_encoder", "tokenizer")
        return TOKENIZERS[self.role] if self.is_file or self.source == PUBLISHED["t5"] else self.source, ""


def load_network(
    place: Place, *, t5_length: int = 77, style: Style = "diffusers", precision: Precision = "fp32"
) -> CLIPText | T5Text:
    """The network with its tokenizer, on the CPU. PretrainedMissing in one line if it cannot be had."""
    check_there(place.source, place.what)
    transformers = optional("transformers", place.what, place.source)
    model, projected = _model(transformers, place, DTYPES[precision])
    if place.role == "t5":
        return T5Text(model, load_tokenizer(place, t5_length, style))
    return CLIPText(model, load_tokenizer(place, model.config.max_position_embeddings, style), projected=projected)


def _model(transformers: Any, place: Place, dtype: torch.dtype) -> tuple[Any, bool]:
    """The transformers model, complete, and whether its pooled vector is the projected one."""
    cls = transformers.T5EncoderModel if place.role == "t5" else transformers.CLIPTextModelWithProjection
    arguments: dict[str, Any] = {"output_loading_info": True, "dtype": dtype, "ignore_mismatched_sizes": True}
    with quiet():
        if place.is_file:
            config, state = read_text_file(place.source, place.role, place.what)
            model, info = cls.from_pretrained(None, config=cls.config_class(**config), state_dict=state, **arguments)
            named = False  # CLIP-L's pooled vector is the plain one there, whatever the file holds
        else:
            found = read_config(place)
            named = "CLIPTextModelWithProjection" in (found.architectures or ())
            config = _text_config(found)

            def load(source: str, local_files_only: bool) -> tuple[Any, dict]:
                more = {"subfolder": place.folder} if place.folder else {}
                return cls.from_pretrained(
                    source, config=config, local_files_only=local_files_only, **more, **arguments
                )

            model, info = fetch(load, place.source, place.what)
    _refuse(place, "tensors of another size than the config says", {entry[0] for entry in info["mismatched_keys"]})
    missing = set(info["missing_keys"])
    projected = place.role == "clip_g" or (named and "text_projection.weight" not in missing)
    _refuse(place, "weights are missing", missing if projected else missing - {"text_projection.weight"})
    if place.is_file:
        _refuse(place, "unknown tensors", set(info["unexpected_keys"]))
    return model, projected


def _refuse(place: Place, reason: str, keys: set[str]) -> None:
    if keys:
        names = ", ".join(sorted(keys)[:3])
        raise PretrainedMissing(place.what, f"{reason}: {names}{' ...' if len(keys) > 3 else ''}")


def read_config(place: Place) -> Any:
    """The transformers config at a folder or hub id, checked to be of the role's kind; no weights are touched."""
    auto = optional("transformers", place.what, place.source).AutoConfig

    def load(source: str, local_files_only: bool) -> Any:
        return auto.from_pretrained(source, subfolder=place.folder, local_files_only=local_files_only)

    config = fetch(load, place.source, place.what)
    if config.model_type not in (T5_TYPES if place.role == "t5" else CLIP_TYPES):
        wanted = "T5" if place.role == "t5" else "CLIP"
        raise PretrainedMissing(place.what, f"a {config.model_type} model, where {wanted} is expected")
    return config


def widths_of(place: Place) -> tuple[int, int]:
    """(width, pooled width) that the network would have, from its config alone."""
    config = read_config(place)
    if place.role == "t5":
        return config.d_model, 0
    named = place.role == "clip_g" or "CLIPTextModelWithProjection" in (config.architectures or ())
    config = _text_config(config)
    return config.hidden_size, config.projection_dim if named else config.hidden_size


def _text_config(config: Any) -> Any:
    """The text half of a whole CLIP's config, with the projection's width, which old files state only at the top."""
    if config.model_type != "clip":
        return config
    config.text_config.projection_dim = config.projection_dim
    return config.text_config


def load_tokenizer(place: Place, length: int, style: Style = "diffusers") -> Tokenizer:
    """The tokenizer of a network, giving `length` ids. CLIP-G pads with id 0 unless a pipeline's tokenizer says so."""
    source, folder = place.tokenizer
    what = f"{place.what}, its tokenizer"
    check_there(source, what)
    auto = optional("transformers", what, source).AutoTokenizer

    def load(where: str, local_files_only: bool) -> Any:
        return auto.from_pretrained(where, subfolder=folder, local_files_only=local_files_only)

    with quiet():
        found = fetch(load, source, what)
    own = place.role != "clip_g" or bool(folder)
    if found.eos_token_id is None or found.pad_token_id is None:
        raise PretrainedMissing(what, "it has no end or no padding token")
    return Tokenizer(found, place.role, length, pad=None if own else 0, style=style)


def is_pipeline(source: str) -> bool:
    """Whether `source` is a local folder of a diffusers pipeline."""
    return is_local(source) and (Path(source).expanduser() / "model_index.json").is_file()
