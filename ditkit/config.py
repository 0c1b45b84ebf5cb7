"""The typed settings tree: one frozen, data-only base; files, overrides, diff and fingerprint.

A place in the tree is named by a dotted key ("training.lr", "teachers.0.model"); the same keys serve recipes in
Python (`recipe.with_({"training.steps": 7_000_000})`), YAML/JSON files and the command line ("training.lr=2e-4").
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, NamedTuple, Self, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError


class SettingsError(ValueError):
    """Bad settings: one readable line per problem, each beginning with the dotted key."""


class Settings(BaseModel):
    """Base of everything that is data: immutable, and an unknown key is an error.

    A settings class with alternatives carries `kind: Literal[...]`, so that unions read back from JSON exactly.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def with_(self, changes: Mapping[str, Any]) -> Self:
        """A copy that differs by `changes` (dotted key -> value), validated; raises SettingsError."""
        tree = self.model_dump()
        for key in sorted(
            changes, key=lambda key: (key.count("."), not key.endswith("kind"))
        ):  # a kind before its keys
            _assign(tree, key, _plain(changes[key]))
        return read_settings(type(self), tree)


S = TypeVar("S", bound=Settings)


class Difference(NamedTuple):
    """One dotted key whose values differ; a side that has no such key holds None."""

    key: str
    a: Any
    b: Any


# ------------------------------------------------------------------------------------------------ reading


def read_settings(cls: type[S], tree: Mapping[str, Any], where: str = "") -> S:
    """A validated `cls` from nested plain data; raises SettingsError with one line per problem, prefixed by `where`."""
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        lines = [_readable(cls, tree, problem) for problem in error.errors()]
        raise SettingsError("\n".join(f"{where}: {line}" if where else line for line in lines)) from None


def read_file(file: str | Path) -> dict[str, Any]:
    """The nested plain data of a .yaml, .yml or .json file; raises SettingsError in one line."""
    file = Path(file)
    if not file.is_file():
        raise SettingsError(f"{file}: no such settings file")
    try:
        text = file.read_text(encoding="utf-8")
        tree = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        form = "JSON" if file.suffix == ".json" else "YAML"
        raise SettingsError(f"{file}: not readable as {form}: {' '.join(str(error).split())}") from None
    if tree is None:  # an empty file changes nothing
        return {}
    if not isinstance(tree, dict):
        raise SettingsError(f"{file}: expected a mapping of settings, found {type(tree).__name__}")
    return tree


def load_settings(
    cls: type[S], file: str | Path | None = None, overrides: Sequence[str] = (), base: S | None = None
) -> S:
    """Settings from a base (default: the class's defaults), then a file, then "key=value" overrides, later ones win.

    The file may be partial: its nested keys replace those of the base. Raises SettingsError with one line per problem.
    """
    tree: dict[str, Any] = base.model_dump() if base is not None else {}
    if file is not None:
        tree = merge(tree, read_file(file))
    settings = read_settings(cls, tree, str(file) if file is not None else "")
    return override(settings, overrides)


def override(settings: S, overrides: Sequence[str]) -> S:
    """`settings` with command-line overrides such as "training.lr=2e-4", typed by the field that they set."""
    changes: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise SettingsError(f"{text!r}: an override is written key=value, for example training.lr=2e-4")
        changes[key.strip()] = value.strip()
    tree = settings.model_dump()
    return settings.with_({key: _typed(type(settings), tree, key, value) for key, value in changes.items()})


