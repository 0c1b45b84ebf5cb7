"""How much memory and disk a training run takes: an estimate, from counting, not from running."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ditkit.align import Projector
from ditkit.models import AnyModel, build_model, example_condition
from ditkit.protocols import Codec, Extractor, TextEncoder
from ditkit.recipes.recipe import Recipe
from ditkit.training.optim import pieces

BF16 = 0.6  # share of the float32 activations that remains under autocast: the float32 islands stay
STATE = 20  # bytes a trained number: weight, gradient, average, two moments of AdamW, 4 each
SAVED = 16  # bytes a trained number in a checkpoint: all of these but the gradient
VAE_CHANNELS = 3 * 128  # float32 feature maps at full resolution that an SD-like encoder holds at once


@dataclass(frozen=True)
class Memory:
    """Bytes. state: weights, gradients, averages, moments; activations: of a forward pass; frozen: codec, teachers."""

    state: int
    activations: int
    frozen: int
    checkpoint: int

    @property
    def total(self) -> int:
        return self.state + self.activations + self.frozen


def training_memory(
    recipe: Recipe, codec: Codec, teachers: list[Extractor], image: tuple[int, int], text: TextEncoder | None = None
) -> Memory:  # fmt: skip
    """What training `recipe` on images of (H, W) takes, `pieces` of the batch at a time; rough to some 30 per cent."""
    with torch.device("meta"):
        trained = count(build_model(recipe.model))
        if recipe.align is not None:
            hidden = recipe.align.projector_width
            trained += sum(count(Projector(recipe.model.width, t.width, hidden)) for t in teachers)
    rows = max(stop - start for start, stop in pieces(recipe.training.batch, recipe.training))
    share = BF16 if recipe.training.precision == "bf16" else 1.0
    frozen = 4 * count(network(codec)) + sum(4 * count(network(teacher)) for teacher in teachers)
    frozen += sum(p.numel() * p.element_size() for part in text_networks(text) for p in part.parameters())
    if recipe.codec.place:
        frozen += 4 * VAE_CHANNELS * image[0] * image[1] * min(rows, 32)
    return Memory(STATE * trained, int(share * rows * saved_bytes(recipe.model)), frozen, SAVED * trained)


def saved_bytes(settings: AnyModel) -> int:
    """Bytes that autograd keeps for one sample in float32: counted on the meta device, parameters left out."""
    total, kept = 0, {}

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage._cdata not in kept:
            kept[storage._cdata] = tensor  # alive, so that no address is used twice
            total += storage.nbytes()
        return tensor

    with torch.device("meta"):
        model = build_model(settings).train()
        kept |= {p.untyped_storage()._cdata: p for p in model.parameters()}
        x = torch.empty(1, settings.channels, *settings.size)
        cond = example_condition(settings, 1, "meta")
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            model(x, torch.zeros(1), cond)
    return total


def count(module: nn.Module | None) -> int:
    """Numbers in the parameters of a module."""
    return sum(p.numel() for p in module.parameters()) if module is not None else 0


def network(part: Codec | Extractor) -> nn.Module | None:
    """The network inside a codec or a teacher; None where there is none."""
    found = (getattr(part, name, None) for name in ("vae", "network", "model"))
    return next((one for one in found if isinstance(one, nn.Module)), None)


def text_networks(text: TextEncoder | None) -> list[nn.Module]:
    """The networks inside a text encoder, cached or not; none in the toy one."""
    inner = getattr(text, "encoder", text)
    readers = [*getattr(inner, "networks", {}).values(), getattr(inner, "network", None)]
    return [reader.model for reader in readers if reader is not None]


def available(device: torch.device) -> int | None:
    """Bytes free on the GPU, or in this machine altogether; None where the system cannot say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if device.type == "cpu" else None
    except (ValueError, OSError, AttributeError):
        return None


def folder_bytes(folder: Path) -> int:
    """What a folder holds already."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else 0
