"""How much memory and disk a training run takes: an estimate, from counting, not from running."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ditkit.models import AnyModel, build_model
from ditkit.pretrained import CodecSettings
from ditkit.protocols import Codec, Extractor, TextEncoder
from ditkit.recipes.alive import Passed, training_pass
from ditkit.recipes.recipe import Recipe
from ditkit.training.optim import pieces
from ditkit.training.settings import TrainSettings

NUMBER = 4  # bytes: weights, gradients, averages and moments are float32 under every precision
VAE_CHANNELS = 3 * 128  # float32 feature maps at full resolution that an SD-like encoder holds at once
AT_ONCE = 32  # images that it encodes together
RESERVE = 0.15  # what allocators and libraries hold beside the tensors; between 0 and a third was seen on a CPU


@dataclass(frozen=True)
class Frozen:
    """Bytes of networks that are not trained: their weights, and what the codec needs beside them while it encodes."""

    weights: int = 0
    encoding: int = 0


@dataclass(frozen=True)
class Memory:
    """Bytes of one process of a training.

    weights, moments (of the optimizer) and averages stay; working: activations and gradients, the most at once;
    gathered: what shards of weights are put together for; frozen: networks that are not trained. checkpoint: on disk,
    of the whole run.
    """

    weights: int
    moments: int
    averages: int
    working: int
    gathered: int
    frozen: Frozen
    checkpoint: int

    @property
    def state(self) -> int:
        """What stays from step to step."""
        return self.weights + self.moments + self.averages

    @property
    def total(self) -> int:
        """The most at once: encoding is over before the forward pass begins."""
        return self.tensors + self.reserve

    @property
    def tensors(self) -> int:
        """Of these, tensors."""
        return self.state + self.gathered + self.frozen.weights + max(self.working, self.frozen.encoding)

    @property
    def reserve(self) -> int:
        """And what lies between them."""
        return round(RESERVE * self.tensors)


def training_memory(recipe: Recipe, widths: tuple[int, ...], frozen: Frozen, processes: int = 1) -> Memory:
    """What each of `processes` needs to train `recipe` with teachers of these widths.

    Counted from a step whose tensors have no numbers, `pieces` of the process's rows at a time; measured peaks differ
    by less than 30 per cent. Compilation, which keeps less for backward, is not seen.
    """
    training = recipe.training
    cut = pieces(max(1, training.batch // processes), training)
    passed = training_pass(recipe, max(stop - start for start, stop in cut), widths, again=len(cut) > 1)
    moments = moment_bytes(recipe, passed)
    averages = passed.trained * (len(training.averages) + len(training.ema_power))
    reference = passed.weights if recipe.objective.kind == "dpo" and recipe.adapter is None else 0
    frozen = Frozen(frozen.weights + reference, frozen.encoding)
    checkpoint = passed.trained + moments + averages
    shards = shards_of(training, processes)
    if shards == 1:
        working = max(passed.peak, 2 * passed.trained)  # the update: gradients, and where a row is due the old weights
        return Memory(passed.weights, moments, averages, working, 0, frozen, checkpoint)
    # each holds its part; a block's weights and gradients are whole while it works, the next one's come meanwhile
    gathered = passed.weights if not training.parallel.reshard else 2 * passed.block
    working = passed.forward + passed.trained // shards + passed.block
    own = (passed.weights // shards, moments // shards, averages // shards)
    return Memory(*own, working, gathered, frozen, checkpoint)


def shards_of(training: TrainSettings, processes: int) -> int:
    """Into how many parts weights, gradients and state are cut."""
    if training.parallel.kind != "fsdp":
        return 1
    return min(processes, training.parallel.shards or processes)


def moment_bytes(recipe: Recipe, passed: Passed) -> int:
    """Bytes of the optimizer's running means: two a number of AdamW's, one of Muon's (matrices inside blocks)."""
    if recipe.training.muon is None:
        return 2 * passed.trained
    with torch.device("meta"):
        model = build_model(recipe.model)
    inside = (child for child in model.children() if isinstance(child, nn.ModuleList))
    matrices = sum(NUMBER * p.numel() for child in inside for p in child.parameters() if p.ndim == 2)
    return 2 * passed.trained - matrices


def frozen_memory(
    codec: Codec, teachers: list[Extractor], settings: CodecSettings, image: tuple[int, int], rows: int,
    text: TextEncoder | None = None,
) -> Frozen:  # fmt: skip
    """Of networks that are here: codec, teachers and text encoder, on images of (H, W), `rows` a pass."""
    weights = NUMBER * count(network(codec)) + sum(NUMBER * count(network(teacher)) for teacher in teachers)
    weights += sum(p.numel() * p.element_size() for part in text_networks(text) for p in part.parameters())
    return Frozen(weights, encoding_bytes(settings, image, rows))


def encoding_bytes(settings: CodecSettings, image: tuple[int, int], rows: int) -> int:
    """What an autoencoder's feature maps take while it encodes images of (H, W); nothing for pixels."""
    if settings.kind in ("pixels", "toy"):
        return 0
    return NUMBER * VAE_CHANNELS * image[0] * image[1] * min(rows, AT_ONCE)


def model_bytes(settings: AnyModel) -> int:
    """Bytes of a network's weights, float32."""
    with torch.device("meta"):
        return NUMBER * count(build_model(settings))


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