def merge(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested `changes` laid over nested `tree`; where a `kind` changes, the old variant's other keys are dropped."""
    merged = dict(tree)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            same_kind = value.get("kind", old.get("kind")) == old.get("kind")
            merged[key] = merge(old if same_kind else {}, value)
        elif isinstance(old, Mapping) and isinstance(value, str) and "kind" in old:
            merged[key] = old if value == old["kind"] else {"kind": value}
        else:
            merged[key] = value
    return merged


# ------------------------------------------------------------------------------------------------ writing


def dump(settings: Settings, form: str = "yaml", exclude: Iterable[str] = ()) -> str:
    """The settings as text: "yaml" (for people) or "json" (indented; what recipe.json holds). Reads back equal.

    exclude: top-level keys to leave out.
    """
    tree = settings.model_dump(mode="json", exclude=set(exclude))
    if form == "json":
        return json.dumps(tree, indent=2, allow_nan=False) + "\n"
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def _on_one_line(dumper: yaml.SafeDumper, data: list) -> yaml.Node:
    plain = all(not isinstance(value, (list, dict)) for value in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=plain)


class _Dumper(yaml.SafeDumper):
    """Lists of plain values on one line: size: [32, 32]."""

    yaml_representers: ClassVar[dict] = {**yaml.SafeDumper.yaml_representers, list: _on_one_line}


def fingerprint(settings: Settings, ignore: Iterable[str] = ()) -> str:
    """16 hex digits of the SHA-256 of the canonical JSON (sorted keys, no spaces), top-level keys `ignore` left out."""
    tree = settings.model_dump(mode="json", exclude=set(ignore))
    canonical = json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested plain data as {dotted key: leaf}; a list of plain values is a leaf, a list of mappings is numbered."""
    if isinstance(tree, Mapping):
        items: Iterable[tuple[Any, Any]] = tree.items()
    elif isinstance(tree, (list, tuple)) and any(isinstance(value, Mapping) for value in tree):
        items = enumerate(tree)
    else:
        return {prefix: tree}
    leaves: dict[str, Any] = {}
    for name, value in items:
        leaves |= flatten(value, f"{prefix}.{name}" if prefix else str(name))
    return leaves


def diff(a: Settings, b: Settings, ignore: Iterable[str] = ()) -> list[Difference]:
    """The dotted keys in which two settings differ, in the order of `a`; top-level keys `ignore` left out."""
    ignore = set(ignore)
    left, right = (flatten(s.model_dump(mode="json", exclude=ignore)) for s in (a, b))
    left, right = ({k: None if v == [] else v for k, v in leaves.items()} for leaves in (left, right))
    keys = [*left, *(key for key in right if key not in left)]
    return [Difference(k, left.get(k), right.get(k)) for k in keys if left.get(k) != right.get(k)]


# ------------------------------------------------------------------------------------------------ names and types


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of an error line: "; did you mean 'x'?" for the closest of `names`, else the list, if that is short."""
    names = list(names)
    if close := difflib.get_close_matches(name, names, n=1, cutoff=0.5):
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(names)}" if 0 < len(names) <= 16 else ""


