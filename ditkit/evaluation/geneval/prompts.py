"""GenEval prompts by the published templates and counts: 553, over the 80 classes of COCO.

The official list is a file, evaluation_metadata.jsonl: give it to `read_prompts` for published numbers. What stands
here follows the same rules (arXiv 2310.11513, appendix) with draws of our own, so tasks and difficulty are the same
and the objects are others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ditkit.data.order import philox_words
from ditkit.evaluation.geneval.metadata import RELATIONS, TAGS, Prompt, Requirement
from ditkit.pretrained.coco import CLASSES, COLOURS

COUNTS = {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
NUMBERS = {2: "two", 3: "three", 4: "four"}
THINGS = tuple(name for name in CLASSES if name != "person")  # of tasks that ask for a colour
SEED = 43  # of the published generator; ours draws other prompts from it

Pick = Callable[[Sequence[str]], str]


def with_article(words: str) -> str:
    """The words behind "a", or "an" before a, e, i, o and u: by the first letter alone, as published."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(name: str) -> str:
    """With "es" after an s, else "s": buses, cats, and also skises and knifes, as published."""
    return name + ("es" if name.endswith("s") else "s")


def geneval_prompts(seed: int = SEED, counts: dict[str, int] | None = None) -> list[Prompt]:
    """Different prompts of every task, COUNTS of them (or the given counts), task by task; a function of the seed.

    ValueError where a task has fewer different prompts than asked for.
    """
    found: list[Prompt] = []
    for tag, count in (COUNTS if counts is None else counts).items():
        if tag not in _MAKERS:
            raise ValueError(f"no task {tag!r}: GenEval has {', '.join(TAGS)}")
        if tag == "single_object":
            found += [_single(name) for name in CLASSES[:count]]
        else:
            found += _different(tag, seed, count)
    return found


def _different(tag: str, seed: int, count: int) -> list[Prompt]:
    made: dict[str, Prompt] = {}
    for attempt in range(20 * count + 100):
        if len(made) == count:
            break
        prompt = _MAKERS[tag](_picker(f"geneval/{tag}", seed, attempt))
        made.setdefault(prompt.text, prompt)
    if len(made) < count:
        raise ValueError(f"GenEval has fewer than {count} different prompts of task {tag!r}")
    return list(made.values())


def _picker(stream: str, seed: int, attempt: int) -> Pick:
    words = iter(philox_words(stream, seed, attempt, 2).ravel().tolist())
    return lambda options: options[next(words) % len(options)]


def _single(name: str) -> Prompt:
    return Prompt("single_object", f"a photo of {with_article(name)}", (Requirement(name),))


def _two(pick: Pick) -> Prompt:
    first, second = _two_of(pick, CLASSES)
    text = f"a photo of {with_article(first)} and {with_article(second)}"
    return Prompt("two_object", text, (Requirement(first), Requirement(second)))


def _counting(pick: Pick) -> Prompt:
    name, count = pick(CLASSES), {word: n for n, word in NUMBERS.items()}[pick(tuple(NUMBERS.values()))]
    return counting_prompt(f"a photo of {NUMBERS[count]} {plural(name)}", Requirement(name, count))


def counting_prompt(text: str, requirement: Requirement) -> Prompt:
    """Exactly so many: one more of the class is a failure."""
    return Prompt("counting", text, (requirement,), (Requirement(requirement.name, requirement.count + 1),))


def _colours(pick: Pick) -> Prompt:
    name, colour = pick(THINGS), pick(COLOURS)
    return Prompt("colors", f"a photo of {with_article(f'{colour} {name}')}", (Requirement(name, 1, colour),))


def _position(pick: Pick) -> Prompt:
    first, second = _two_of(pick, CLASSES)
    relation = pick(RELATIONS)
    text = f"a photo of {with_article(first)} {relation} {with_article(second)}"
    return Prompt("position", text, (Requirement(second), Requirement(first, 1, "", (relation, 0))))


def _attribution(pick: Pick) -> Prompt:
    (first, second), (one, other) = _two_of(pick, THINGS), _two_of(pick, COLOURS)
    text = f"a photo of {with_article(f'{one} {first}')} and {with_article(f'{other} {second}')}"
    return Prompt("color_attr", text, (Requirement(first, 1, one), Requirement(second, 1, other)))


def _two_of(pick: Pick, options: Sequence[str]) -> tuple[str, str]:
    first = pick(options)
    return first, pick([option for option in options if option != first])


_MAKERS: dict[str, Callable[[Pick], Prompt]] = {
    "single_object": lambda pick: _single(pick(CLASSES)),
    "two_object": _two,
    "counting": _counting,
    "colors": _colours,
    "position": _position,
    "color_attr": _attribution,
}
