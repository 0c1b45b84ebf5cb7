"""The house: layers and limits of DESIGN.md sections 1-2, read from the source with `ast`.

Every rule is a function from one parsed file to the lines that break it, and is itself tried on source that breaks it.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ditkit"
FILES = sorted(PACKAGE.rglob("*.py"))

# Imports go downwards only; rooms of one layer know nothing of each other.
LAYERS = (
    {"config", "protocols", "files", "ranks"},
    {"diffusion", "nn"},
    {"models", "pretrained", "data"},
    {"align"},
    {"checkpoints"},
    {"training", "evaluation", "analysis"},
    {"recipes"},
    {"cli", "studio"},
)
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
NEVER = {("models", "diffusion")}
LIMITS = {"file": 400, "function": 60, "arguments": 9, "copied": 8}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}
MAY_PASS_KWARGS_ON = {"pretrained", "checkpoints", "protocols"}  # foreign borders
MAY_IMPORT_LATE = {"cli", "studio"}


def room_of(file: Path) -> str:
    """ditkit/diffusion/path.py -> "diffusion"; ditkit/config.py -> "config"; ditkit/__init__.py -> ""."""
    first = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first.startswith("__") else first


@functools.cache
def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def own_rooms(node: ast.AST) -> list[str]:
    """The rooms of ditkit that an import statement names."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        module = node.module or ""
        names = [f"{module}.{alias.name}" for alias in node.names] if module == "ditkit" else [module]
        if node.level:
            return ["(relative)"]
    else:
        return []
    parts = [name.split(".") for name in names]
    return [p[1] for p in parts if p[0] == "ditkit" and len(p) > 1 and not p[1].startswith("__")]


# ---------------------------------------------------------------------------------------------------- the rules


def upward_imports(room: str, tree: ast.Module) -> list[str]:
    found = []
    for node in ast.walk(tree):
        for other in own_rooms(node):
            allowed = room == "" or other == room or RANK.get(other, 99) < RANK.get(room, -1)
            if not allowed or (room, other) in NEVER:
                found.append(f"line {node.lineno}: {room} imports {other}")
    return found


def late_imports(room: str, tree: ast.Module) -> list[str]:
    if room in MAY_IMPORT_LATE:
        return []
    late = (node for function in functions(tree) for node in ast.walk(function) if own_rooms(node))
    return [f"line {node.lineno}: own module imported inside a function" for node in late]


def star_imports(room: str, tree: ast.Module) -> list[str]:
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    return [f"line {node.lineno}: star import" for node in nodes if any(alias.name == "*" for alias in node.names)]


def long_functions(room: str, tree: ast.Module) -> list[str]:
    lengths = ((f, f.end_lineno - f.lineno + 1) for f in functions(tree))
    return [f"line {f.lineno}: {f.name} has {n} lines" for f, n in lengths if n > LIMITS["function"]]


def many_arguments(room: str, tree: ast.Module) -> list[str]:
    found = []
    for f in functions(tree):
        a = f.args
        n = len(a.posonlyargs) + len(a.args) + len(a.kwonlyargs) + (a.vararg is not None) + (a.kwarg is not None)
        if n > LIMITS["arguments"]:
            found.append(f"line {f.lineno}: {f.name} has {n} arguments")
    return found


def passed_on_kwargs(room: str, tree: ast.Module) -> list[str]:
    """An anonymous **kwargs hides what a function takes; named ones (**overrides, **arrays) are data."""
    if room in MAY_PASS_KWARGS_ON:
        return []
    taken = ((f, f.args.kwarg.arg) for f in functions(tree) if f.args.kwarg)
    return [f"line {f.lineno}: {f.name} takes **{name}" for f, name in taken if name in ("kwargs", "kw", "args", "_")]


def missing_docstrings(room: str, tree: ast.Module) -> list[str]:
    found = [] if ast.get_docstring(tree) or not tree.body else ["line 1: the module has no docstring"]
    for node in tree.body:
        public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
        if public and not ast.get_docstring(node):
            found.append(f"line {node.lineno}: {node.name} has no docstring")
    return found


def effects_at_import(room: str, tree: ast.Module) -> list[str]:
    """Bare calls, loops and `with` at module level; the command line registers its verbs in one loop."""
    allowed = (ast.For, ast.Expr) if room == "cli" else ()
    effect = [
        node
        for node in tree.body
        if isinstance(node, (ast.For, ast.While, ast.With))
        or (isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant))
    ]
    return [f"line {node.lineno}: runs at import" for node in effect if not isinstance(node, allowed)]


