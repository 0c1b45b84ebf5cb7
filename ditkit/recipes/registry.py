"""Finding a recipe: by name, in a settings file, or in a user's own Python file."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import ValidationError

from ditkit.config import SettingsError, merge, nearest, override, read_file, read_settings
from ditkit.recipes import ddt, digits, dit, repa, repa_t2i, sd3, sit, t2i
from ditkit.recipes.recipe import Recipe

YAML = (".yaml", ".yml", ".json")

# One line per paper or data set; each module lists its recipes in ROWS.
RECIPES: dict[str, Callable[[], Recipe]] = {
    f"{module.__name__.rpartition('.')[2]}.{row.__name__}": row
    for module in (dit, sit, repa, ddt, sd3, repa_t2i, digits, t2i)
    for row in module.ROWS
}


def recipe(spec: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that `spec` names, with "key=value" overrides.

    spec: a name ("dit.xl_2_256"), a settings file ("mine.yaml", a run's recipe.json; it may begin with `base: NAME`
    and then hold only what differs), or a function of one's own ("./mine.py:big" returning a Recipe).
    Raises SettingsError, one line per problem; an unknown name is answered with the nearest.
    """
    return override(_find(str(spec)), overrides)


def _find(spec: str) -> Recipe:
    if spec in RECIPES:
        return RECIPES[spec]().model_copy(update={"name": spec})
    file, _, function = spec.rpartition(":") if ".py:" in spec else (spec, "", "")
    suffix = Path(file).suffix
    if suffix == ".py":
        return from_python(Path(file), function)
    if suffix in YAML:
        return from_file(Path(file))
    if Path(spec).is_dir() and (Path(spec) / "recipe.json").is_file():
        return from_file(Path(spec) / "recipe.json")
    if Path(spec).is_dir():
        raise SettingsError(f"{spec}: a folder without recipe.json is no run (a run folder is made by ditkit train)")
    what = "no such run folder or recipe" if Path(spec).parent.name else "no such recipe"
    raise SettingsError(f"{spec}: {what}{_closest(spec)} (ditkit show lists all)")


def _closest(spec: str) -> str:
    """The nearest names; a name given without its paper ("xl_2_256") finds those that end like it."""
    if paper := [name for name in RECIPES if name.startswith(f"{spec}.")]:
        return f"; {spec} has {len(paper)}, such as {paper[0]!r}: ditkit show {spec}"
    same = [name for name in RECIPES if name.endswith(f".{spec}")]
    close = same or difflib.get_close_matches(spec, RECIPES, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def from_file(file: Path, seen: tuple[Path, ...] = ()) -> Recipe:
    """A recipe from YAML or JSON: complete, or `base: NAME` (or a file beside it) and what differs from that.

    seen: the files that led here, each the base of the one before.
    """
    tree = read_file(file)
    base = tree.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            raise SettingsError(f"{file}: base is one recipe's name or file, found {base!r}")
        beside = file.parent / base.partition(":")[0]
        if file.resolve() in (chain := (*seen, file.resolve()))[:-1]:
            raise SettingsError(f"{file}: the recipe is its own base, by way of {' -> '.join(p.name for p in chain)}")
        found = from_file(beside, chain) if beside.suffix in YAML and beside.is_file() else None
        found = found or _find(str(file.parent / base) if beside.is_file() else base)
        tree = merge(found.model_dump(), {"name": str(file), "published": (), "source": f"from {base}", **tree})
    missing = [name for name, field in Recipe.model_fields.items() if field.is_required() and name not in tree]
    if len(missing) > 1:
        raise SettingsError(
            f"{file}: {', '.join(missing)} are missing; begin with `base: NAME` (ditkit show lists names) and "
            "write only what differs from that recipe"
        )
    return read_settings(Recipe, tree, str(file))


def from_python(file: Path, function: str) -> Recipe:
    """The recipe that `function` of a Python file returns; whatever goes wrong there is reported in one line."""
    if not file.is_file():
        raise SettingsError(f"{file}: no such file")
    try:
        module = _import(file)
        if not function:
            raise SettingsError(f"{file}: which recipe? write {file}:NAME{nearest('', _functions(module))}")
        if not callable(getattr(module, function, None)):
            raise SettingsError(f"{file}: no function {function!r}{nearest(function, _functions(module))}")
        made = getattr(module, function)()
    except SettingsError as error:
        if (where := _line_in(file, error)) is None:
            raise
        raise SettingsError("\n".join(f"{where}: {line}" for line in str(error).splitlines())) from error
    except ValidationError as error:
        place = _line_in(file, error) or file
        lines = [f"{place}: {error.title}.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise SettingsError("\n".join(lines)) from error
    except Exception as error:
        raise SettingsError(f"{_line_in(file, error) or file}: {type(error).__name__}: {error}") from error
    if not isinstance(made, Recipe):
        raise SettingsError(f"{file}:{function} returned {type(made).__name__}, not a Recipe (ditkit.recipes.Recipe)")
    return made.model_copy(update={"name": f"{file}:{function}"})


def _line_in(file: Path, error: Exception) -> str | None:
    """ "FILE, line N": the last line of `file` on the way to the error; None if it was not there."""
    steps = traceback.extract_tb(error.__traceback__)
    lines = [step.lineno for step in steps if Path(step.filename).resolve() == file.resolve()]
    found = getattr(error, "lineno", None) or (lines[-1] if lines else None)
    return None if found is None else f"{file}, line {found}"


def _import(file: Path):
    name = f"ditkit_user_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise SettingsError(f"{file}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pydantic look their module up
    spec.loader.exec_module(module)
    return module


def _functions(module) -> list[str]:
    mine = (m for m in vars(module).items() if inspect.isfunction(m[1]) and m[1].__module__ == module.__name__)
    return [name for name, _ in mine if not name.startswith("_")]
