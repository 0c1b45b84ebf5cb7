"""Several processes that train one model: what each holds of it, and what they tell each other at every step.

ddp: each process has the whole model, and gradients are averaged (torch's DistributedDataParallel around network and
projectors, each by itself). fsdp: weights, gradients, averages and optimizer state are cut over the processes, block by
block (torch's fully_shard); with `shards` fewer than processes there are several copies (hybrid).
"""

from __future__ import annotations

import dataclasses
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from ditkit.ranks import ALONE, Ranks
from ditkit.training.readings import STOP, TERMINATES, Reading
from ditkit.training.settings import ParallelSettings

if TYPE_CHECKING:  # a second to import, and only needed where weights are cut
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import MixedPrecisionPolicy
    from torch.distributed.tensor import DTensor

SHARD = "shard"  # the side of the mesh over which one copy is cut
Files = Mapping[str, Mapping[str, Tensor]]


class Passing(DistributedDataParallel):
    """DDP that answers for its module: the objective asks the network for `null`, a sampler for `encode`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


class Team:
    """The processes of one training. Alone, everything here is as if it were not there.

    They exchange something only inside `ranks.together`. precision: of the blocks' weights while they are used (fsdp).
    """

    def __init__(
        self,
        ranks: Ranks = ALONE,
        settings: ParallelSettings | None = None,
        *,
        precision: str = "fp32",
        device: torch.device | str = "cpu",
    ):
        self.ranks, self.settings, self.precision = ranks, settings or ParallelSettings(), precision
        self.many = ranks.connected.world > 1
        self.sharded = self.many and self.settings.kind == "fsdp"
        self._bare: dict[nn.Module, nn.Module] = {}  # of each average that is cut
        self.mesh = make_mesh(ranks.world, self.settings.shards, torch.device(device)) if self.sharded else None

    # ---------------------------------------------------------------------------------------- the modules

    def share(self, module: nn.Module) -> nn.Module:
        """What the loop calls instead of `module`, so that gradients are those of the global batch.

        fsdp: the module itself, cut in place; copies of it must have been made before, its optimizer comes after.
        """
        if not self.many:
            return module
        if self.sharded:
            return self._cut(module)
        if not any(p.requires_grad for p in module.parameters()):
            return module
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its name is to become forward_sync_buffers
            return Passing(module, broadcast_buffers=False, gradient_as_bucket_view=True)  # buffers never change

    def spread(self, average: nn.Module) -> nn.Module:
        """Cut averaged weights as `share` cuts the module that they follow; they are float32 also where they run."""
        if not self.sharded:
            return average
        self._bare[average] = bare(average)
        return self._cut(average, averages=True)

    def _cut(self, module: nn.Module, *, averages: bool = False) -> nn.Module:
        """averages: no backward pass cuts them again, so each forward does; they run in float32."""
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        policy = MixedPrecisionPolicy() if averages else self._policy()
        for child in module.children():
            for block in child if isinstance(child, nn.ModuleList) else ():
                again = averages or self.settings.reshard
                fully_shard(block, mesh=self.mesh, reshard_after_forward=again, mp_policy=policy)
        rest = True if averages else None  # what is not in blocks is float32 always
        fully_shard(module, mesh=self.mesh, reshard_after_forward=rest)
        return module

    def _policy(self) -> MixedPrecisionPolicy:
        from torch.distributed.fsdp import MixedPrecisionPolicy

        if self.precision != "bf16":
            return MixedPrecisionPolicy()
        summed = torch.bfloat16 if self.settings.reduce == "bf16" else torch.float32
        return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=summed, cast_forward_inputs=False)

    @contextmanager
    def readable(self, module: nn.Module, average: nn.Module) -> Iterator[nn.Module]:
        """`module` in eval mode, to be called outside of training; all processes call it alike.

        Of a module that is cut, `average` holds the weights meanwhile: it computes in float32.
        """
        if not self.sharded:
            module.eval()
            try:
                yield module
            finally:
                module.train()
            return
        with torch.no_grad():
            mine, other = ([local(p) for p in m.parameters()] for m in (average, module))
            before = [p.clone() for p in mine]
            torch._foreach_copy_(mine, other)
            try:
                yield average
            finally:
                torch._foreach_copy_(mine, before)

    def terms(self, terms: tuple, shared: nn.Module) -> tuple:
        """The aligner's terms, calling what `share` made of the aligner: DDP's hooks are in its forward only."""
        return tuple(_calling(term, shared) for term in terms) if isinstance(shared, Passing) else terms

    # ---------------------------------------------------------------------------------------- a step

    @contextmanager
    def piece(self, modules: Sequence[nn.Module], last: bool) -> Iterator[None]:
        """One forward and backward pass of a step: gradients are exchanged after the last one only."""
        with self.connected(), ExitStack() as stack:
            for module in modules:
                if self.sharded:
                    cut: Any = module
                    cut.set_requires_gradient_sync(last)
                    cut.set_is_last_backward(last)
                elif isinstance(module, Passing) and not last:
                    stack.enter_context(module.no_sync())
            yield

    def agree(self, reading: Reading, signal_: int = 0) -> Reading:
        """The numbers of a step as all processes see them: means, and whether one was asked to stop.

        One exchange on the device; every process gets the same bits, so that all decide alike. signal_: what this
        process was told (SIGINT, SIGTERM), 0 for nothing; `Readings.signal` holds it when the numbers are read.
        """
        if not self.many:
            return reading
        code = {0: 0.0, signal.SIGTERM: TERMINATES}.get(signal_, 1.0) * self.ranks.world
        means = self.mean(torch.cat([reading.values, reading.values.new_full((1,), code)]))
        return Reading((*reading.names, STOP), means, means.isfinite().all())

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, on the device, the same bits in each."""
        if not self.many:
            return values
        total = values.clone()
        with self.connected():
            distributed.all_reduce(total)
        return total / self.ranks.world

    def any(self, flag: bool) -> bool:
        """Whether any process says so; all ask at the same moment, and wait for one that has hours more to do."""
        if not self.many:
            return flag
        told = torch.tensor(float(flag))
        with self.connected():
            distributed.all_reduce(told, distributed.ReduceOp.MAX, group=self.ranks.group)
        return bool(told.item())

    @contextmanager
    def connected(self) -> Iterator[None]:
        """A connection that breaks is told as the process that was lost (RanksError)."""
        try:
            with warnings.catch_warnings():  # nobody changes a network's output in place
                if self.sharded:
                    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
                yield
        except RuntimeError as error:
            if self.many and ("gloo" in str(error) or isinstance(error, distributed.DistError)):
                raise self.ranks.lost(error) from None
            raise

    # ---------------------------------------------------------------------------------------- checkpoints

    @torch.no_grad()
    def whole(self, files: Files) -> dict[str, dict[str, Tensor]]:
        """Tensors in one piece: of what is cut, gathered one at a time in the first process's memory.

        All processes call it alike; where tensors are cut, the others get none. What is not cut is given back. Where
        the first one has no memory left, the others are not left waiting: it raises behind the last tensor.
        """
        if not self.sharded:
            return {file: dict(tensors) for file, tensors in files.items()}
        found: dict[str, dict[str, Tensor]] = {}
        problem: Exception | None = None
        for file, tensors in files.items():
            found[file] = {}
            for name, tensor in tensors.items():
                with self.connected():
                    full = tensor.full_tensor() if is_cut(tensor) else tensor
                if self.ranks.first and problem is None:
                    try:
                        found[file][name] = full.cpu()
                    except (RuntimeError, MemoryError) as error:
                        problem = error
        if problem is not None:
            raise problem
        return found

    def loose(self, average: nn.Module) -> nn.Module | None:
        """A whole copy of averaged weights that are cut, on their device, in the first process; None in the others.

        All processes call it alike. What is not cut is given back itself.
        """
        if not self.sharded:
            return average if self.ranks.first or not self.many else None
        tensors = self.whole({"": dict(average.state_dict())})[""]
        if not self.ranks.first:
            return None
        plain = deepcopy(self._bare[average])
        plain.load_state_dict(tensors, assign=True)
        return plain.to(next(average.parameters()).device).requires_grad_(False).eval()


