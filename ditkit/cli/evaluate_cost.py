"""What `ditkit evaluate` took."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import torch


def print_cost(started: float, device: torch.device) -> None:
    """Seconds since `started` (time.monotonic), and the most memory that this process and its tensors on a GPU held."""
    import torch

    from ditkit.training.log import peak_memory

    told = [f"{time.monotonic() - started:,.0f} s"]
    if resident := peak_memory(torch.device("cpu")):  # 0 where the system cannot say
        told.append(f"at most {resident:.2f} GiB of memory")
    if device.type == "cuda":
        told.append(f"{peak_memory(device):.2f} GiB on the GPU")
    typer.echo(f"took       {', '.join(told)}")
