"""Published .pth files of plain ViTs (MoCo-v3, DINOv1, MAE, I-JEPA) in the keys of transformers' hub files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ditkit.pretrained.missing import PretrainedMissing, first_line

# MoCo-v3's ViT-S has 12 heads, unlike everybody else's.
HEADS = {"mocov3": {384: 12, 768: 12, 1024: 16}, "dinov1": {384: 6, 768: 12}, "mae": {768: 12, 1024: 16, 1280: 16}}
HEADS["ijepa"] = {1280: 16, 1408: 16}

# Keys of the released MoCo-v3 files that carry their block's number once too often: (as found, as meant).
SLIPS = (
    ("blocks.13.norm13.", "blocks.13.norm1."),
    ("blocks.13.mlp.fc13.", "blocks.13.mlp.fc1."),
    ("blocks.14.norm14.", "blocks.14.norm2."),
    ("blocks.14.mlp.fc14.", "blocks.14.mlp.fc2."),
)
CONTAINERS = ("state_dict", "model", "encoder")  # MoCo-v3, MAE, I-JEPA; DINOv1 is flat
PREFIXES = ("module.base_encoder.", "module.", "base_encoder.")
DROPPED = ("head.", "module.momentum_encoder.", "module.predictor.", "decoder_", "mask_token")
RENAMED = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "norm.": "layernorm.",
}
BLOCK = {
    "norm1.": "layernorm_before.",
    "attn.proj.": "attention.output.dense.",
    "norm2.": "layernorm_after.",
    "mlp.fc1.": "intermediate.dense.",
    "mlp.fc2.": "output.dense.",
}


def read_vit_file(path: str | Path, kind: str, what: str) -> tuple[dict, dict[str, Tensor]]:
    """(arguments of the transformers config, state in hub keys) of a published file; no code in it is ever run."""
    path = Path(path).expanduser()
    if kind not in HEADS:
        raise PretrainedMissing(what, f"{kind} loads from a hub id or a folder, not from a file")
    try:
        if path.suffix == ".safetensors":
            found: Mapping = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors name damage and unsafe pickles in many ways
        raise PretrainedMissing(
            what, f"{path.name} is damaged or holds more than tensors: {first_line(error)}"
        ) from error
    for name in CONTAINERS:
        if isinstance(found.get(name), Mapping):
            found = found[name]
            break
    try:
        return convert_vit(found, kind)
    except (KeyError, ValueError) as error:
        raise PretrainedMissing(what, f"{path.name} is no {kind} file: {first_line(error)}") from error


def convert_vit(found: Mapping[str, Tensor], kind: str) -> tuple[dict, dict[str, Tensor]]:
    """timm-style keys -> (config arguments, hub keys). Unknown keys are an error; heads and decoders are dropped."""
    state: dict[str, Tensor] = {}
    unknown = []
    for key, value in found.items():
        if key.startswith(DROPPED) or not isinstance(value, Tensor):
            continue
        name = _plain(key)
        if name.startswith(DROPPED):
            continue
        converted = _convert_key(name, value)
        if not converted:
            unknown.append(key)
        state.update(converted)
    if unknown:
        raise ValueError(f"unknown keys {', '.join(sorted(unknown)[:3])}{' ...' if len(unknown) > 3 else ''}")
    missing = {"embeddings.position_embeddings", "embeddings.patch_embeddings.projection.weight"} - state.keys()
    if missing:
        raise ValueError(f"no {', '.join(sorted(missing))}")
    return _config(state, kind), state


def _plain(key: str) -> str:
    for prefix in PREFIXES:
        if key.startswith(prefix):
            key = key.removeprefix(prefix)
            break
    for found, meant in SLIPS:
        if key.startswith(found):
            return meant + key.removeprefix(found)
    return key


def _convert_key(name: str, value: Tensor) -> dict[str, Tensor]:
    for old, new in RENAMED.items():
        if name == old or (old.endswith(".") and name.startswith(old)):
            return {new + name.removeprefix(old): value}
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if not match:
        return {}
    layer, rest = f"encoder.layer.{match[1]}.", match[2]
    if rest.startswith("attn.qkv."):  # one (3 D, D) matrix, rows in the order query, key, value
        end = rest.removeprefix("attn.qkv.")
        parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
        return {f"{layer}attention.attention.{part}.{end}": rows.contiguous() for part, rows in parts}
    for old, new in BLOCK.items():
        if rest.startswith(old):
            return {layer + new + rest.removeprefix(old): value}
    return {}


def _config(state: Mapping[str, Tensor], kind: str) -> dict:
    conv = state["embeddings.patch_embeddings.projection.weight"]
    width, patch = conv.shape[0], conv.shape[2]
    places = state["embeddings.position_embeddings"].shape[1] - ("embeddings.cls_token" in state)
    depth = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("encoder.layer."))
    if width not in HEADS[kind]:
        raise ValueError(f"no published {kind} has width {width}")
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": HEADS[kind][width],
        "intermediate_size": state["encoder.layer.0.intermediate.dense.weight"].shape[0],
        "patch_size": patch,
        "image_size": patch * round(places**0.5),
        "layer_norm_eps": 1e-6,
    }
