"""LoRA (Hu et al. 2021, arXiv 2106.09685) by peft on any of our models: W x + alpha / rank B A x, W frozen.

The model keeps its class and its calls: its Linear layers are replaced in place. SD3 fine-tuned with rank 128 on all
linear layers (arXiv 2403.03206, appendix C); its alpha is unpublished.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, cast

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from ditkit.checkpoints import CheckpointError
from ditkit.checkpoints.keys import check, listed
from ditkit.config import Settings

NAME = "default"  # what peft calls the only adapter that a model of ours has


class AdapterSettings(Settings):
    """A low-rank adapter; the base is frozen. `adapter=lora` in an override turns it on with these defaults."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(128, ge=1, description="of the update B A; SD3: 128")
    alpha: float | None = Field(None, gt=0, description="the update counts alpha / rank; none: alpha = rank")
    targets: Literal["all-linear", "attention"] | tuple[str, ...] = Field(
        "all-linear", description="Linear layers in the blocks, those of attentions, or ends of names: [qkv, mlp.fc1]"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="of the adapter's input, in training")
    init: Literal["gaussian", "default"] = Field("gaussian", description="A: N(0, 1 / rank^2), or Linear's own; B: 0")

    @field_validator("targets")
    @classmethod
    def _some(cls, targets):
        if not targets:
            raise ValueError("name at least one layer, or take all-linear or attention")
        return targets

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return (self.alpha or self.rank) / self.rank


@dataclass(frozen=True)
class Adapter:
    """What was added: settings, and the parameters of A and B together of every target, by its name."""

    settings: AdapterSettings
    targets: dict[str, int]

    @property
    def parameters(self) -> int:
        """All that the adapter trains."""
        return sum(self.targets.values())

    def describe(self) -> str:
        """One line for people."""
        kinds: dict[str, int] = {}
        for name in self.targets:
            kind = re.sub(r"\.\d+\.", ".*.", name)
            kinds[kind] = kinds.get(kind, 0) + 1
        named = ", ".join(f"{kind} ({n})" for kind, n in kinds.items())
        return (
            f"LoRA of rank {self.settings.rank}: {self.parameters:,} parameters on {len(self.targets)} layers: {named}"
        )


