"""GenEval's prompts and what each asks of an image, in the published metadata format (one JSON object a line).

Source: Ghosh, Hajishirzi and Schmidt 2023, "GenEval: An object-focused framework for evaluating text-to-image
alignment", arXiv 2310.11513.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditkit.files import write_text

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
TITLES = {
    "single_object": "single object",
    "two_object": "two objects",
    "counting": "counting",
    "colors": "colours",
    "position": "position",
    "color_attr": "colour attribution",
}
IMAGES = 4  # of each prompt
RELATIONS = ("left of", "right of", "above", "below")


class PromptError(ValueError):
    """A file of prompts that cannot be used; one line: which line of it, and what is wrong."""


@dataclass(frozen=True)
class Requirement:
    """`count` objects of class `name`, all of `colour`, all in relation `position` to those of another requirement.

    position: (one of RELATIONS, number of the other requirement in the prompt's include list, from 0).
    """

    name: str
    count: int = 1
    colour: str = ""
    position: tuple[str, int] | None = None


@dataclass(frozen=True)
class Prompt:
    """A prompt, its task `tag`, what its images must hold (all of `include`) and must not (any of `exclude`)."""

    tag: str
    text: str
    include: tuple[Requirement, ...]
    exclude: tuple[Requirement, ...] = ()

    def metadata(self) -> dict[str, Any]:
        """The published form: {tag, include: [{class, count, color?, position?}], exclude?: [...], prompt}."""
        lists = {"include": self.include, "exclude": self.exclude}
        written = {key: [_written(r) for r in value] for key, value in lists.items() if value}
        return {"tag": self.tag, **written, "prompt": self.text}


def _written(requirement: Requirement) -> dict[str, Any]:
    found: dict[str, Any] = {"class": requirement.name, "count": requirement.count}
    if requirement.colour:
        found["color"] = requirement.colour
    if requirement.position:
        found["position"] = list(requirement.position)
    return found


def parse(metadata: dict[str, Any]) -> Prompt:
    """One published metadata object -> Prompt; PromptError for what the format does not know."""
    _check_keys(metadata, ("tag", "include", "prompt"), "one object a line")
    try:
        include = tuple(_parsed(r) for r in metadata["include"])
        exclude = tuple(_parsed(r) for r in metadata.get("exclude", ()))
        prompt = Prompt(str(metadata["tag"]), str(metadata["prompt"]), include, exclude)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, PromptError):
            raise
        raise PromptError(f"not GenEval metadata: {error}") from error
    if strange := set(metadata) - {"tag", "include", "exclude", "prompt"}:
        raise PromptError(f"GenEval metadata has no {min(strange)!r}")
    if prompt.tag not in TAGS:
        raise PromptError(f"no task {prompt.tag!r}: GenEval has {', '.join(TAGS)}")
    if not include:
        raise PromptError("include is empty: nothing is asked of the image")
    for i, requirement in enumerate(include):
        relation, other = requirement.position or ("left of", 0)
        if relation not in RELATIONS or (requirement.position and not 0 <= other < i):
            raise PromptError(f"position {requirement.position}: give a relation and the number of an earlier object")
    return prompt


def _check_keys(found: object, wanted: tuple[str, ...], what: str) -> None:
    lacking = [key for key in wanted if not isinstance(found, dict) or key not in found]
    if lacking:
        raise PromptError(f"not GenEval metadata: no {lacking[0]!r}; {what} has {', '.join(map(repr, wanted))}")


def _parsed(found: dict[str, Any]) -> Requirement:
    _check_keys(found, ("class", "count"), "each object of include and exclude")
    if strange := set(found) - {"class", "count", "color", "position"}:
        raise ValueError(f"a requirement has no {min(strange)!r}")
    position = found.get("position")
    if int(found["count"]) < 1:
        raise ValueError(f"count {found['count']} asks for nothing")
    return Requirement(
        str(found["class"]),
        int(found["count"]),
        str(found.get("color", "")),
        None if position is None else (str(position[0]), int(position[1])),
    )


def read_prompts(path: str | Path) -> list[Prompt]:
    """Prompts from a .jsonl file such as GenEval's evaluation_metadata.jsonl; PromptError names the line."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise PromptError(f"{path}: no such file of prompts; GenEval's is called evaluation_metadata.jsonl")
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.strip():
            try:
                prompts.append(parse(json.loads(line)))
            except json.JSONDecodeError as error:
                raise PromptError(f"{path}, line {number}: not JSON ({error})") from error
            except PromptError as error:
                raise PromptError(f"{path}, line {number}: {error}") from error
    if not prompts:
        raise PromptError(f"{path}: no prompts in it")
    return prompts


def write_prompts(path: str | Path, prompts: Iterable[Prompt]) -> None:
    """The published .jsonl form of these prompts, atomically."""
    write_text(Path(path), "".join(json.dumps(p.metadata(), ensure_ascii=False) + "\n" for p in prompts))


def image_prompts(prompts: Sequence[Prompt], each: int = IMAGES) -> tuple[str, ...]:
    """The prompt of every image, `each` images of a prompt one after the other: what a Request takes."""
    return tuple(p.text for p in prompts for _ in range(each))
