"""The settings tree: reading, overrides, one-line errors with the nearest name, diff and fingerprint."""

from __future__ import annotations

import json
from typing import Annotated, Literal

import pytest
from pydantic import Field

from ditkit.config import (
    Settings,
    SettingsError,
    diff,
    dump,
    fingerprint,
    flatten,
    load_settings,
    merge,
    override,
    read_file,
    read_settings,
)


class Line(Settings):
    kind: Literal["line"] = "line"


class Curve(Settings):
    kind: Literal["curve"] = "curve"
    low: float = 0.1
    high: float = 20.0


class Flow(Settings):
    path: Annotated[Line | Curve, Field(discriminator="kind")] = Line()
    drop: float = Field(0.1, ge=0, le=1)


class Training(Settings):
    steps: int = Field(100, gt=0)
    lr: float = 1e-4
    clip: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    compile: bool = False


class Teacher(Settings):
    model: str = "dinov2-b"
    note: str | None = None


class Bend(Settings):
    """What a Tree has none of unless it is asked for."""

    extra: Annotated[Line | Curve, Field(discriminator="kind")] | None = None
    bag: dict[str, str] | None = None


class Tree(Settings):
    name: str = "tree"
    objective: Flow = Flow()
    training: Training = Training()
    teachers: tuple[Teacher, ...] = (Teacher(),)
    align: Teacher | None = None
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)


def errors(call, *args) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        call(*args)
    return str(caught.value).splitlines()


def test_settings_are_frozen_and_closed():
    with pytest.raises(ValueError, match="frozen"):
        Tree().name = "other"
    with pytest.raises(ValueError, match="extra"):
        Tree(nmae="other")
    with pytest.raises(ValueError, match="finite"):
        Training(lr=float("nan"))


def test_with_changes_nested_keys_and_nothing_else():
    base = Tree()
    changed = base.with_({"training.lr": 2e-4, "objective.path": Curve(high=5.0), "teachers.0.model": "clip-l"})
    assert (changed.training.lr, changed.training.steps) == (2e-4, 100)
    assert changed.objective.path == Curve(high=5.0)
    assert changed.teachers == (Teacher(model="clip-l"),)
    assert base == Tree(), "the base is untouched"
    assert base.with_({}) == base


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("training.lr=2e-4", "training.lr", 2e-4),  # YAML 1.1 alone reads 2e-4 as text
        ("training.steps=7_000_000", "training.steps", 7_000_000),
        ("training.clip=1", "training.clip", 1.0),
        ("training.clip=null", "training.clip", None),
        ("training.clip=none", "training.clip", None),
        ("training.compile=true", "training.compile", True),
        ("training.betas=[0.9, 0.95]", "training.betas", [0.9, 0.95]),
        ("name=007", "name", "007"),  # a text field keeps its text
        ("name=none", "name", "none"),
        ("teachers.0.model=1", "teachers.0.model", "1"),
        ("teachers.0.note=null", "teachers.0.note", None),
        ("objective.path=curve", "objective.path.kind", "curve"),
        ("objective.path.kind=curve", "objective.path.high", 20.0),
        ("align.model=clip-l", "align.model", "clip-l"),
        ("options.form=linear", "options.form", "linear"),
        ("options.norm=5e-1", "options.norm", 0.5),
        ("options.order=2", "options.order", 2),
        ("options.exact=true", "options.exact", True),
    ],
)
def test_override_is_typed_by_its_field(text, key, value):
    assert flatten(override(Tree(), [text]).model_dump(mode="json"))[key] == value


def test_a_kind_alone_fills_an_empty_place():
    assert override(Bend(), ["extra=curve"]) == override(Bend(), ["extra.kind=curve"]) == Bend(extra=Curve())
    assert override(Bend(extra=Curve(low=1.0)), ["extra=curve"]).extra == Curve(low=1.0)
    assert override(Bend(extra=Line()), ["extra=none"]) == Bend()
    assert errors(override, Bend(), ["extra=curv"]) and errors(override, Bend(), ["bag=curve"])