def hard_wired_cuda(room: str, tree: ast.Module) -> list[str]:
    """`.cuda()` and "cuda" as a value; asking (comparison, choice by availability) is fine."""
    asked: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) or (
            isinstance(node, (ast.If, ast.IfExp)) and re.search(r"available|cuda|device", ast.unparse(node.test))
        ):
            asked |= set(ast.walk(node))
    found = []
    for node in ast.walk(tree):
        called = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda"
        text = (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"cuda(:\d+)?", node.value)
        )
        if called or (text and node not in asked):
            found.append(f"line {node.lineno}: hard-wired cuda")
    return found


def unfinished(room: str, tree: ast.Module) -> list[str]:
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    return [f"line {node.lineno}: {node.id}" for node in names if node.id == "NotImplementedError"]


RULES = (
    upward_imports,
    late_imports,
    star_imports,
    long_functions,
    many_arguments,
    passed_on_kwargs,
    missing_docstrings,
    effects_at_import,
    hard_wired_cuda,
    unfinished,
)


def deep_classes(trees: dict[str, ast.Module]) -> list[str]:
    """Classes with more than one own class above them; a base is own if its file defines it or has it from ditkit."""
    bases: dict[str, list[str]] = {}
    for where, tree in trees.items():
        imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and own_rooms(node))
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        own = {alias.asname or alias.name: alias.name for node in imports for alias in node.names}
        own |= {node.name: f"{where}:{node.name}" for node in classes}
        for node in classes:
            names = [ast.unparse(base).split("[")[0] for base in node.bases]
            bases[f"{where}:{node.name}"] = [own[name] for name in names if name in own]
    defined = {key.rpartition(":")[2]: key for key in bases}

    def above(key: str) -> set[str]:
        direct = {base if ":" in base else defined.get(base, base) for base in bases.get(key, ())}
        return direct.union(*(above(base) for base in direct))

    return [f"{key} stands on {', '.join(sorted(above(key)))}" for key in bases if len(above(key)) > 1]


def code_lines(source: str) -> list[tuple[int, str]]:
    """(line number, stripped text) without blank lines, comments, docstrings, imports and lone brackets."""
    skip: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if text or isinstance(node, (ast.Import, ast.ImportFrom)):
            skip |= set(range(node.lineno, node.end_lineno + 1))
    lines = ((number, line.split("  #")[0].strip()) for number, line in enumerate(source.splitlines(), 1))
    return [(n, line) for n, line in lines if n not in skip and re.search(r"\w", line) and not line.startswith("#")]


def copied_blocks(sources: dict[str, str]) -> list[str]:
    """Blocks of 8 equal code lines that stand in two files."""
    size, seen, found = LIMITS["copied"], {}, []
    for where, source in sources.items():
        lines = code_lines(source)
        for i in range(len(lines) - size + 1):
            block = tuple(line for _, line in lines[i : i + size])
            first = seen.setdefault(block, (where, lines[i][0]))
            if first[0] != where:
                found.append(f"{where}:{lines[i][0]} repeats {first[0]}:{first[1]}")
    return found


# ---------------------------------------------------------------------------------------------------- the tests


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps(rule):
    broken = [f"{f.relative_to(ROOT)} {line}" for f in FILES for line in rule(room_of(f), parse(f))]
    assert not broken, "\n".join(broken)


def test_classes_are_shallow():
    assert not deep_classes({str(f.relative_to(ROOT)): parse(f) for f in FILES})


def test_nothing_is_copied():
    assert not copied_blocks({str(f.relative_to(ROOT)): f.read_text(encoding="utf-8") for f in FILES})


def test_files_are_short_and_named_for_what_they_hold():
    long = [f"{f.relative_to(ROOT)}: {n}" for f in FILES if (n := len(f.read_text().splitlines())) > LIMITS["file"]]
    assert not long, long
    assert not [f for f in FILES if set(f.relative_to(PACKAGE).with_suffix("").parts) & FORBIDDEN_NAMES]


def test_no_unfinished_marks():
    words = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    marked = [str(f.relative_to(ROOT)) for f in FILES if words.search(f.read_text(encoding="utf-8"))]
    assert not marked


def test_every_room_stands_in_the_table():
    rooms = {room_of(f) for f in FILES} - {""}
    assert rooms <= set(RANK), rooms - set(RANK)


