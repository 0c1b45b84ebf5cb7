"""Prompts -> token ids of a fixed length: as diffusers does it, and as Stability's own code does."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Style = Literal["diffusers", "stability"]
LONG_WORD = 8  # tokens from which on a word may be torn where the text is cut (Stability)
CHARACTERS = 226  # of a prompt that Stability's T5 reads
PROBE = "Two (red) circles, 3 blue squares; Grüße, 日本"
MARKS = re.compile(r"\\[()]|[()]|[^\\()]+|\\")


SHOWN = 80  # characters of what was cut off that a warning shows


class Frame(NamedTuple):
    """What stands around the words: start (None: nothing), end and padding ids, and the least number of ids."""

    start: int | None
    end: int
    pad: int
    length: int


class Tokens(NamedTuple):
    """ids and weights of equal length, and the text that found no room."""

    ids: list[int]
    weights: list[float]
    cut: str


class Tokenizer:
    """A transformers tokenizer that always gives `length` ids, and the text that found no room in them.

    pad: id that fills up (CLIP-G: 0), None: the tokenizer's own. style "stability": emphasis like "(text:1.2)" is
    read and, as there, without effect, and words are tokenised one by one. There T5 reads the first 226 characters
    of a prompt, and more than `length` tokens of them; here, where a batch has one length, they end at `length`.
    """

    def __init__(self, tokenizer: Any, name: str, length: int, *, pad: int | None = None, style: Style = "diffusers"):
        self.tokenizer, self.name, self.style = tokenizer, name, style
        start = None if name == "t5" else tokenizer.bos_token_id
        self.frame = Frame(start, tokenizer.eos_token_id, tokenizer.pad_token_id if pad is None else pad, length)

    @property
    def id(self) -> str:
        """4 hex digits that tell vocabularies apart, by what they make of one text."""
        ids, _ = self([PROBE])
        return hashlib.sha256(repr(ids.tolist()).encode()).hexdigest()[:4]

    def __call__(self, prompts: Sequence[str]) -> tuple[Tensor, list[str]]:
        """Prompts -> ids (B, length) int64, and of each prompt what was cut off ("": nothing)."""
        found = [self._stability(prompt) if self.style == "stability" else self._plain(prompt) for prompt in prompts]
        ids = torch.tensor([ids for ids, _ in found], dtype=torch.long).view(-1, self.frame.length)
        return ids, [cut for _, cut in found]

    def _plain(self, prompt: str) -> tuple[list[int], str]:
        words = self._ids(prompt)
        room = self.frame.length - 1 - (self.frame.start is not None)
        return _framed(words[:room], self.frame), self.tokenizer.decode(words[room:])

    def _stability(self, prompt: str) -> tuple[list[int], str]:
        tokens = stability_tokens(prompt, self._ids, self.frame, whole=self.name == "t5")
        room = self.frame.length - 1
        if len(tokens.ids) <= room + 1:
            return tokens.ids, tokens.cut
        cut = self.tokenizer.decode(tokens.ids[room:-1]) + tokens.cut
        return [*tokens.ids[:room], self.frame.end], cut

    def _ids(self, text: str) -> list[int]:
        text = text.encode("utf-8", "replace").decode()  # bytes of a command line that are no UTF-8 are "?"
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def warn_of_cuts(prompts: Sequence[str], cuts: Mapping[str, Sequence[str]], told: set[str]) -> None:
    """One warning for each prompt that an encoder saw only in part: cuts of each encoder; `told` is kept up to date."""
    for i, prompt in enumerate(prompts):
        unseen: dict[str, list[str]] = {}
        for name, texts in cuts.items():
            if texts[i]:
                unseen.setdefault(texts[i], []).append(name)
        if unseen and prompt not in told:
            told.add(prompt)
            which = "; ".join(f"{', '.join(names)} without {quoted(text)}" for text, names in unseen.items())
            warnings.warn(f"the prompt {prompt[:30]!r}... is too long and is read by {which}", stacklevel=3)


def quoted(text: str) -> str:
    """The text in quotes; of a long one the beginning and the number of words."""
    return repr(text) if len(text) <= SHOWN else f"{text[:SHOWN].rstrip()!r}... ({len(text.split()):,} words)"


def _framed(words: list[int], frame: Frame) -> list[int]:
    ids = [*([] if frame.start is None else [frame.start]), *words, frame.end]
    return ids + [frame.pad] * (frame.length - len(ids))


def stability_tokens(prompt: str, words: Callable[[str], list[int]], frame: Frame, *, whole: bool) -> Tokens:
    """One prompt as the published SD3 inference code tokenises it.

    Emphasis becomes weights, the words are tokenised one by one (`words`: text -> ids). CLIP (whole False): the first
    `length` ids; a word that does not fit is left out whole, unless it has 8 or more ids. T5 (whole True): the first
    226 characters, all their ids, at least `length`.
    """
    read = prompt[:CHARACTERS] if whole else prompt
    groups = [
        (word, words(word), weight)
        for text, weight in parse_emphasis(read)
        for word in text.replace("\n", " ").split(" ")
        if word
    ]
    room = sum(len(ids) for _, ids, _ in groups) if whole else frame.length - 1 - (frame.start is not None)
    kept: list[int] = []
    weights: list[float] = []
    left = prompt[len(read) :]
    for n, (_, ids, weight) in enumerate(groups):
        fits = len(kept) + len(ids) <= room
        if fits or len(ids) >= LONG_WORD:
            ids = ids[: room - len(kept)]
            kept, weights = kept + ids, weights + [weight] * len(ids)
        if not fits:
            left = " ".join(word for word, _, _ in groups[n:])
            break
    ids = _framed(kept, frame)
    before = [1.0] * (frame.start is not None)
    return Tokens(ids, before + weights + [1.0] * (len(ids) - len(before) - len(weights)), left)


def parse_emphasis(prompt: str) -> list[tuple[str, float]]:
    r"""'a (b) (c:1.5) \(d\)' -> runs of text and their weights: brackets 1.1 a level, ':number' as said, '\(' literal.

    Brackets without a partner are text.
    """
    marks = MARKS.findall(prompt)
    runs, end = _runs(marks, 0, 1.0)
    while end < len(marks):  # a closing bracket too many
        more, end = _runs(marks, end + 1, 1.0)
        runs += [(")", 1.0), *more]
    return runs


def _runs(marks: list[str], at: int, weight: float) -> tuple[list[tuple[str, float]], int]:
    """The runs from mark `at` to the closing bracket of this level, and where that stands (or the end)."""
    found: list[tuple[str, float]] = []
    while at < len(marks) and marks[at] != ")":
        mark, at = marks[at], at + 1
        if mark != "(":
            _append(found, mark.removeprefix("\\") if mark in (r"\(", r"\)") else mark, weight)
            continue
        close = _closing(marks, at)
        if close is None:
            _append(found, mark, weight)
            continue
        inner = weight * 1.1
        said = re.fullmatch(r"(.*):\s*([0-9.]+)\s*", marks[close - 1], re.DOTALL) if close > at else None
        number = _number(said[2]) if said else None
        if said and number is not None:
            inner = number
            marks = [*marks[: close - 1], said[1], *marks[close:]]
        more, at = _runs(marks, at, inner)
        found += more
        at += 1
    return found, at


def _closing(marks: list[str], at: int) -> int | None:
    """Where the bracket opened before `at` closes."""
    depth = 1
    for i in range(at, len(marks)):
        depth += {"(": 1, ")": -1}.get(marks[i], 0)
        if depth == 0:
            return i
    return None


def _append(found: list[tuple[str, float]], text: str, weight: float) -> None:
    if found and found[-1][1] == weight:
        found[-1] = (found[-1][0] + text, weight)
    elif text:
        found.append((text, weight))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
