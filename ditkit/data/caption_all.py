"""Synthetic captions of a whole source, written so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ditkit.data.captions import FILE_COLUMN, SYNTHETIC
from ditkit.data.rejects import REJECTS
from ditkit.data.source import ImageSource
from ditkit.files import write_atomic, write_text
from ditkit.protocols import BadImage

Describe = Callable[[Sequence[Image.Image]], list[str]]


class Captioned(NamedTuple):
    """How many images got a caption, which did not and why (path -> reason), and how many were done before."""

    captions: int
    rejects: dict[str, str]
    before: int


def caption_all(
    source: ImageSource,
    describe: Describe,
    out: Path,
    *,
    author: str,
    batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Captioned:
    """Caption every picture of `source`, `batch` at a time, into the JSONL table `out` (file_name, synthetic).

    Pictures are handed over whole, as stored. What cannot be captioned goes to out's .rejects.jsonl with the reason:
    captions and rejects together are the images. Work in progress is kept in .NAME.begun beside `out`, which appears
    when all is done. author: what makes the captions; captions begun by another are not mixed in (ValueError).
    FileExistsError if `out` is there.
    """
    check_free(out)
    begun = out.with_name(f".{out.name}.begun")
    done = _resume(begun, author)
    indices = {source.key(i): i for i in range(len(source))}
    done = {key: found for key, found in done.items() if key in indices}
    todo, before = [key for key in indices if key not in done], len(done)
    with begun.open("a", encoding="utf-8") as file:
        for keys, pictures in _read_ahead(source, indices, todo, batch):
            for key, (text, reason) in zip(keys, _describe(describe, pictures, bool(done)), strict=True):
                done[key] = (text, reason)
                file.write(json.dumps({FILE_COLUMN: key, SYNTHETIC: text, "reason": reason}) + "\n")
            file.flush()
            if progress is not None:
                progress(len(done), len(indices))
    rejects = {source.name(indices[key]): done[key][1] for key in indices if done[key][1]}
    if rejects:
        lines = (json.dumps({"path": path, "reason": reason}) for path, reason in rejects.items())
        write_text(out.with_suffix(REJECTS), "\n".join(lines) + "\n")
    rows = [
        json.dumps({FILE_COLUMN: key, SYNTHETIC: done[key][0]}, ensure_ascii=False) for key in indices if done[key][0]
    ]
    if not rows:
        begun.unlink()
        raise ValueError(f"none of the {len(indices)} images could be captioned; {next(iter(rejects.items()))}")
    write_atomic(out, lambda file: file.write(("\n".join(rows) + "\n").encode()))
    begun.unlink()
    return Captioned(len(rows), rejects, before)


def check_free(out: Path) -> None:
    """FileExistsError if there is a table `out`."""
    if out.exists():
        raise FileExistsError(f"{out}: exists already; remove it to write captions anew, or choose another with --out")


def _resume(begun: Path, author: str) -> dict[str, tuple[str, str]]:
    """key -> (caption, reason) of the lines written before; a torn last line is cut off. Begins the file if need be."""
    done: dict[str, tuple[str, str]] = {}
    begun.parent.mkdir(parents=True, exist_ok=True)
    lines = begun.read_bytes().split(b"\n") if begun.is_file() else [b""]
    whole = lines[:-1]
    if len(whole) < 2:  # no caption yet
        write_text(begun, json.dumps({"author": author}) + "\n")
        return done
    if (other := json.loads(whole[0]).get("author")) != author:
        raise ValueError(f"{begun}: captions begun by {other}, not by {author}; remove it to begin anew")
    for line in whole[1:]:
        row = json.loads(line)
        done[row[FILE_COLUMN]] = (row[SYNTHETIC], row["reason"])
    if lines[-1]:
        write_atomic(begun, lambda file: file.write(b"\n".join(whole) + b"\n"))
    return done


def _read_ahead(
    source: ImageSource, indices: dict[str, int], todo: list[str], batch: int
) -> Iterator[tuple[list[str], list[Image.Image | BadImage]]]:
    """(keys, pictures) of a batch after the other; the next is decoded while one is described."""
    parts = [todo[start : start + batch] for start in range(0, len(todo), batch)]
    with ThreadPoolExecutor(4) as pool:
        ahead = [pool.submit(_picture, source, indices[key]) for key in (parts[0] if parts else ())]
        for number, keys in enumerate(parts):
            now = ahead
            ahead = (
                [pool.submit(_picture, source, indices[key]) for key in parts[number + 1]]
                if parts[number + 1 :]
                else []
            )
            yield keys, [found.result() for found in now]


def _picture(source: ImageSource, index: int) -> Image.Image | BadImage:
    try:
        return source.picture(index)
    except BadImage as bad:
        return bad


def _describe(describe: Describe, pictures: list[Image.Image | BadImage], worked: bool) -> list[tuple[str, str]]:
    """(caption, "") or ("", reason) for each picture; one by one where a batch holds a picture that the model refuses.

    A model that has never worked and refuses all is not the pictures' fault: its error goes up.
    """
    good = [picture for picture in pictures if not isinstance(picture, BadImage)]
    texts: list[str | ValueError] = []
    try:
        texts += describe(good) if good else []
    except ValueError as error:
        texts = [_describe_one(describe, picture) for picture in good]
        if not worked and all(isinstance(text, ValueError) for text in texts):
            raise error
    answers = iter(texts)
    found = [picture if isinstance(picture, BadImage) else next(answers) for picture in pictures]
    return [_result(one) for one in found]


def _describe_one(describe: Describe, picture: Image.Image) -> str | ValueError:
    try:
        return describe([picture])[0]
    except ValueError as error:
        return error


def _result(found: str | ValueError) -> tuple[str, str]:
    if isinstance(found, BadImage):
        return "", found.reason
    if isinstance(found, ValueError):
        return "", " ".join(str(found).split()) or type(found).__name__
    return (found, "") if found else ("", "the model wrote an empty caption")