def test_a_changed_kind_drops_the_old_variant_and_takes_new_keys_in_any_order():
    curve = Tree().with_({"objective.path": Curve(low=1.0)})
    assert override(curve, ["objective.path=line"]).objective.path == Line()
    assert override(curve, ["objective.path=curve"]).objective.path == Curve(low=1.0), "the same kind keeps its values"
    changed = override(Tree(), ["objective.path.high=3", "objective.path.kind=curve"])
    assert changed.objective.path == Curve(high=3.0)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("training.lrr=1", "training.lrr: unknown key; did you mean 'training.lr'?"),
        ("trainig.lr=1", "trainig: unknown key; did you mean 'training'?"),
        ("lr=1e-4", "lr: unknown key; did you mean 'training.lr'?"),
        ("high=1", "high: unknown key; did you mean 'objective.path.high'?"),
        ("objective.path.hihg=1", "objective.path.hihg: unknown key; there are: objective.path.kind"),
        ("objective.path=curv", "objective.path.kind: no kind 'curv'; did you mean 'curve'?"),
        ("training.lr.x=1", "training.lr.x: unknown key; training.lr is a plain value"),
        ("training.lr=fast", "training.lr: input should be a valid number, unable to parse string as a number"),
        ("training.steps=0", "training.steps: input should be greater than 0 (given '0')"),
        ("objective.drop=1.5", "objective.drop: input should be less than or equal to 1 (given '1.5')"),
        ("training.betas=[0.9]", "training.betas.1: required, and not given"),
        ("teachers.3.model=x", "teachers.3.model: no entry '3'; there are 1, counted from 0"),
        ("teachers.model=x", "teachers.model: no entry 'model'; there are 1, counted from 0"),
        ("teachers.kind=x", "teachers.kind: no entry 'kind'; there are 1, counted from 0"),
        ("objective.path.high=1", "objective.path.high: objective.path is of a kind that has no such key; set "),
        ("training.lr", "'training.lr': an override is written key=value, for example training.lr=2e-4"),
    ],
)
def test_bad_override_is_one_line(text, line):
    found = errors(override, Tree(), [text])
    assert len(found) == 1 and found[0].startswith(line), found


def test_several_errors_are_several_lines():
    found = errors(override, Tree(), ["training.lrr=1", "objective.drop=2", "training.steps=x"])
    assert len(found) == 3
    assert {line.split(":")[0] for line in found} == {"training.lrr", "objective.drop", "training.steps"}


def test_files_are_partial_and_overrides_win(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("training: {lr: 3e-4, steps: 7}\nobjective: {path: {kind: curve, high: 2}}\n")
    tree = load_settings(Tree, file, ["training.steps=9"], base=Tree(name="base"))
    assert (tree.name, tree.training.lr, tree.training.steps) == ("base", 3e-4, 9)
    assert tree.objective.path == Curve(high=2.0)
    assert load_settings(Tree) == Tree()


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.yaml", "training: {lrr: 1}", "a.yaml: training.lrr: unknown key; did you mean 'training.lr'?"),
        ("a.json", '{"training": ', "a.json: not readable as JSON"),
        ("a.yaml", "training: [", "a.yaml: not readable as YAML"),
        ("a.yaml", "- 1", "a.yaml: expected a mapping of settings, found list"),
    ],
)
def test_bad_files_name_themselves(tmp_path, name, text, line):
    file = tmp_path / name
    file.write_text(text)
    found = errors(load_settings, Tree, file)
    assert len(found) == 1 and line in found[0], found


def test_missing_file_and_missing_key():
    assert errors(read_file, "nowhere.yaml") == ["nowhere.yaml: no such settings file"]

    class Needs(Settings):
        size: int

    assert errors(read_settings, Needs, {}) == ["size: required, and not given"]


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_dump_reads_back_equal(tmp_path, form):
    tree = Tree().with_({"objective.path": Curve(low=1e-7), "training.clip": 1.0, "teachers.0.note": "yes"})
    file = tmp_path / f"out.{form}"
    file.write_text(dump(tree, form))
    assert load_settings(Tree, file) == tree


def test_diff_lists_dotted_keys():
    changed = Tree().with_({"training.lr": 2e-4, "objective.path": Curve(), "name": "other"})
    rows = diff(Tree(), changed, ignore=["name"])
    assert [tuple(row) for row in rows] == [
        ("objective.path.kind", "line", "curve"),
        ("training.lr", 1e-4, 2e-4),
        ("objective.path.low", None, 0.1),
        ("objective.path.high", None, 20.0),
    ]
    assert diff(changed, changed) == []


def test_fingerprint_is_of_the_values():
    assert fingerprint(Tree()) == fingerprint(read_settings(Tree, json.loads(dump(Tree(), "json"))))
    assert fingerprint(Tree()) != fingerprint(Tree().with_({"training.lr": 2e-4}))
    assert fingerprint(Tree(), ignore=["name"]) == fingerprint(Tree(name="other"), ignore=["name"])
    assert len(fingerprint(Tree())) == 16


def test_merge_keeps_what_is_not_named():
    assert merge({"a": {"x": 1, "y": 2}, "b": 3}, {"a": {"x": 5}}) == {"a": {"x": 5, "y": 2}, "b": 3}
    assert merge({"a": {"kind": "p", "x": 1}}, {"a": {"kind": "q"}}) == {"a": {"kind": "q"}}


def test_dump_is_compact_and_can_leave_keys_out():
    text = dump(Tree(), exclude=["name", "teachers"])
    assert "betas: [0.9, 0.999]\n" in text
    assert "name" not in text and "teachers" not in text


def test_diff_of_an_empty_list_names_only_the_entries():
    rows = diff(Tree(teachers=()), Tree())
    assert [row.key for row in rows] == ["teachers.0.model"]
