"""Key names: prefixes of wrappers, renaming, and the strict comparison that every loader ends with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from ditkit.checkpoints.published import CheckpointError, State

Table = tuple[tuple[str, str], ...]  # (official fragment, our fragment), applied in order

_SHOWN = 12


def rename(key: str, table: Table) -> str:
    """Official name -> ours. Fragments are chosen so that `rename(_, inverse(table))` undoes it."""
    for old, new in table:
        key = key.replace(old, new)
    return key


def inverse(table: Table) -> Table:
    """The table that renames our keys to official ones."""
    return tuple((new, old) for old, new in reversed(table))


def without_wrappers(state: Mapping[str, Tensor]) -> State:
    """Drop `module.` (DDP) in front and `_orig_mod.` (torch.compile) anywhere. Raises when two keys become one."""
    clean: State = {}
    for key, value in state.items():
        name = key.replace("_orig_mod.", "")
        while name.startswith("module."):
            name = name.removeprefix("module.")
        if name in clean:
            raise CheckpointError(f"checkpoint: key {name!r} is there twice, with and without a wrapper's prefix")
        clean[name] = value
    return clean


def listed(names: Iterable[str]) -> str:
    """`a, b, c and 9 more`: enough names to act on, in one line."""
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def check(source: str, given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless keys and shapes of `given` are those of `expected`; every difference is listed."""
    problems = []
    if missing := expected.keys() - given.keys():
        problems.append(f"missing {listed(missing)}")
    if unknown := given.keys() - expected.keys():
        problems.append(f"unknown {listed(unknown)}")
    shapes = [
        f"{k} {tuple(given[k].shape)} instead of {tuple(expected[k].shape)}"
        for k in expected.keys() & given.keys()
        if given[k].shape != expected[k].shape
    ]
    if shapes:
        problems.append(f"shape {listed(shapes)}")
    if problems:
        raise CheckpointError(f"source {source!r}: keys do not match: {'; '.join(problems)}")


def need(source: str, state: Mapping[str, Tensor], *keys: str) -> tuple[Tensor, ...]:
    """The tensors that sizes are read from; CheckpointError lists the missing ones."""
    if missing := [k for k in keys if k not in state]:
        raise CheckpointError(
            f"source {source!r}: keys do not match: missing {listed(missing)} (sizes are read from them)"
        )
    return tuple(state[k] for k in keys)
