"""One file from the network, once, and only under a checksum: "https://host/path/file.pth#sha256=HEX"."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.request
from pathlib import Path
from typing import IO

from ditkit.files import write_atomic
from ditkit.pretrained.hub import offline
from ditkit.pretrained.missing import PretrainedMissing, first_line

TIMEOUT = 15.0  # seconds without an answer after which a server counts as out of reach
DIGITS = 8  # of a checksum at least: publishers put that many into file names


def cache_folder() -> Path:
    """Where downloads stay: $DITKIT_CACHE, else $XDG_CACHE_HOME/ditkit, else ~/.cache/ditkit."""
    if named := os.environ.get("DITKIT_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ditkit"


def is_url(source: str) -> bool:
    """Whether `source` names a file by http or https."""
    return source.startswith(("http://", "https://"))


def download(source: str, what: str) -> Path:
    """The file of a URL with "#sha256=HEX" (the first 8 digits at least), from the cache or else from its server.

    It appears in the cache whole and verified, or not at all; one found there is verified again. PretrainedMissing says
    why it cannot be had.
    """
    url, _, mark = source.partition("#")
    match = re.fullmatch(rf"sha256=([0-9a-fA-F]{{{DIGITS},64}})", mark)
    if not match:
        fault = f"{mark!r} is no checksum" if mark else "it has no checksum"
        raise PretrainedMissing(what, f"{fault}: write {url}#sha256=HEX, the output of sha256sum on a copy you trust")
    wanted = match[1].lower()
    path = cache_folder() / f"{wanted[:16]}-{url.rpartition('/')[2].partition('?')[0] or 'file'}"
    if path.is_file() and _digest(path).startswith(wanted):
        return path
    if offline():
        raise PretrainedMissing(what, f"it is not in {path.parent}, and HF_HUB_OFFLINE forbids the network")
    try:
        return write_atomic(path, lambda file: _fetch(url, wanted, file))
    except ValueError as error:
        raise PretrainedMissing(what, first_line(error)) from error
    except OSError as error:  # no network, no such page, no room on the disk
        raise PretrainedMissing(what, f"{url} cannot be fetched into {path.parent} ({first_line(error)})") from error


def _fetch(url: str, wanted: str, file: IO[bytes]) -> None:
    """Copy what the server sends; ValueError where it is not what was asked for."""
    digest = hashlib.sha256()
    request = urllib.request.Request(url, headers={"User-Agent": "ditkit"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        while block := answer.read(1 << 20):
            digest.update(block)
            file.write(block)
    if not digest.hexdigest().startswith(wanted):
        raise ValueError(
            f"what {url} sends has sha256 {digest.hexdigest()}, not {wanted}: another file, or a damaged one"
        )


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
