"""docs/papers.md: every file, name, test, command and claim on the page exists, and every claim has a row."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from ditkit.cli import app
from ditkit.cli.errors import UsageError
from ditkit.recipes import RECIPES
from ditkit.recipes.choose import choose
from ditkit.recipes.claims import CLAIMS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "papers.md"
HEADS = ["paper", "what", "code", "command", "test", "claim"]


class Row(NamedTuple):
    """A row of the page: its cells and its line."""

    line: int
    paper: str
    what: str
    code: str
    command: str
    test: str
    claim: str


def cells(line: str) -> list[str]:
    """The cells of a line of a table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def rows(text: str) -> Iterator[Row]:
    """All rows of all tables; AssertionError where a row has other cells than its head."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("|") or set(line) <= set("|- "):
            continue
        found = cells(line)
        assert len(found) == len(HEADS), f"line {number} has {len(found)} cells"
        if found != HEADS:
            yield Row(number, *found)


ROWS = list(rows(PAGE.read_text(encoding="utf-8")))


def quoted(cell: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", cell)


@cache
def names_of(file: Path) -> set[str]:
    """Functions, classes, methods (as Class.method) and constants of a module."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{n.name}" for n in node.body if isinstance(n, ast.FunctionDef)}
    return found


def missing(cell: str, below: Path) -> list[str]:
    """Files, and names of the file before them, that are not there."""
    lost, file = [], None
    for word in quoted(cell):
        if word.endswith(".py"):
            file = below / word
            lost += [] if file.is_file() else [word]
        elif file is None or not file.is_file() or word not in names_of(file):
            lost.append(word)
    return lost


def parse(words: list[str]) -> typer.Context:
    """The words as the verb's own parser reads them; UsageError for a verb or option that is not there."""
    command, name, parent = typer.main.get_command(app), "ditkit", None
    while hasattr(command, "resolve_command"):
        parent = command.make_context(name, list(words), parent=parent)
        name, command, words = command.resolve_command(parent, [*parent._protected_args, *parent.args])
    return command.make_context(name, list(words), parent=parent)


def check_command(line: str) -> None:
    """UsageError or AssertionError for a verb, an option, a recipe, a key or a claim that is not there."""
    program, verb, *rest = shlex.split(line)
    assert program == "ditkit"
    parse([verb, *rest])
    families = "|".join({name.partition(".")[0] for name in RECIPES})
    named = [w for w in rest if re.fullmatch(rf"({families})\.[a-z0-9_]+", w)]
    lost = [w for w in named if w not in RECIPES]
    assert not lost, f"no such recipe: {lost}"
    if verb == "train":
        choose(named[0], [w for w in rest if re.match(r"[a-z_.]+=", w)])
    if verb == "reproduce":
        assert rest[0] in CLAIMS


def test_the_page_has_the_papers():
    titles = re.findall(r"^## (\w+)", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert titles == ["DiT", "SiT", "REPA", "DDT", "SD3", "Together"]
    assert len(ROWS) > 70


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"line{row.line}")
def test_what_a_row_names_exists(row):
    assert row.paper and row.what and row.code and row.test
    assert not missing(row.code, ROOT / "ditkit")
    assert not missing(row.test, ROOT / "tests")
    assert all(name in CLAIMS for name in quoted(row.claim)), row.claim
    for line in quoted(row.command):
        check_command(line)


def test_every_claim_has_a_row():
    assert {name for row in ROWS for name in quoted(row.claim)} == set(CLAIMS)


def test_what_is_not_there_is_seen():
    assert missing("`diffusion/paths.py`", ROOT / "ditkit") == ["diffusion/paths.py"]
    assert missing("`diffusion/path.py` `Linear` `Lineal`", ROOT / "ditkit") == ["Lineal"]
    assert missing("`models/ddt.py` `DDT.encode` `DDT.encore`", ROOT / "ditkit") == ["DDT.encore"]
    with pytest.raises(AssertionError, match="no such recipe"):
        check_command("ditkit show sit.xl_3")
    with pytest.raises(UsageError):
        check_command("ditkit trane digits.sit")
    with pytest.raises(AssertionError):
        check_command("ditkit reproduce nothing")
    with pytest.raises(AssertionError, match="cells"):
        list(rows("| a | b |"))
