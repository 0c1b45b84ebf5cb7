"""The matrix products of a network alone, without anything around them: the ceiling of a training step on a machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from ditkit.align import AlignSettings, Projector
from ditkit.analysis.cost import cost
from ditkit.models import AnyModel, build_model, example_condition
from ditkit.recipes.stopwatch import seconds_of

ROUNDS = 3  # of each product; the fastest counts
SHORT = 0.02  # seconds: shorter work is repeated within one measurement
SQUARE = {"cpu": 2048}  # side of the large square product; elsewhere 8192


class Product(NamedTuple):
    """y (rows, outputs) = x (rows, inputs) w^T: what a Linear does forward; backward does two more of the same size."""

    rows: int
    inputs: int
    outputs: int

    @property
    def flops(self) -> float:
        """Operations of one of the three."""
        return 2.0 * self.rows * self.inputs * self.outputs


def products(settings: AnyModel, rows: int) -> Counter[Product]:
    """The Linear layers of one forward pass of `rows` samples, and how often each size occurs (counted on meta)."""
    found: Counter[Product] = Counter()

    def note(layer: nn.Module, given: tuple, _: object) -> None:
        assert isinstance(layer, nn.Linear)
        found[Product(given[0].numel() // layer.in_features, layer.in_features, layer.out_features)] += 1

    with torch.device("meta"), torch.no_grad():
        model = build_model(settings).eval()
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                layer.register_forward_hook(note)
        x = torch.empty(rows, settings.channels, *settings.size)
        model(x, torch.zeros(rows), example_condition(settings, rows, "meta"))
    return found


def products_seconds(found: Counter[Product], device: torch.device, dtype: torch.dtype) -> float:
    """Seconds that the products of a forward and backward pass take alone, each size timed by itself."""
    total = 0.0
    for product, count in found.items():
        total += count * sum(_least(a, b, device) for a, b in operands(product, device, dtype))
    return total


def operands(product: Product, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """What is multiplied: forward, for the gradient of the input, and for that of the weight."""
    x = torch.randn(product.rows, product.inputs, device=device).to(dtype)
    w = torch.randn(product.outputs, product.inputs, device=device).to(dtype)
    g = torch.randn(product.rows, product.outputs, device=device).to(dtype)
    yield x, w.t()
    yield g, w
    yield g.t(), x


def square_rate(device: torch.device, dtype: torch.dtype) -> tuple[int, float]:
    """(side, TFLOP/s) of one large square product: what the machine reaches at its best."""
    side = SQUARE.get(device.type, 8192)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return side, 2.0 * side**3 / _least(a, b, device) / 1e12


def _least(a: torch.Tensor, b: torch.Tensor, device: torch.device) -> float:
    """Seconds of a @ b, the fastest of some rounds; short products are repeated within one."""
    first = seconds_of(lambda: a @ b, device)[0]
    times = max(1, min(50, int(SHORT / max(first, 1e-9))))

    def work() -> None:
        for _ in range(times):
            a @ b

    return min(seconds_of(work, device)[0] / times for _ in range(ROUNDS))


def training_flops(model: AnyModel, align: AlignSettings | None = None, widths: tuple[int, ...] = ()) -> float:
    """Operations of a training step on one image: 6 for each multiply-accumulate of a forward pass (2, and backward
    twice as much), of the network and, where it aligns, of the projectors to teachers of these widths.

    Nothing for what is computed again (checkpointing), for codec and teachers, or for anything but matrix products.
    """
    macs = cost(model).gmacs * 1e9
    if align is not None:
        tokens = model.grid[0] * model.grid[1]
        with torch.device("meta"):
            layers = [Projector(model.width, width, align.projector_width) for width in widths]
        macs += tokens * sum(p.numel() for layer in layers for p in layer.parameters() if p.ndim == 2)
    return 6.0 * macs