def test_tests_mirror_the_package():
    modules = sorted(path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py"))
    strangers = [str(m) for m in modules if not (PACKAGE / m.parent).is_dir()]
    assert not strangers, "test folders that mirror no room"
    names = [m.name for m in modules]
    assert len(names) == len(set(names)), sorted(n for n in names if names.count(n) > 1)
    tested = {m.parts[0] for m in modules if len(m.parts) > 1}
    rooms = {f.parent.name for f in PACKAGE.glob("*/*.py") if f.name != "__init__.py"}
    assert rooms <= tested, f"rooms without tests: {sorted(rooms - tested)}"


@pytest.mark.parametrize("module", ["ditkit", "ditkit.cli", "ditkit.config"])
def test_import_is_light_and_silent(module, tmp_path):
    check = f"import sys, {module}; print(sorted({{'torch', 'numpy', 'transformers', 'diffusers'}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=tmp_path, env=_environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", ""), done.stderr
    assert not list(tmp_path.iterdir())


def test_help_needs_no_torch(tmp_path):
    check = (
        "import sys, time; sys.argv = ['ditkit', '--help']\ntry:\n    from ditkit.cli import main; main()\nfinally:\n"
    )
    check += "    print('torch' in sys.modules, time.process_time())"
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=tmp_path, env=_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    loaded, seconds = done.stdout.split()[-2:]
    assert "show" in done.stdout and loaded == "False"
    assert float(seconds) < 1, "of processor time, so that a busy machine does not count"


def _environment() -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PATH": "", "COLUMNS": "120"}


BROKEN = {
    upward_imports: ("diffusion", "import ditkit.models.dit"),
    late_imports: ("training", "def f():\n    from ditkit.config import Settings"),
    star_imports: ("nn", "from torch import *"),
    long_functions: ("nn", "def f():\n" + "    x = 1\n" * LIMITS["function"]),
    many_arguments: ("nn", "def f(a, b, c, d, e, *, f, g, h, i, j): ..."),
    passed_on_kwargs: ("nn", "def f(**kwargs): ..."),
    missing_docstrings: ("nn", '"""Module."""\ndef f(): ...'),
    effects_at_import: ("nn", "torch.set_num_threads(1)"),
    hard_wired_cuda: ("nn", "x = torch.zeros(3, device='cuda:0')"),
    unfinished: ("nn", "def f():\n    raise NotImplementedError"),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_rule_can_fail(rule):
    room, source = BROKEN[rule]
    assert len(rule(room, ast.parse(source))) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("models", "from ditkit.diffusion import path"),
        ("pretrained", "from ditkit.models import dit"),
        ("training", "from ditkit import recipes"),
        ("config", "import ditkit.protocols"),
        ("diffusion", "from .path import Linear\nfrom ditkit.nn import mlp"),
    ],
)
def test_sideways_and_upward_imports_are_seen(room, source):
    assert upward_imports(room, ast.parse(source))


def test_permitted_code_is_permitted():
    assert not upward_imports("align", ast.parse("from ditkit.config import Settings\nfrom ditkit.align.x import y"))
    assert not hard_wired_cuda("nn", ast.parse("d = 'cuda' if torch.cuda.is_available() else 'cpu'"))
    assert not hard_wired_cuda("nn", ast.parse("fused = x.device.type == 'cuda'"))


def test_deep_classes_and_copies_are_seen():
    assert deep_classes({"a": ast.parse("class A: ...\nclass B(A): ...\nclass C(B): ...")})
    assert not deep_classes({"a": ast.parse("class A: ...\nclass B(A): ...\nclass C(nn.Module): ...")})
    across = {
        "a": ast.parse("class A: ...\nclass B(A): ..."),
        "b": ast.parse("from ditkit.a import B\nclass C(B): ..."),
    }
    assert deep_classes(across) == ["b:C stands on a:A, a:B"]
    namesake = {
        "a": ast.parse("class P(S): ..."),
        "b": ast.parse("from typing import P\nclass C(P): ...\nclass D(P): ..."),
    }
    assert not deep_classes(namesake)
    block = "\n".join(f"x{i} = {i}" for i in range(LIMITS["copied"]))
    assert copied_blocks({"a": block, "b": "# other\n\n" + block})
    assert not copied_blocks({"a": block, "b": block.replace("x3", "y3")})
