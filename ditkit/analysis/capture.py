"""What the blocks of a denoiser hold of images at a time t: the mean token of each image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ditkit.diffusion import Path, network_input
from ditkit.protocols import Condition


@torch.no_grad()
def token_means(
    model: nn.Module, x_t: Tensor, t: float, cond: Condition, blocks: Sequence[int], *,
    path: Path, batch: int = 64, progress: Callable[[int, int], object] | None = None,
) -> dict[int, Tensor]:  # fmt: skip
    """Mean over the image tokens after each of `blocks` (1-based; DDT's count through): {block: (N, D)} float32, CPU.

    x_t (N, C, H, W): noised latents at time t (0 = data, 1 = noise). The network sees the null condition of `cond`,
    which is of N samples or of one that stands for all, as REPA looks at representations; it works on its own device,
    in eval mode, and is left as it was. No projector is applied. ValueError for a block that does not exist.
    """
    device = next(model.parameters()).device
    null = model.null(cond.to(device))  # type: ignore[operator]
    alone = len(null) == 1
    means: dict[int, list[Tensor]] = {block: [] for block in blocks}
    with evaluating(model):
        for rows in torch.arange(len(x_t)).split(batch):
            x, times = x_t[rows].to(device, torch.float32), torch.full((len(rows),), t, device=device)
            seen = null.index((torch.zeros_like(rows) if alone else rows).to(device))
            hidden = model(network_input(path, x, times), times, seen, capture=tuple(blocks)).hidden
            for block, parts in means.items():
                parts.append(hidden[block].float().mean(1).cpu())
            if progress is not None:
                progress(int(rows[-1]) + 1, len(x_t))
    return {block: torch.cat(parts) for block, parts in means.items()}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; each of its parts is put back into its own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
