"""How many bytes a training step holds at once, counted by going through it with tensors that have no numbers."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ditkit.align import Aligner
from ditkit.models import build_model, example_condition
from ditkit.protocols import Features
from ditkit.recipes.recipe import Recipe
from ditkit.training.adapters import add_adapter


class Passed(NamedTuple):
    """Bytes. weights: of network and projectors; trained: of those that get a gradient; block: of the largest block.

    forward: what a forward pass leaves for backward; peak: the most at once of a forward and backward pass, gradients
    with it. Both without the weights.
    """

    weights: int
    trained: int
    block: int
    forward: int
    peak: int


class Alive(TorchDispatchMode):
    """Counts the bytes of all storages that are alive: now, and at most. Storages of any device, or of none."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most = 0, 0
        self._seen: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Every operation passes here; what it returns is counted until it is gone."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def gone(_: object) -> None:
            self.now -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)

    @contextmanager
    def above(self) -> Iterator[int]:
        """Inside, `most` begins again; gives what is alive at the start."""
        self.most = self.now
        yield self.now


def training_pass(recipe: Recipe, rows: int, widths: tuple[int, ...] = (), again: bool = False) -> Passed:
    """What a forward and backward pass of `rows` samples of the recipe's network and objective holds.

    widths: of the teachers, whose features are counted too. again: gradients of a piece before are there already.
    Nothing is allocated and nothing computed: tensors know their shapes alone. Takes seconds for XL.
    """
    alive = Alive()
    with FakeTensorMode(allow_non_fake_inputs=True), alive:
        model = _network(recipe)
        blocks = [block for child in model.children() if isinstance(child, nn.ModuleList) for block in child]
        largest = max((stored(block.parameters()) for block in blocks), default=0)
        modules, auxiliary = [model], []
        if recipe.align is not None:
            aligner = Aligner(recipe.align, recipe.model.width, widths, recipe.model.grid)
            modules.append(aligner)
            auxiliary = list(aligner.terms(_features(rows, widths, recipe.model.grid), 0))
        parameters = [p for module in modules for p in module.parameters()]
        trained = [p for p in parameters if p.requires_grad]
        for parameter in trained if again else ():
            parameter.grad = torch.empty_like(parameter)
        grads = stored(trained) if again else 0
        with alive.above() as before:
            loss = _loss(recipe, model, rows, auxiliary)
            forward = alive.now - before
            loss.backward()
    return Passed(stored(parameters), stored(trained), largest, forward, alive.most - before + grads)


def _network(recipe: Recipe) -> nn.Module:
    """The recipe's network inside of a FakeTensorMode, with its adapter.

    peft moves what it adds, which tensors without numbers do not bear: so an adapter is added on the meta device.
    """
    if recipe.adapter is None:
        return build_model(recipe.model).train()
    with unset_fake_temporarily(), torch.device("meta"):
        model = build_model(recipe.model).train()
        add_adapter(model, recipe.adapter)
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            empty = torch.empty(value.shape, dtype=value.dtype)
            module.register_parameter(name, nn.Parameter(empty, requires_grad=value.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype))
    return model


def stored(parameters: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(p.numel() * p.element_size() for p in parameters)


def _features(rows: int, widths: tuple[int, ...], grid: tuple[int, int]) -> list[Features]:
    tokens = [torch.empty(rows, grid[0] * grid[1], width) for width in widths]
    return [Features(one, one[:, 0], grid) for one in tokens]


def _loss(recipe: Recipe, model: nn.Module, rows: int, auxiliary: list) -> Tensor:
    """The recipe's loss on one batch; of pairs, the mean square of what the network answers to both halves."""
    shape = recipe.model
    rows *= 2 if recipe.data.pairs == "both" else 1
    x, t = torch.empty(rows, shape.channels, *shape.size), torch.zeros(rows)
    cond = example_condition(shape, rows)
    at = getattr(recipe.objective, "at", None)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.training.precision == "bf16"):
        if at is None:
            return model(x, t, cond).sample.float().square().mean()
        return at(model, x, cond, torch.empty_like(x), t, auxiliary).total