def _plain(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else value


def _options(annotation: Any) -> list[Any]:
    """The alternatives of a type annotation, Annotated and unions unfolded."""
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [option for part in get_args(annotation) for option in _options(part)]
    return [annotation]


def _fields(options: list[Any], tree: Any) -> dict[str, Any]:
    """The fields {name: annotation} that settings of one of these types have, by the `kind` that `tree` states."""
    classes = [o for o in options if isinstance(o, type) and issubclass(o, Settings)]
    kind = tree.get("kind") if isinstance(tree, Mapping) else None
    chosen = [c for c in classes if kind is None or getattr(c.model_fields.get("kind"), "default", kind) == kind]
    return {name: field.annotation for c in chosen or classes for name, field in c.model_fields.items()}


def _descend(options: list[Any], tree: Any, key: str) -> tuple[list[Any], Any]:
    """One step down the tree: the types and the data that stand under `key`."""
    fields = _fields(options, tree)
    if key in fields:
        below = tree.get(key) if isinstance(tree, Mapping) else None
        return _options(fields[key]), below
    values = [get_args(o)[1] for o in options if get_origin(o) is dict]
    if values:
        return [o for v in values for o in _options(v)], tree.get(key) if isinstance(tree, Mapping) else None
    items = [get_args(o)[0] for o in options if get_origin(o) in (list, tuple) and get_args(o)]
    inside = isinstance(tree, (list, tuple)) and key.lstrip("-").isdigit() and int(key) < len(tree)
    return ([o for item in items for o in _options(item)], tree[int(key)]) if inside else ([], None)


def _unknown(cls: type[Settings], parts: Sequence[str], names: list[str]) -> str:
    """The line for an unknown key: the nearest sibling, else the same name elsewhere in the tree."""
    prefix = "".join(f"{part}." for part in parts[:-1])
    key, known = prefix + parts[-1], _all_keys(cls)
    if key in known and "kind" in names:
        return f"{key}: {prefix[:-1]} is of a kind that has no such key; set {prefix}kind first"
    close = difflib.get_close_matches(parts[-1], names, n=1, cutoff=0.6)
    elsewhere = [other for other in known if other.split(".")[-1] == parts[-1]]
    meant = [prefix + name for name in close] or elsewhere[:1]
    hint = f"did you mean {meant[0]!r}?" if meant else f"there are: {', '.join(prefix + name for name in names)}"
    return f"{key}: unknown key; {hint}"


def _all_keys(cls: Any, prefix: str = "") -> list[str]:
    """Every dotted key of a settings class, over all variants; entries of lists are left out."""
    keys = []
    for name, annotation in _fields([cls], None).items():
        keys.append(prefix + name)
        for option in _options(annotation):
            if isinstance(option, type) and issubclass(option, Settings):
                keys += _all_keys(option, f"{prefix}{name}.")
    return list(dict.fromkeys(keys))


def _assign(tree: Any, key: str, value: Any) -> None:
    """Set a dotted key in nested plain data, in place; lists are copied on the way, None becomes an empty mapping."""
    *parts, last = key.split(".")
    for depth, part in enumerate(parts):
        slot = _slot(tree, part, key)
        below = tree[slot] if isinstance(tree, list) else tree.get(slot)
        below = list(below) if isinstance(below, tuple) else {} if below is None else below
        if not isinstance(below, (dict, list)):
            raise SettingsError(f"{key}: unknown key; {'.'.join(parts[: depth + 1])} is a plain value")
        tree[slot] = below
        tree = below
    slot = _slot(tree, last, key)
    if slot == "kind" and tree.get("kind") != value:
        tree.clear()
    if isinstance(value, str) and isinstance(tree, dict):
        value = merge({last: tree.get(last)}, {last: value})[last]  # "path=vp" stands for "path.kind=vp"
    tree[slot] = value


def _slot(tree: Any, part: str, key: str) -> Any:
    if not isinstance(tree, list):
        return part
    if not part.isdigit() or int(part) >= len(tree):
        raise SettingsError(f"{key}: no entry {part!r}; there are {len(tree)}, counted from 0")
    return int(part)


def _typed(cls: type[Settings], tree: Any, key: str, text: str) -> Any:
    """The reading of `text` that fits the field at `key`: as it stands, as YAML/JSON, or "none" for no value."""
    options: list[Any] = [cls]
    for part in key.split("."):
        options, tree = _descend(options, tree, part)
    try:
        plain = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(plain, str):
        plain = _number(plain)  # YAML 1.1 reads 2e-4 as text
    readings = [text, plain]
    if text in ("null", "") or (str in options and {bool, int, float} & set(options)):
        readings = [plain, text]
    if text.lower() == "none":
        readings.append(None)
    if tree is None and "kind" in _fields(options, None):  # "guidance=cfg" stands for "guidance.kind=cfg" here too
        readings.append({"kind": text})
    for reading in readings:
        for option in options:
            try:
                TypeAdapter(option).validate_python(reading)
            except ValidationError:
                continue
            return reading
    return plain if isinstance(plain, (Mapping, list)) else text


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _readable(cls: type[Settings], tree: Any, problem: Any) -> str:
    """One line for one pydantic problem: the dotted key (union tags left out), what is wrong, what was given."""
    options: list[Any] = [cls]
    parts: list[str] = []
    names: list[str] = []
    for part in problem["loc"]:
        below, inside = _descend(options, tree, str(part))
        if below or isinstance(part, int) or (isinstance(tree, Mapping) and part in tree):  # else a union's tag
            names = list(_fields(options, tree))
            options, tree = below, inside
            parts.append(str(part))
    key = ".".join(parts) or "settings"
    if problem["type"] == "extra_forbidden":
        return _unknown(cls, parts, names)
    if problem["type"] == "missing":
        return f"{key}: required, and not given"
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        tags = [c.model_fields["kind"].default for c in options if isinstance(c, type) and issubclass(c, Settings)]
        tag = problem.get("ctx", {}).get("tag")
        return f"{key}.kind: {f'no kind {tag!r}' if tag else 'required'}{nearest(tag or '', tags)}"
    if problem["type"] in ("model_type", "model_attributes_type", "dict_type") and isinstance(problem["input"], str):
        fields = [c.model_fields for c in options if isinstance(c, type) and issubclass(c, Settings)]
        if kinds := [str(kind) for f in fields if "kind" in f for kind in get_args(f["kind"].annotation)]:
            return f"{key}: no kind {problem['input']!r}{nearest(problem['input'], kinds)}"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    shown = f" (given {given!r})" if given is None or isinstance(given, (str, int, float, bool)) else ""
    return f"{key}: {message[:1].lower()}{message[1:]}{shown}"
