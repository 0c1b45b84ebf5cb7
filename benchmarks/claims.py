"""The ledger of claims: keep results of `ditkit reproduce` and write the page, the picture and the README's line.

    python benchmarks/claims.py [FOLDER...] [--tried FOLDER] [--root .]

FOLDER: what `ditkit reproduce --out` wrote, or a folder of such folders. Its result.json is copied as it is to
benchmarks/claims/, named by claim, data, budget and keys. Without a folder the page is written anew from what is there.
--tried: a folder of CLAIM.txt, what was tried where a claim did not hold, which go into benchmarks/claims/tried.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ditkit.config import read_file, read_settings
from ditkit.files import write_atomic, write_text
from ditkit.recipes.claims import CLAIMS
from ditkit.recipes.reproduce.claim import Claim
from ditkit.recipes.reproduce.ledger_page import Ledger, file_name, ledger_page
from ditkit.recipes.reproduce.ledger_picture import ledger_picture
from ditkit.recipes.reproduce.result import RESULT, Result

KEPT = Path("benchmarks") / "claims"
PAGE = Path("docs") / "claims.md"
PICTURE = Path("docs") / "images" / "ledger.png"
README = Path("README.md")
TRIED = "tried.json"
MORE = "How to read, rerun and add claims: [reproduce.md](reproduce.md)."
MARKS = ("<!-- ledger -->", "<!-- /ledger -->")


def read_ledger(root: Path, claims: Mapping[str, Claim] = CLAIMS) -> Ledger:
    """The results and trials that are kept under `root`. SettingsError, one line, for a file that is no result."""
    folder = root / KEPT
    files = sorted(file for file in folder.glob("*.json") if file.name != TRIED)
    results = {file.stem: read_settings(Result, read_file(file), str(file)) for file in files}
    tried = folder / TRIED
    return Ledger(claims, results, json.loads(tried.read_text(encoding="utf-8")) if tried.is_file() else {})


def found_in(folders: Iterable[Path]) -> list[Path]:
    """The result files of run folders, folders of them, or files that are named themselves."""
    files: list[Path] = []
    for folder in folders:
        here = [folder] if folder.is_file() else [folder / RESULT] if (folder / RESULT).is_file() else []
        below = here or sorted(folder.glob(f"*/{RESULT}"))
        if not below:
            raise ValueError(f"{folder}: no {RESULT} in it, nor in a folder below it")
        files += below
    return files


def keep(file: Path, root: Path) -> str:
    """Copy a result to its place, as it is; what was done. ValueError for one that must not be kept."""
    result = read_settings(Result, read_file(file), str(file))
    place = root / KEPT / f"{file_name(result)}.json"
    if result.budget == "smoke":
        return f"{file}: a smoke run, left out"
    if (result.environment.get("git") or {}).get("dirty"):
        raise ValueError(f"{file}: made with uncommitted changes, so that nobody can make it again; run it once more")
    there = read_settings(Result, read_file(place), str(place)) if place.is_file() else None
    if there is not None and len(there.seeds) > len(result.seeds):
        return f"{file}: {len(result.seeds)} seeds, {place.name} has {len(there.seeds)}, left out"
    if there is not None and there.date > result.date:
        return f"{file}: of {result.date}, {place.name} is of {there.date}, left out"
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, place)
    before = f", was {there.verdict}" if there is not None and there.verdict != result.verdict else ""
    return f"{place.name}: {result.verdict}{before}"


def keep_tried(folder: Path, root: Path) -> None:
    """Take FOLDER/CLAIM.txt into tried.json."""
    place = root / KEPT / TRIED
    known = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    known |= {file.stem: " ".join(file.read_text(encoding="utf-8").split()) for file in sorted(folder.glob("*.txt"))}
    if unknown := sorted(set(known) - set(CLAIMS)):
        raise ValueError(f"{folder}: {', '.join(unknown)}: no such claim")
    write_text(place, json.dumps(dict(sorted(known.items())), indent=2, ensure_ascii=False) + "\n")


def page_of(ledger: Ledger) -> str:
    """docs/claims.md."""
    return ledger_page(ledger, picture=f"images/{PICTURE.name}", folder=f"../{KEPT.as_posix()}", more=MORE)


def with_line(readme: str, ledger: Ledger) -> str:
    """The README with the ledger's headline between its marks."""
    begin, end = (readme.index(mark) for mark in MARKS)
    return readme[: begin + len(MARKS[0])] + "\n" + ledger.headline + "\n" + readme[end:]


def main(words: Sequence[str] | None = None) -> None:
    """Keep, then write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER")
    parser.add_argument("--tried", type=Path, metavar="FOLDER")
    parser.add_argument("--root", type=Path, default=Path(), help="of the repository")
    asked = parser.parse_args(words)
    try:
        for file in found_in(asked.folders):
            print(keep(file, asked.root))
        if asked.tried:
            keep_tried(asked.tried, asked.root)
        ledger = read_ledger(asked.root)
    except ValueError as error:
        parser.error(str(error))
    write_text(asked.root / PAGE, page_of(ledger))
    write_atomic(asked.root / PICTURE, lambda file: file.write(ledger_picture(ledger)))
    readme = asked.root / README
    write_text(readme, with_line(readme.read_text(encoding="utf-8"), ledger))
    print(f"{PAGE}, {PICTURE}: {ledger.headline}")


if __name__ == "__main__":
    main()
