"""Checkpoints in parts: every process writes the tensors, or the pieces of tensors, that it holds, and reads its own.

    RUN/checkpoints/0050000/shard-00001-model-00001-of-00001.safetensors     of the first process, ...
                            state.json

By torch.distributed.checkpoint in its safetensors format: no pickle, and each part says where its pieces belong. So any
number of processes can read what any number has written, and one alone needs no process group for it. Names are
FILE/NAME: the tensors of model.safetensors, ema.safetensors, ... of a whole checkpoint.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, distributed

from ditkit.training.parallel import is_cut

PARTS = "shard-*.safetensors"


def is_sharded(home: Path) -> bool:
    """Whether a checkpoint's folder holds parts."""
    return any(home.glob(PARTS))


def parts_of(home: Path, rank: int) -> list[Path]:
    """The files of one process."""
    return sorted(home.glob(f"shard-{rank + 1:05d}-*.safetensors"))


def begin_parts(
    home: Path,
    files: Mapping[str, Mapping[str, Tensor]],
    group: distributed.ProcessGroup,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Future[Any]:
    """Copy the tensors to main memory and begin to write this process's part of them, in a thread.

    All processes of `group` (gloo, used by nothing else meanwhile) call it alike. Tensors that are not cut are written
    once, by one of them. The future is done when all parts are written, or failed in any process. around: a block
    around the copying, before any process begins to write.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, async_save  # a second to import
    from torch.distributed.checkpoint.staging import BlockingAsyncStager

    class Stager(BlockingAsyncStager):
        def stage(self, state_dict: Any) -> Any:
            with around():
                return super().stage(state_dict)

    flat = {f"{file}/{name}": tensor.detach() for file, tensors in files.items() for name, tensor in tensors.items()}
    writer = HuggingFaceStorageWriter(str(home), save_distributed=True)
    return cast(Future, async_save(flat, storage_writer=writer, process_group=group, async_stager=Stager()))


def read_parts(home: Path, file: str, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The tensors of one file, by name, on the CPU; those that are cut in `like` cut in the same way, on its device."""
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load
    from torch.distributed.checkpoint.api import CheckpointException

    known = HuggingFaceStorageReader(str(home)).read_metadata().state_dict_metadata
    names = [key.partition("/")[2] for key in known if key.partition("/")[0] == file]
    found = {name: _room(known[f"{file}/{name}"], (like or {}).get(name)) for name in names}
    if not found:
        return found
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is")  # reading alone is meant
        wanted = {f"{file}/{name}": tensor for name, tensor in found.items()}
        try:
            load(wanted, storage_reader=HuggingFaceStorageReader(str(home)), no_dist=True)
        except CheckpointException as error:  # no Exception of Python's: it would pass every handler
            raise OSError(reason(error)) from None
    return found


def reason(error: BaseException) -> str:
    """What went wrong, in a line: of torch's CheckpointException the first process's trouble."""
    failures = getattr(error, "failures", None)
    first = next(iter(failures.values()))[0] if failures else error
    text = (isinstance(first, OSError) and first.strerror) or str(first).strip() or type(first).__name__
    return text.splitlines()[0]


def _room(known: Any, like: Tensor | None) -> Tensor:
    dtype = known.properties.dtype
    if is_cut(like) and like.shape == known.size:
        return torch.empty_like(like, dtype=dtype, requires_grad=False)
    return torch.empty(known.size, dtype=dtype)
