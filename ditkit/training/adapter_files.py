"""Adapters on disk: a folder of ours (adapter.safetensors and adapter.json), and the layout of diffusers' pipelines."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from ditkit.checkpoints import CheckpointError
from ditkit.checkpoints.keys import listed
from ditkit.config import SettingsError, read_settings
from ditkit.files import new_folder, write_atomic
from ditkit.training.adapters import (
    Adapter,
    AdapterSettings,
    adapter_tensors,
    add_adapter,
    check_effect,
    fill_adapter,
    target_names,
)

TENSORS, CARD = "adapter.safetensors", "adapter.json"


def save_adapter(
    adapter: nn.Module | Mapping[str, Tensor], settings: AdapterSettings, folder: Path, about: Mapping[str, object] = {}
) -> None:
    """Write the adapter of a model (or its tensors) into a new folder, all or nothing; `about` goes to its card.

    CheckpointError if it changes nothing.
    """
    tensors = adapter_tensors(adapter) if isinstance(adapter, nn.Module) else adapter
    tensors = {key: value.cpu().contiguous() for key, value in tensors.items()}
    check_effect(tensors, "adapter")
    card = {"format": 1, "settings": settings.model_dump(mode="json"), "about": dict(about)}
    with new_folder(folder) as draft:
        save_file(tensors, draft / TENSORS)
        (draft / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def load_adapter(model: nn.Module, folder: str | Path) -> Adapter:
    """Put the adapter of a folder on `model`, in place; `merge(model)` makes it part of the weights.

    CheckpointError, before the model is touched: not such a folder, tensors that fit no layer of this model, or that
    change nothing.
    """
    place = Path(folder)
    settings, tensors = read_card(place), read_tensors(place / TENSORS)
    check_effect(tensors, place)
    layers = {key.rpartition(".lora_")[0] for key in tensors}
    own = set(target_names(model, settings.targets))
    if layers != own:
        odd = f"its layers {listed(layers - own)} are not in this model" if layers - own else ""
        raise CheckpointError(f"{place}: {odd or f'nothing for the layers {listed(own - layers)} of this model'}")
    with torch.device("meta"):
        expected = {k: v for name in own for k, v in _shapes(name, model, settings.rank).items()}
    wrong = [k for k, v in expected.items() if k not in tensors or tensors[k].shape != v.shape]
    if wrong:
        raise CheckpointError(f"{place}: other shapes than this model's of {listed(wrong)}")
    adapter = add_adapter(model, settings)
    fill_adapter(model, tensors)
    return adapter


def _shapes(name: str, model: nn.Module, rank: int) -> dict[str, Tensor]:
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    down, up = torch.empty(rank, linear.in_features), torch.empty(linear.out_features, rank)
    return {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}


def read_card(folder: Path) -> AdapterSettings:
    """The settings in a folder's card; CheckpointError if it is no adapter folder."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        return read_settings(AdapterSettings, card["settings"])
    except (OSError, ValueError, KeyError, TypeError, SettingsError) as error:
        raise CheckpointError(f"{folder}: not an adapter folder ({CARD}: {error})") from None


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, on the CPU; CheckpointError if it cannot be read."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: not readable (damaged or incomplete?): {error}") from None


# ------------------------------------------------------------------------------------------------ diffusers' layout

