"""Which attention is fastest at a network's sizes: backends of scaled_dot_product_attention, heads padded or not.

Kernels are made for some head widths (64, 96, 128); others they pad by themselves, or slow down. Padding queries, keys
and values with zeros changes nothing but rounding: products with zeros are zero, and the scale stays that of the
network's own width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ditkit.recipes.benches.bench import Bench, Progress, silent, take_turns
from ditkit.recipes.stopwatch import seconds_of, spread

PADDED = (64, 80, 96, 128)  # widths of a head that are tried beside the network's own
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def attending(bench: Bench, progress: Progress | None = None) -> dict:
    """Forward and backward of one attention of the recipe's network: seconds by backend and padded head width."""
    model, settings, device = bench.recipe.model, bench.settings, bench.device
    told = progress or silent
    rows, columns = model.grid
    shape = (bench.batch, model.heads, rows * columns, model.width // model.heads)
    dtype = DTYPES[settings.precision or "fp32"]
    generator = torch.Generator().manual_seed(settings.seed)
    # as the fused projection leaves them: (B, N, 3, H, h), permuted
    fused = torch.randn(bench.batch, rows * columns, 3, model.heads, shape[3], generator=generator).to(device, dtype)
    q, k, v = fused.permute(2, 0, 3, 1, 4)
    arms: dict[str, Callable] = {}
    refused: dict[str, str] = {}
    for name, backend in BACKENDS.items():
        for width in (shape[3], *(w for w in PADDED if w > shape[3])):
            arm = partial(_both_ways, (q, k, v), backend, width, device)
            try:
                for _ in range(1 + settings.warmup):
                    arm(lambda *_: None)
            except RuntimeError as error:  # this backend does not exist here, or not for these sizes
                refused[f"{name} {width}"] = str(error).splitlines()[0][:120]
                continue
            arms[f"{name} {width}"] = arm
    runs = take_turns(settings.with_({"steps": 1}), arms, told, "attention")
    found = {name: spread(seconds) for name, seconds in runs.items()}
    best = min(found, key=lambda name: found[name]["median"])  # type: ignore[index]
    wanted = attended(q, k, v, SDPBackend.MATH, shape[3])
    return {
        "shape": list(shape),
        "seconds": found,
        "refused": refused,
        "fastest": best,
        "largest_difference": {
            name: float((attended(q, k, v, BACKENDS[name.split()[0]], int(name.split()[1])) - wanted).abs().max())
            for name in found
        },
    }


def attended(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend, width: int) -> Tensor:
    """Attention (B, H, N, h) of q, k, v (B, H, N, h) by one backend, heads padded with zeros to `width`."""
    own = q.shape[-1]
    if width > own:
        q, k, v = (F.pad(part, (0, width - own)) for part in (q, k, v))
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(q, k, v, scale=own**-0.5)[..., :own]


def _both_ways(
    parts: tuple[Tensor, Tensor, Tensor], backend: SDPBackend, width: int, device: torch.device, _: object
) -> float:  # fmt: skip
    """Seconds of attention and its gradient."""
    q, k, v = (part.detach().requires_grad_() for part in parts)

    def work() -> None:
        attended(q, k, v, backend, width).sum().backward()

    return seconds_of(work, device)[0]