def target_names(model: nn.Module, targets: str | tuple[str, ...] = "all-linear") -> list[str]:
    """The names of the Linear layers that `AdapterSettings.targets` means. ValueError for ends that fit none.

    all-linear is every one inside the blocks, modulation included (SD3's count), not embeddings and the final layer;
    attention is the projections of the blocks' attentions (diffusers' choice for SD3).
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not isinstance(targets, str):
        ends = {end: [n for n in linear if f".{n}".endswith(f".{end.removeprefix('.')}")] for end in targets}
        if missing := [end for end, found in ends.items() if not found]:
            raise ValueError(
                f"adapter.targets: no Linear layer's name ends in {missing[0]!r}; there are {_ends(linear)}"
            )
        return [n for n in linear if any(n in found for found in ends.values())]
    inside = [n for n in linear if any(part.endswith("blocks") for part in n.split("."))]
    if targets == "attention":
        inside = [n for n in inside if type(model.get_submodule(n.rpartition(".")[0])).__name__.endswith("Attention")]
    if not inside:
        raise ValueError(f"adapter.targets={targets}: this model has no such layers; there are {_ends(linear)}")
    return inside


def _ends(names: list[str]) -> str:
    return listed({re.sub(r"^.*\.\d+\.", "", name) for name in names})


def add_adapter(model: nn.Module, settings: AdapterSettings, generator: torch.Generator | None = None) -> Adapter:
    """Freeze `model` and put an adapter on it, in place; A is drawn from `generator`, B is 0: nothing changes yet.

    On the meta device nothing is drawn. ValueError for targets that do not exist, a model that has an adapter, or
    where peft is not installed.
    """
    if adapter_layers(model):
        raise ValueError("adapter: this model has one already; merge it first")
    names = target_names(model, settings.targets)
    peft = _peft()
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.scale * settings.rank,
        target_modules="|".join(re.escape(name) for name in names),
        lora_dropout=settings.dropout,
        init_lora_weights=False,
    )
    peft.inject_adapter_in_model(config, model, NAME, low_cpu_mem_usage=True)  # on meta: its draws would be global ones
    found = {}
    for name, layer in adapter_layers(model).items():
        down, up = layer.lora_A[NAME], layer.lora_B[NAME]
        device = layer.base_layer.weight.device
        if device.type != "meta":
            down.weight = nn.Parameter(_drawn(down.weight.shape, settings, generator).to(device))
            up.weight = nn.Parameter(torch.zeros(up.weight.shape, device=device))
        found[name] = down.weight.numel() + up.weight.numel()
    return Adapter(settings, found)


def _drawn(shape: torch.Size, settings: AdapterSettings, generator: torch.Generator | None) -> Tensor:
    weight = torch.empty(shape)
    if settings.init == "gaussian":
        return nn.init.normal_(weight, std=1 / settings.rank, generator=generator)
    return nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)


def _peft() -> ModuleType:
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise ValueError("adapter: LoRA needs peft: pip install 'ditkit[hf]'") from error


def adapter_layers(model: nn.Module) -> dict[str, Any]:
    """The adapted layers by the name of the Linear that they replace; empty for a model without adapter."""
    return {n: m for n, m in model.named_modules() if isinstance(getattr(m, "lora_A", None), nn.ModuleDict)}


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, `model` is its base: the reference of preference tuning needs no second copy. ValueError without one."""
    layers = adapter_layers(model)
    if not layers:
        raise ValueError("adapter_off: this model has no adapter")
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for layer in layers.values():
        layer.enable_adapters(False)
    try:
        yield model
    finally:
        for layer in layers.values():
            layer.enable_adapters(True)
        for parameter, wanted in flags:  # peft sets them as it likes; an average stays frozen
            parameter.requires_grad_(wanted)


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """Add alpha / rank B A to the weights and take the adapter away, in place; returns the model, all of it frozen.

    Weights that other models share with this one are replaced, not changed. ValueError where the result is not finite.
    """
    for name, layer in adapter_layers(model).items():
        base = cast(nn.Linear, layer.base_layer)
        weight = base.weight + layer.get_delta_weight(NAME).to(base.weight.dtype)
        if not bool(weight.isfinite().all()):
            raise ValueError(f"adapter: {name} would not be finite after merging; the adapter is damaged")
        base.weight = nn.Parameter(weight, requires_grad=False)
        model.set_submodule(name, base)
    return model


# ------------------------------------------------------------------------------------------------ its tensors


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """{"blocks.0.attention.qkv.lora_A.weight": (rank, in), "... lora_B.weight": (out, rank)}; empty without one."""
    return {
        f"{name}.{part}.weight": getattr(layer, part)[NAME].weight.detach()
        for name, layer in adapter_layers(model).items()
        for part in ("lora_A", "lora_B")
    }


@torch.no_grad()
def fill_adapter(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` into the adapter that `model` has; CheckpointError lists keys and shapes that do not fit."""
    own = adapter_tensors(model)
    check("adapter", tensors, own)
    for key, value in own.items():
        value.copy_(tensors[key])


def check_effect(tensors: Mapping[str, Tensor], where: object) -> None:
    """CheckpointError if an adapter of these tensors changes nothing: there are none, or every B or every A is 0."""
    parts = {part: [v for k, v in tensors.items() if k.endswith(f".{part}.weight")] for part in ("lora_A", "lora_B")}
    if not all(parts.values()):
        raise CheckpointError(f"{where}: no LoRA tensors in it; its keys: {listed(tensors)}")
    for part, values in parts.items():
        if not any(bool(v.any()) for v in values):
            raise CheckpointError(f"{where}: this adapter changes nothing: all its {part} are 0 (was it trained?)")