# our name within the model -> diffusers' names, the rows of B shared out among them in equal parts
_ATTENTION = ("to_q", "to_k", "to_v")
_LAYERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"blocks\.(\d+)\.image\.attention\.qkv", tuple(f"transformer_blocks.{{0}}.attn.{n}" for n in _ATTENTION)),
    (r"blocks\.(\d+)\.image\.attention\.proj", ("transformer_blocks.{0}.attn.to_out.0",)),
    (r"blocks\.(\d+)\.image\.attention2\.qkv", tuple(f"transformer_blocks.{{0}}.attn2.{n}" for n in _ATTENTION)),
    (r"blocks\.(\d+)\.image\.attention2\.proj", ("transformer_blocks.{0}.attn2.to_out.0",)),
    (r"blocks\.(\d+)\.image\.modulation\.linear", ("transformer_blocks.{0}.norm1.linear",)),
    (r"blocks\.(\d+)\.image\.mlp\.fc1", ("transformer_blocks.{0}.ff.net.0.proj",)),
    (r"blocks\.(\d+)\.image\.mlp\.fc2", ("transformer_blocks.{0}.ff.net.2",)),
    (
        r"blocks\.(\d+)\.text\.0\.attention\.qkv",
        tuple(f"transformer_blocks.{{0}}.attn.add_{n}_proj" for n in ("q", "k", "v")),
    ),
    (r"blocks\.(\d+)\.text\.0\.attention\.proj", ("transformer_blocks.{0}.attn.to_add_out",)),
    (r"blocks\.(\d+)\.text\.0\.modulation\.linear", ("transformer_blocks.{0}.norm1_context.linear",)),
    (r"blocks\.(\d+)\.text\.0\.mlp\.fc1", ("transformer_blocks.{0}.ff_context.net.0.proj",)),
    (r"blocks\.(\d+)\.text\.0\.mlp\.fc2", ("transformer_blocks.{0}.ff_context.net.2",)),
    (r"time\.mlp\.0", ("time_text_embed.timestep_embedder.linear_1",)),
    (r"time\.mlp\.2", ("time_text_embed.timestep_embedder.linear_2",)),
    (r"pooled\.0", ("time_text_embed.text_embedder.linear_1",)),
    (r"pooled\.2", ("time_text_embed.text_embedder.linear_2",)),
    (r"context\.0", ("context_embedder",)),
    (r"final\.modulation\.linear", ("norm_out.linear",)),
    (r"final\.linear", ("proj_out",)),
)


def to_diffusers(tensors: Mapping[str, Tensor], settings: AdapterSettings, depth: int) -> dict[str, Tensor]:
    """Our adapter of an MMDiT of `depth` blocks under the keys that StableDiffusion3Pipeline.load_lora_weights reads.

    A fused qkv becomes three adapters with equal A and a third of B each, so the sum is exactly ours. alpha / rank is
    multiplied into B, because a file without alpha is read as alpha = rank. diffusers keeps (scale, shift) where we
    keep (shift, scale): the halves of B change places in the final layer and in the last block's text.
    CheckpointError for layers that diffusers' SD3 transformer does not have.
    """
    swapped = {"final.modulation.linear", f"blocks.{depth - 1}.text.0.modulation.linear"}
    result: dict[str, Tensor] = {}
    for name in dict.fromkeys(key.rpartition(".lora_")[0] for key in tensors):
        down, up = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] * settings.scale
        if name in swapped:
            up = torch.cat(up.chunk(2)[::-1])
        theirs = _their_names(name)
        for their, part in zip(theirs, up.chunk(len(theirs)), strict=True):
            result[f"transformer.{their}.lora_A.weight"] = down.cpu().clone()
            result[f"transformer.{their}.lora_B.weight"] = part.cpu().contiguous().clone()
    return result


def _their_names(name: str) -> list[str]:
    for ours, theirs in _LAYERS:
        if match := re.fullmatch(ours, name):
            return [their.format(*match.groups()) for their in theirs]
    raise CheckpointError(f"adapter: diffusers' SD3 transformer has no layer like {name}; an MMDiT of two sets fits it")


def save_diffusers(tensors: Mapping[str, Tensor], settings: AdapterSettings, depth: int, file: Path) -> None:
    """Write `to_diffusers` of an adapter as one new .safetensors file, all or nothing."""
    if file.suffix != ".safetensors":
        raise CheckpointError(f"{file}: end the name in .safetensors")
    if file.exists():
        raise CheckpointError(f"{file}: exists already; choose another name or remove it")
    check_effect(tensors, "adapter")
    content = save(to_diffusers(tensors, settings, depth), metadata={"format": "pt"})
    write_atomic(file, lambda stream: stream.write(content))
