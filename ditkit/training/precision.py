"""bf16 autocast, TF32 and torch.compile: the switches that trade digits for speed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from ditkit.training.parallel import is_cut
from ditkit.training.settings import TrainSettings


def autocast(settings: TrainSettings, device: torch.device) -> torch.autocast:
    """The context of forward and loss: nothing for fp32, bfloat16 autocast for bf16.

    Weights, optimizer and average stay float32. The float32 islands are written where they stand: time embedding and
    modulation in the models, normalisation and cosine in `align`, squared errors in `diffusion` (bf16 output minus
    float32 target is float32).
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16")


Switches = tuple[str, bool]  # of float32 matrix products, and whether convolutions use TF32


@contextmanager
def switched(to: Switches) -> Iterator[Switches]:
    """These switches inside the block, which is given those of before; they are put back after."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(to[0])
    torch.backends.cudnn.allow_tf32 = to[1]
    try:
        yield before
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def matmul_precision(tf32: bool) -> AbstractContextManager[Switches]:
    """TF32 on or off inside the block, for matrix products and convolutions; the process's state is put back after."""
    return switched(("high" if tf32 else "highest", tf32))


def hasten(model: nn.Module, settings: TrainSettings) -> list[str]:
    """Turn on what the settings ask for (float8, then compile) in place; returns a line about each for the log.

    Parameters stay the same objects under the same names. ValueError, one line, where float8 cannot be had.
    """
    lines = []
    if settings.float8:
        lines.append(f"float8: the matrix products of {to_float8(model)} layers")
    if settings.compile:
        mode = settings.compile_mode
        count = compile_blocks(model, settings.backend, mode)
        lines.append(f"compiling {count} blocks with {settings.backend}" + (f" ({mode})" if mode != "default" else ""))
    return lines


def compile_blocks(model: nn.Module, backend: str = "inductor", mode: str = "default") -> int:
    """Compile every block of the model's ModuleLists in place (the whole model if it has none); returns how many.

    In place keeps the state dict's keys clean, and equal blocks share one compilation. mode: of the inductor; other
    backends know none, and ValueError says so.
    """
    if mode != "default" and backend != "inductor":
        raise ValueError(f"training.compile_mode={mode} belongs to the inductor, not to training.backend={backend}")
    blocks = [block for child in model.children() if isinstance(child, nn.ModuleList) for block in child]
    for block in blocks or [model]:
        if mode == "default":
            block.compile(backend=backend)
        else:
            block.compile(backend=backend, mode=mode)
    return len(blocks) or 1


def to_float8(model: nn.Module) -> int:
    """Let the Linear layers inside blocks multiply in float8 (torchao, tensorwise scales); returns how many do.

    Only token-wise layers whose sides are multiples of 16: those of times and conditions stay (DESIGN: t is never
    rounded). Weights, gradients and averages keep their dtype and names. ValueError if torchao, the device or a
    sharded model does not allow it.
    """
    device = next(model.parameters()).device
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        raise ValueError(f"training.float8: {name} has no float8 matrix products (Ada, Hopper or newer): leave it out")
    if any(is_cut(p) for p in model.parameters()):
        raise ValueError("training.float8 works with training.parallel.kind=ddp, not on weights that are in shards")
    try:
        from torchao.float8 import convert_to_float8_training
    except ImportError:
        raise ValueError("training.float8 needs torchao: pip install torchao, or leave it out") from None
    chosen = float8_layers(model)
    convert_to_float8_training(model, module_filter_fn=lambda layer, name: name in chosen)
    return len(chosen)


def float8_layers(model: nn.Module) -> set[str]:
    """Names of the Linear layers of attention and MLP inside the model's blocks whose sides are multiples of 16."""
    lists = [name for name, child in model.named_children() if isinstance(child, nn.ModuleList)]
    return {
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
        and name.split(".")[0] in lists
        and not {"modulation", "ada"} & set(name.split("."))
        and layer.in_features % 16 == 0
        and layer.out_features % 16 == 0
    }


def has_bf16_products(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices by itself: a CPU without such units is tens of times slower."""
    if device.type != "cpu":
        return True
    known = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(known()) if known is not None else False
