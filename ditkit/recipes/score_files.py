"""Scores of several feature spaces as a file, in words, and against another such file."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path

from pydantic import Field

from ditkit.config import Difference, Settings, diff, dump, read_settings
from ditkit.evaluation import Protocol, ProtocolMismatch, Score, compare
from ditkit.evaluation.protocols import OUTCOMES
from ditkit.files import write_text

SCORES = "scores.json"


class SpaceScores(Settings):
    """The scores of one feature space, and what one half of the real images scores against the other."""

    extractor: str
    floor: dict[str, float]
    scores: tuple[Score, ...]
    classes: dict[str, dict[str, float]] = Field({}, description="metric -> class -> its value, where labels exist")


class Scores(Settings):
    """What scores.json holds."""

    what: str = Field(description="what was scored")
    weights: str | None = Field(None, description="averaged or raw, and their step, where a model was scored")
    asked: str = Field("", description="fingerprint of weights and request, where a run scored itself")
    data: str = Field(description="the real images")
    unusable: int = Field(0, ge=0, description="real images that could not be read and are left out")
    unusable_paths: tuple[str, ...] = Field((), description="the first of them")
    classifier_accuracy: float | None = Field(None, description="of the classifier on held-out real images")
    spaces: dict[str, SpaceScores] = Field(description="feature space -> scores")


def save_scores(scores: Scores, path: Path) -> Path:
    """Write scores.json, atomically."""
    return write_text(path, dump(scores, "json"))


def read_scores(path: Path) -> Scores:
    """Read a scores.json, or the one in a folder. ValueError, one line."""
    file = path / SCORES if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{path}: no {SCORES} there; `ditkit evaluate` writes it beside the samples")
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        tree = None
    if not isinstance(tree, dict):
        raise ValueError(f"{file}: not a {SCORES} of `ditkit evaluate`")
    return read_settings(Scores, tree, str(file))


def check_comparable(other: Scores, planned: dict, ignore: Iterable[str] = ()) -> None:
    """ValueError, one line, where samples that will be made as `planned` (keys of a Protocol) cannot be compared.

    A space that carries the planned name is asked where there is one: beside it others are 'custom'. ignore: keys of
    the protocol that may differ.
    """
    every = [space.scores[0].protocol for space in other.spaces.values()]
    theirs = next((p for p in every if p.name == planned.get("name")), every[0])
    if found := diff(theirs, theirs.model_copy(update=planned), {*OUTCOMES, *ignore}):
        raise _apart(other, map(_told, found))


def _told(d: Difference) -> str:
    return f"{d.key} {d.a!r} there, {d.b!r} here"


def _apart(other: Scores, differences: Iterable[str]) -> ValueError:
    listed = "; ".join(differences)
    return ValueError(f"not compared with {other.what}, the protocols differ: {listed} (--force compares)")


def describe_protocols(scores: Scores) -> list[str]:
    """The protocol of the first space in full, and of every other one what differs from it, a line each."""
    found = {name: space.scores[0].protocol for name, space in scores.spaces.items()}
    first, *others = found
    lines = [f"{first}: {found[first].sentence()}"]
    for name in others:
        apart = [f"{d.key} {d.b}" for d in diff(found[first], found[name], OUTCOMES)]
        lines.append(f"{name}: the same, but {', '.join(apart)}" if apart else f"{name}: the same")
    return lines


def check_ignored(ignore: Iterable[str]) -> None:
    """ValueError, one line, for a word that is no key of a protocol."""
    for key in ignore:
        if key not in Protocol.model_fields:
            raise ValueError(f"--ignore {key}: choose from {', '.join(k for k in Protocol.model_fields)}")


def compare_scores(
    mine: Scores, other: Scores, force: bool, ignore: Collection[str] = ()
) -> list[tuple[str, str, float, float, str]]:
    """(space, metric, other, mine, verdict) for every score that both have.

    ignore: keys of the protocol that may differ, such as "seed". ValueError, one line, naming every difference between
    the protocols, unless forced; and where nothing is shared. Where neither protocol tells how the images were made,
    the verdict says so: that the protocols agree means nothing then.
    """
    check_ignored(ignore)
    lines: list[tuple[str, str, float, float, str]] = []
    wrong: dict[str, dict[str, None]] = {}  # difference -> the spaces that have it; ordered, each once
    for name, theirs in other.spaces.items():
        scores = {score.metric: score for score in (mine.spaces[name].scores if name in mine.spaces else ())}
        for score in theirs.scores:
            if score.metric not in scores:
                continue
            try:
                found = compare(score, scores[score.metric], force, ignore)
            except ProtocolMismatch as error:
                for d in error.differences:
                    wrong.setdefault(_told(d), {})[name] = None
                continue
            verdict = found.verdict + (" (protocols differ)" if found.forced else "")
            if score.protocol.untold and scores[score.metric].protocol.untold:
                verdict += " (how either was made is not known)"
            lines.append((name, score.metric, score.value, scores[score.metric].value, verdict))
    if wrong:
        shared = len({name for names in wrong.values() for name in names})
        told = (text if len(names) == shared else f"{', '.join(names)}: {text}" for text, names in wrong.items())
        raise _apart(other, told)
    if not lines:
        raise ValueError(f"not compared with {other.what}: it has no feature space in common with this evaluation")
    return lines
