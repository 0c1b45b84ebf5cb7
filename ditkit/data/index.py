"""Index files: which images of a source are kept. Made by filters and the search for duplicates, read by training."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ditkit.data.source import DataError, ImageSource, Subset
from ditkit.files import write_text

KIND = "ditkit-index"


class Rule(NamedTuple):
    """One reason to leave images out: its words, how many images it takes, and how many no rule before it takes."""

    rule: str
    takes: int
    more: int


class Index(NamedTuple):
    """What an index file says. identity, images: of the source it was made for. kept: (n,) int64 rows, ascending."""

    source: str
    identity: str
    images: int
    rules: tuple[Rule, ...]
    kept: np.ndarray


def identity_of(source: ImageSource) -> str:
    """Short stable hash of which pictures a source holds, whatever their labels and captions and the size asked for."""
    digest = hashlib.sha256()
    for line in source.identity():
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()[:16]


def write_index(
    path: str | os.PathLike, source: ImageSource, name: str, kept: np.ndarray, rules: Sequence[Rule]
) -> Path:
    """Write the index of the rows `kept` of `source`, which the user calls `name`. Nothing else is touched."""
    if not len(kept):
        raise DataError(f"none of the {len(source)} images of {name} is kept; the rules take them all")
    about = {
        "kind": KIND, "source": name, "identity": identity_of(source), "images": len(source), "count": len(kept),
        "rules": [rule._asdict() for rule in rules], "kept": np.asarray(kept).tolist(),
    }  # fmt: skip
    return write_text(Path(path), json.dumps(about, ensure_ascii=False) + "\n")


def read_index(path: str | os.PathLike) -> Index:
    """The index in a file. DataError, one line, where it is none."""
    try:
        about = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        if about["kind"] != KIND:
            raise ValueError(f"kind {about['kind']!r}")
        kept = np.array(about["kept"], dtype=np.int64)
        found = Index(
            about["source"], about["identity"], about["images"], tuple(Rule(**r) for r in about["rules"]), kept
        )
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not an index that `ditkit data filter` wrote ({error})") from error
    if not len(kept) or kept.ndim != 1 or kept.min() < 0 or kept.max() >= found.images or (np.diff(kept) <= 0).any():
        raise DataError(f"{path}: damaged: its rows are not ascending numbers below {found.images}")
    return found


def hash_of(path: str | os.PathLike) -> str:
    """Short stable hash of the rows that an index file keeps, and of which pictures; raises as `read_index`."""
    index = read_index(path)
    said = f"{index.identity} {index.images} {index.kept.tolist()}"
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def rows_of(source: ImageSource, path: str | os.PathLike) -> np.ndarray:
    """The rows of `source` that an index file keeps. DataError where it was made for other pictures."""
    index = read_index(path)
    if (index.images, index.identity) != (len(source), identity_of(source)):
        raise DataError(
            f"{path}: this index is of other images ({index.images} of {index.source!r}) than these "
            f"{len(source)}, such as {source.name(0)}; make it again with `ditkit data filter`"
        )
    return index.kept


def chosen(source: ImageSource, path: str | os.PathLike) -> Subset:
    """The images of `source` that the index file keeps, in their order."""
    part = Subset(source, rows_of(source, path))
    part.notes += (f"{len(part)} of {len(source)} images are used, as {path} says",)
    return part
