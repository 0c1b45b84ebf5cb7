"""bf16 autocast, TF32 and torch.compile: the switches that trade digits for speed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

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


def compile_blocks(model: nn.Module, backend: str = "inductor") -> int:
    """Compile every block of the model's ModuleLists in place (the whole model if it has none); returns how many.

    In place keeps the state dict's keys clean, and equal blocks share one compilation.
    """
    blocks = [block for child in model.children() if isinstance(child, nn.ModuleList) for block in child]
    for block in blocks or [model]:
        block.compile(backend=backend)
    return len(blocks) or 1
