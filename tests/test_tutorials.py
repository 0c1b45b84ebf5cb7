"""The documents do what they say: the tutorial's blocks run in order, and every command in every document parses."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from ditkit.cli import app
from ditkit.cli.errors import UsageError
from ditkit.recipes import RECIPES
from ditkit.recipes.choose import choose

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks/README.md"]

# What the tutorials say -> what runs here: fewer steps and images, nothing else but a verdict where so short a run gets
# nothing right. Each must be there.
FEWER = {
    "ddt": {
        "--steps 600": "--steps 8 batch=32",
        "--steps 800": "--steps 12 training.batch=16 training.validate_every=12 sampling.steps=10",
        "--steps 200": "--steps 2 training.batch=8 training.validate_every=2 sampling.steps=2",
        "--n 40": "--n 10",
        "--n 256": "--n 100 --real 100 classifier.steps=4",
        "--budget 12": "--budget 4",  # of 10 evaluations
        "evaluations=25": "evaluations=10",
    },
    "sd3": {
        "--steps 4000": "--steps 6 training.batch=8 training.validate_every=6 sampling.steps=2",
        "--steps 600": "--steps 8 batch=32",
        "--steps 800": "--steps 4 training.batch=8 training.validate_every=4 sampling.steps=2",
        "--steps 300": "--steps 2 training.validate_every=2 sampling.steps=2",
        "--steps 200": "--steps 2 training.batch=8 training.validate_every=2 sampling.steps=2",
        "--steps 100": "--steps 2 training.validate_every=2 sampling.steps=2",
        "--n 64": "--n 4",
        "--geneval\n": "--geneval --n 12\n",
        "scene_prompts(16,": "scene_prompts(2,",
        "--n 384": "--n 24",
        'image["correct"]': 'image["index"] % 2',
    },
}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language and text, and where it begins."""

    file: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def blocks(file: Path) -> list[Block]:
    """Every fenced block of a document, in order."""
    text = file.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(file, text[: m.start()].count("\n") + 1, m[1], m[2]) for m in found]


def commands(block: Block) -> list[list[str]]:
    """The words of every `ditkit ...` line of a block that is no Python; lines ending in a backslash are joined."""
    if block.language in ("python", "yaml"):
        return []
    lines = block.text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("ditkit ")]


COMMANDS = [
    pytest.param(words, id=f"{block}-{number}")
    for file in DOCUMENTS
    for block in blocks(file)
    for number, words in enumerate(commands(block))
]


def parse(words: list[str]):
    """The words as the verb's own parser reads them; UsageError for a verb or option that is not there."""
    command, name, parent = typer.main.get_command(app), "ditkit", None
    while isinstance(command, typer.core.TyperGroup):
        parent = command.make_context(name, list(words), parent=parent)
        name, command, words = command.resolve_command(parent, [*parent._protected_args, *parent.args])
    return command.make_context(name, list(words), parent=parent)


def test_there_are_commands_and_a_tutorial():
    assert len(COMMANDS) > 40
    assert [file.stem for file in TUTORIALS] == sorted(FEWER)


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_in_documents_parse(words):
    context = parse(words)
    given = [str(v) for v in context.params.values() if isinstance(v, (str, Path))]
    given += [str(w) for v in context.params.values() if isinstance(v, (list, tuple)) for w in v]
    families = {name.partition(".")[0] for name in RECIPES}
    files = (".pt", ".ckpt", ".safetensors")
    named = [w for w in given if re.fullmatch(rf"({'|'.join(families)})\.[a-z]\w*", w) and not w.endswith(files)]
    assert not (lost := [w for w in named if w not in RECIPES]), f"no such recipe: {lost}"
    keys = [w for w in given if re.match(r"[a-z_.]+=", w)]
    if context.info_name == "train" and named:
        choose(named[0], keys)  # refuses a key or a value that the recipe does not take


@pytest.mark.parametrize(
    "line",
    ["trane digits.sit", "train digits.sit --fast", "bench sharing --steps five", "analyze runs/ddt"],
)
def test_what_is_wrong_does_not_parse(line):
    with pytest.raises(UsageError):
        parse(line.split())


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_and_pictures_of_documents_are_there(file):
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose)
    here = [t for t in targets if "://" not in t]
    assert not (lost := [t for t in here if not (file.parent / t).exists()]), f"{file.name}: {lost}"


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("file", TUTORIALS, ids=lambda file: file.stem)
def test_tutorial_runs_as_written(file, tmp_path):
    fewer, used = FEWER[file.stem], set()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    for block in blocks(file):
        if block.language not in ("bash", "python"):
            continue
        text = block.text
        for written, replaced in fewer.items():
            used |= {written} if written in text else set()
            text = text.replace(written, replaced)
        runner = (
            ["bash", "-euo", "pipefail", "-c"] if block.language == "bash" else [sys.executable, "-W", "error", "-c"]
        )
        done = subprocess.run(
            [*runner, text], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{block}\n{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert used == set(fewer), f"not in {file.name} any more: {set(fewer) - used}"
