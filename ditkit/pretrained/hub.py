"""Pretrained networks from a local folder, the hub's cache, or the hub itself: in that order, and quickly."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from ditkit.pretrained.missing import PretrainedMissing, first_line, optional

T = TypeVar("T")
PUBLISHERS = (
    "facebook",
    "openai",
    "google",
    "google-t5",
    "laion",
    "stabilityai",
)  # of the networks that ditkit knows by name
TIMEOUT = 5.0  # seconds that the hub has to answer before it counts as out of reach


def is_local(source: str) -> bool:
    """Whether `source` means something on disk: it exists, or it does not look like a hub id (org/name).

    "runs/teacher" and "mine/x" beside a folder `mine` are paths with a slip of the pen; PUBLISHERS stay hub ids.
    """
    first = source.partition("/")[0]
    slip = first == "runs" or (Path(first).is_dir() and first not in PUBLISHERS)
    return Path(source).expanduser().exists() or source.count("/") != 1 or source[0] in "./~" or slip


def at_hand(source: str) -> bool:
    """Whether a folder, a file or a hub id's files are on this machine (which does not say that they are whole)."""
    if is_local(source):
        return Path(source).expanduser().exists()
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return False
    return (Path(HF_HUB_CACHE) / f"models--{source.replace('/', '--')}").is_dir()


def check_there(source: str, what: str) -> None:
    """PretrainedMissing if `source` is a path and nothing is there; asked before any extra package is."""
    if is_local(source) and not Path(source).expanduser().exists():
        raise PretrainedMissing(what, "no folder of that name here (a hub id looks like org/name)")


def offline() -> bool:
    """Whether the user asked for no network (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE)."""
    return any(
        os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def fetch(load: Callable[..., T], source: str, what: str) -> T:
    """Call load(place, local_files_only=...) on the folder or hub id `source`; PretrainedMissing says why not.

    A hub id is looked for in the cache first, so that a second run needs no network and gets the same weights. The
    hub is asked once, with a short timeout, before transformers' own patient retries may start.
    """
    path = Path(source).expanduser()
    if is_local(source):
        check_there(source, what)
        if not path.is_dir():
            raise PretrainedMissing(what, f"{source!r} is a file, where a folder is expected")
        return _load(load, str(path), what, local=True)
    try:
        return _silently(load, source, local=True)
    except PretrainedMissing:
        raise
    except OSError as error:  # how transformers and diffusers say "not in the cache"
        if offline():
            reason = "no folder of that name here, not in the hub's cache, and HF_HUB_OFFLINE forbids the network"
            raise PretrainedMissing(what, reason) from error
    except Exception as error:  # in the cache, but not what it should be
        raise PretrainedMissing(what, first_line(error)) from error
    _ask_hub(source, what)
    return _load(load, source, what, local=False)


def _silently(load: Callable[..., T], place: str, *, local: bool) -> T:
    with warnings.catch_warnings():  # the libraries warn about each other's arguments
        warnings.simplefilter("ignore")
        return load(place, local_files_only=local)


def _load(load: Callable[..., T], place: str, what: str, *, local: bool) -> T:
    try:
        return _silently(load, place, local=local)
    except PretrainedMissing:
        raise
    except Exception as error:  # a damaged or foreign folder fails in many ways; all mean the same to the user
        raise PretrainedMissing(what, first_line(error)) from error


def _ask_hub(source: str, what: str) -> None:
    hub = optional("huggingface_hub", what)
    try:
        hub.HfApi().model_info(source, timeout=TIMEOUT)
    except hub.errors.GatedRepoError as error:
        raise PretrainedMissing(what, "its licence must be accepted on the hub first") from error
    except hub.errors.RepositoryNotFoundError as error:
        raise PretrainedMissing(what, "the hub has no such model (or it is private)") from error
    except Exception as error:  # whatever the HTTP client of the day raises
        reason = f"no folder of that name here, not in the cache, and the hub is out of reach ({first_line(error)})"
        raise PretrainedMissing(what, reason) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' progress bars and load reports off the screen; what matters is checked and raised by us."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
