"""Files of a cache get their name when they are whole; until then they are drafts, named by the process that writes.

A draft whose process is gone is waste and is removed by the next call: of this machine's processes at once, of others'
when nothing was written to it for hours.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from ditkit.data.cache_format import FileFacts
from ditkit.data.source import DataError

OLD = 6 * 3600.0  # seconds after which a draft of another machine that nobody writes to is taken for dead
OURS = re.compile(r"\.(shard-\d+|manifest|plan|rejects|labels|empty)\.[a-z]+\.(?:([0-9a-f]{8})-(\d+)-)?.*\.part")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What the system refuses in the block becomes one line that says how to go on."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"{folder}: the cache cannot be written: {reason}; finished shards stay, and the same command goes on "
            "from them"
        ) from error


def draft_path(path: Path) -> Path:
    """A new name beside `path` for its draft: .NAME.MACHINE-PID-RANDOM.part."""
    return path.with_name(f".{path.name}.{machine()}-{os.getpid()}-{secrets.token_hex(4)}.part")


@cache
def machine() -> str:
    """8 hex digits for where process numbers are those of this process: the host, and its container."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:  # a system without such spaces
        space = ""
    return f"{zlib.crc32(f'{socket.gethostname()} {space}'.encode()):08x}"


def clear_drafts(folder: Path) -> None:
    """Remove the drafts of processes that are gone; those of processes at work stay."""
    for path in folder.glob(".*.part"):
        if (found := OURS.fullmatch(path.name)) is None:
            continue
        with suppress(OSError):  # gone meanwhile, or not ours to remove
            here = found[2] == machine()
            if (here and not alive(int(found[3]))) or time.time() - path.stat().st_mtime > OLD:
                path.unlink()


def alive(process: int) -> bool:
    """Whether a process of this machine lives."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


def place(path: Path, data: bytes, first: bool = False) -> FileFacts:
    """Write a small file whole or not at all; others may do the same. first: what is there already stays."""
    draft = draft_path(path)
    with writing(path.parent):
        try:
            with open(draft, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if not (first and _first(draft, path)):
                os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
    return FileFacts(file=path.name, bytes=len(data), crc32=f"{zlib.crc32(data):08x}")


def _first(draft: Path, path: Path) -> bool:
    """Whether `path` is there now: the draft's content, if nobody was before it. False where it has to be renamed."""
    try:
        os.link(draft, path)
    except FileExistsError:
        return True
    except OSError:  # a file system without links
        return path.exists()
    return True
