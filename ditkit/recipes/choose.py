"""What a command line may choose over a recipe: data, codec, teachers, steps, start; then key=value overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from ditkit.config import Settings, diff, override
from ditkit.pretrained import CodecSettings, TeacherSettings, TextSettings
from ditkit.recipes.recipe import Recipe, Start
from ditkit.recipes.registry import recipe as find_recipe

S = TypeVar("S", bound=Settings)
# keys that an option sets; what it leaves open (codec.scale, align.weight) may be added to it
SAME = {
    "training.steps": "--steps", "steps": "--steps", "data.source": "--data", "data.size": "--size",
    **dict.fromkeys(("codec", "codec.kind", "codec.source"), "--codec"),
    **dict.fromkeys(("align", "teachers", "teachers.0.kind", "teachers.0.source"), "--teacher"),
    "start.path": "--start", **dict.fromkeys(("text", "text.kind", "text.source"), "--text"),
}  # fmt: skip


def choose(
    spec: str, overrides: Sequence[str] = (), *, data: str | None = None, size: str | None = None,
    codec: str | None = None, teachers: Sequence[str] = (), steps: int | None = None,
) -> Recipe:  # fmt: skip
    """The recipe that `spec` names with the given choices made, then the overrides, which may not contradict them.

    Of the overrides, start=PATH (a run, an exported model or a published file to begin from; none: random weights)
    and text=ENCODER (toy, toy-sd3, clip, sd3, clip:SOURCE, sd3:SOURCE or a pipeline's folder) are made first, so that
    start.weights, text.t5_length, ... add to them.

    None and () leave the recipe's own. SettingsError or ValueError, one line.

    data: a folder, a parquet file or 'digits'; without a size, size and channels then come from the data.
    size: "256" or "256x384" (height x width). codec: 'pixels', 'ft-ema', 'ft-mse', a hub id or a folder.
    teachers: folders of `ditkit teacher`, hub ids, REPA's names; 'none' trains without alignment.
    """
    recipe = find_recipe(spec)
    start, overrides = split_start(overrides)
    text, overrides = split_text(overrides)
    changes: dict[str, Any] = {}
    if text is not None:
        if recipe.text is None:
            raise ValueError(f"recipe {recipe.name!r} reads no text, so --text has no use; take a t2i or sd3 recipe")
        changes["text"] = TextSettings.parse(text)
    if start is not None:
        changes["start"] = None if start.lower() == "none" else Start(path=start)
    if data is not None:
        changes |= {"data.source": data, "data.part": None, "data.index": None}
        changes |= {"data.split": "all", "data.size": None, "data.channels": None}
    if size is not None:
        changes |= {"data.size": parse_size(size), "data.buckets": None}  # one size for all images
    if codec is not None:
        changes["codec"] = CodecSettings.parse(codec)
    if list(teachers) == ["none"]:
        changes |= {"align": None, "teachers": ()}
    elif teachers:
        if recipe.align is None:
            raise ValueError(
                f"recipe {recipe.name!r} aligns nothing, so --teacher has no use; take a repa recipe, or "
                "write align and teachers into a recipe file"
            )
        changes["teachers"] = tuple(TeacherSettings.parse(text) for text in teachers)
    if steps is not None:
        changes["training.steps"] = steps
    if data is not None:
        changes |= room_for_patch(recipe, overrides)
    before = recipe.with_(changes) if changes else recipe
    options = {"--data": data, "--size": size, "--codec": codec, "--teacher": " ".join(teachers), "--steps": steps}
    options |= {"--start": start, "--text": text}
    return agreeing(before, override(before, overrides), overrides, options)


def split_start(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of start=PATH, the last if there are several, and the other overrides. ValueError for no path."""
    pairs = [(text, *text.partition("=")[::2]) for text in overrides]
    paths = [value.strip() for _, key, value in pairs if key.strip() == "start"]
    if "" in paths:
        raise ValueError("start: name a run, an exported model or a published file to begin from, or none")
    return paths[-1] if paths else None, [text for text, key, _ in pairs if key.strip() != "start"]


def split_text(overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of text=ENCODER, the last if there are several, and the other overrides."""
    pairs = [(text, *text.partition("=")[::2]) for text in overrides]
    found = [value.strip() for _, key, value in pairs if key.strip() == "text"]
    return found[-1] if found else None, [text for text, key, _ in pairs if key.strip() != "text"]


def agreeing(before: S, after: S, overrides: Sequence[str], options: Mapping[str, object]) -> S:
    """`after`, unless its overrides changed what an option had set in `before`: ValueError that names both.

    options: "--steps" -> what was given; None or "" where it was not.
    """
    changed = {d.key for d in diff(before, after)}
    for text in overrides:
        key = text.partition("=")[0].strip()
        option = SAME.get(key)
        if option and options.get(option) not in (None, "") and any(f"{k}.".startswith(f"{key}.") for k in changed):
            raise ValueError(f"{option} {options[option]} and {text} contradict each other: give one of the two")
    return after


def room_for_patch(recipe: Recipe, overrides: Sequence[str]) -> dict[str, Any]:
    """A size that a patch of the user's own divides, until the data's is known; nothing where the recipe's will do."""
    keys = dict(text.replace(" ", "").split("=", 1) for text in overrides if "=" in text)
    patch = keys.get("model.patch", "")
    if not patch.isdecimal() or not int(patch) or not any(side % int(patch) for side in recipe.model.size):
        return {}
    return {"model.size": (16 * int(patch),) * 2, "model.patch": int(patch)}


def parse_size(text: str) -> int | tuple[int, int]:
    """ "256" -> 256, "256x384" -> (256, 384). ValueError for anything else."""
    parts = text.lower().replace(",", "x").split("x")
    try:
        sides = tuple(int(part) for part in parts)
    except ValueError:
        sides = ()
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise ValueError(f"size {text!r}: write one side (256) or height x width (256x384), in pixels")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])