def make_mesh(world: int, shards: int | None, device: torch.device) -> DeviceMesh:
    """The processes in a row, or in rows of `shards` that hold one copy each. ValueError where they do not fit."""
    from torch.distributed.device_mesh import init_device_mesh

    if shards is None or shards == world:
        return init_device_mesh(device.type, (world,), mesh_dim_names=(SHARD,))
    check_shards(shards, world)
    return init_device_mesh(device.type, (world // shards, shards), mesh_dim_names=("copies", SHARD))


def check_shards(shards: int | None, world: int) -> None:
    """ValueError, one line, where processes cannot share copies so."""
    if world > 1 and shards is not None and world % shards:
        raise ValueError(f"training.parallel.shards={shards} does not divide {world} processes")


def bare(module: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have no numbers (meta): what is loaded into it, it becomes."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return deepcopy(module, memo)


def _calling(term: Any, shared: nn.Module) -> Any:
    """A term of the aligner (dataclass or named tuple) with another `module`."""
    replace = getattr(term, "_replace", None) or partial(dataclasses.replace, term)
    return replace(module=shared)


# -------------------------------------------------------------------------------------------- tensors that are cut


def is_cut(tensor: Tensor | None) -> TypeGuard[DTensor]:
    """Whether it is a DTensor: this process's part of a tensor."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that is cut, the same memory; any other tensor itself. Call without gradients."""
    return tensor.to_local() if is_cut(tensor) else tensor


@torch.no_grad()
def fill(own: Tensor, value: Tensor) -> None:
    """Copy a tensor into `own`; of a whole one this process's part where `own` is cut. Nothing is exchanged."""
    if is_cut(own) and not is_cut(value):
        from torch.distributed.tensor import distribute_tensor

        moved = value.to(own.device)
        value = distribute_tensor(moved, own.device_mesh, own.placements, src_data_rank=None)
    own.copy_(value)


@torch.no_grad()
def placed(value: Tensor, beside: Tensor) -> Tensor:
    """A copy of a tensor on the device of `beside`, a whole one cut as it is where both have one shape."""
    if is_cut(value):
        return value.clone()
    if not is_cut(beside) or value.shape != beside.shape:
        return value.to(beside.device, copy=True)
    own = torch.empty_like(beside, dtype=value.dtype, requires_grad=False)
    fill(own, value)
    return own


@torch.no_grad()
def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The 2-norm of all tensors together (scalar), of cut ones over all processes: one exchange."""
    given = list(tensors)
    norm = nn.utils.get_total_norm([local(t) for t in given], foreach=True)
    mesh = next((t.device_mesh for t in given if is_cut(t)), None)
    if mesh is None:
        return norm
    square = norm.double().square()
    distributed.all_reduce(square, group=mesh[SHARD].get_group() if mesh.ndim > 1 else mesh.get_group())
    return square.sqrt().to(norm.dtype)
