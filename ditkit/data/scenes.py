"""Small scenes of coloured shapes with captions, made on the fly: text-to-image data that need no download.

The tasks are GenEval's (Ghosh et al. 2023, arXiv 2310.11513) with circles for cats and dogs: one object, two, counting,
colours, position, and two objects with a colour each. What a caption says can be checked in the pixels exactly.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from PIL import Image

from ditkit.data.order import philox_words
from ditkit.data.source import DataError, ImageSource
from ditkit.protocols import Captions, Item

Split = Literal["all", "train", "test"]
RGB = tuple[int, int, int]
Kind = tuple[str, str]  # (shape, colour)

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")  # GenEval's tags
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}  # (dx, dy), y points down
NUMBERS = ("no", "one", "two", "three", "four")
LENGTHS = {"all": 60_000, "train": 50_000, "test": 10_000}
SMALLEST = 16  # pixels a side that leave a shape its shape
HELD_OUT = 7  # one in so many pairs of objects is kept for the test split
CELLS = ((0, 0), (1, 0), (0, 1), (1, 1))  # (column, row) of the 2 x 2 grid


@dataclass(frozen=True)
class Vocabulary:
    """The words of the scenes: shapes, object colours and backgrounds with their RGB values."""

    shapes: tuple[str, ...] = ("circle", "square", "triangle")
    colours: dict[str, RGB] = field(
        default_factory=lambda: {
            "red": (220, 40, 40),
            "yellow": (245, 205, 40),
            "green": (30, 160, 70),
            "blue": (50, 80, 220),
            "black": (25, 25, 25),
        }
    )
    backgrounds: dict[str, RGB] = field(default_factory=lambda: {"white": (255, 255, 255), "grey": (205, 205, 205)})

    def kinds(self) -> list[Kind]:
        """Every (shape, colour)."""
        return list(itertools.product(self.shapes, self.colours))

    def words(self) -> tuple[str, ...]:
        """Every word that a caption can hold, in alphabetical order."""
        nouns = [noun(shape, colour, n) for shape in self.shapes for colour in ("", *self.colours) for n in range(1, 5)]
        phrases = " ".join(PHRASES).format("", "", "")
        said = " ".join([*nouns, phrases, *RELATIONS, *self.backgrounds, "and", "is", "are"])
        return tuple(sorted(set(said.split())))


PHRASES = ("{0}", "{0}", "{0}", "a picture of {0}", "there {1} {0}", "{0} on a {2} background")  # the plain one most
VOCABULARY = Vocabulary()


@dataclass(frozen=True)
class Thing:
    """One object: centre (x, y) and half its width and height, in pixels; triangles stand on their base."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) in pixels, edges included."""
        return self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius


@dataclass(frozen=True)
class Scene:
    """What a picture shows and what its caption says of it.

    named: whether the caption names colours. relation: of the first thing to the second (position only).
    phrase: which of PHRASES the caption takes.
    """

    task: str
    things: tuple[Thing, ...]
    size: tuple[int, int]
    background: str = "white"
    named: bool = True
    relation: str = ""
    phrase: int = 0


# ------------------------------------------------------------------------------------------------------ what is drawn


class Draws:
    """Uniform draws of one (stream, seed, index): a counter generator, so that any scene is made alone."""

    def __init__(self, stream: str, seed: int, index: int):
        self._words = iter(philox_words(stream, seed, index, 8).ravel().tolist())

    def below(self, n: int) -> int:
        """An integer in 0..n-1."""
        return next(self._words) % n

    def between(self, low: float, high: float) -> float:
        """A real number in [low, high)."""
        return low + (high - low) * (next(self._words) / 2**64)


def held_out(first: Kind, second: Kind) -> bool:
    """Whether this pair of objects, in either order, is kept out of training: by a hash, one in HELD_OUT."""
    text = " and ".join(sorted(f"{colour} {shape}" for shape, colour in (first, second)))
    return zlib.crc32(text.encode()) % HELD_OUT == 0  # 11 of the 75 pairs


def pairs(split: Split, two_colours: bool, vocabulary: Vocabulary = VOCABULARY) -> list[tuple[Kind, Kind]]:
    """The ordered pairs of differently shaped objects that a split may show; two_colours: of different colours only.

    "test" has the held-out ones, "train" the others.
    """
    return list(_pairs(split, two_colours, tuple(vocabulary.shapes), tuple(vocabulary.colours)))


@lru_cache
def _pairs(split: str, two_colours: bool, shapes: tuple, colours: tuple) -> tuple[tuple[Kind, Kind], ...]:
    found = []
    for first, second in itertools.permutations(itertools.product(shapes, colours), 2):
        fits = first[0] != second[0] and (first[1] != second[1] or not two_colours)
        if fits and (split == "all" or held_out(first, second) == (split == "test")):
            found.append((first, second))
    return tuple(found)


def make_scene(
    task: str,
    split: Split,
    draws: Draws,
    size: tuple[int, int] = (32, 32),
    vocabulary: Vocabulary = VOCABULARY,
) -> Scene:
    """A scene of one of TASKS; `size` (H, W) in pixels."""
    backgrounds, kinds = list(vocabulary.backgrounds), vocabulary.kinds()
    phrase, background = draws.below(len(PHRASES)), backgrounds[draws.below(len(backgrounds))]
    named, relation = task in ("colors", "position", "color_attr"), ""
    if task in ("two_object", "position", "color_attr"):
        allowed = pairs(split, task == "color_attr", vocabulary)
        shown = list(allowed[draws.below(len(allowed))])
    elif task == "counting":
        shown = [kinds[draws.below(len(kinds))]] * (2 + draws.below(3))
        named = draws.below(2) == 0
    else:
        shown = [kinds[draws.below(len(kinds))]]
    if task == "position":
        relation = list(RELATIONS)[draws.below(4)]
        cells = _related_cells(relation, draws.below(2))
    else:
        cells = list(_ORDERS[draws.below(len(_ORDERS))][: len(shown)])
    things = tuple(_place(kind, cell, size, draws) for kind, cell in zip(shown, cells, strict=True))
    return Scene(task, things, size, background, named, relation, phrase)


_ORDERS = tuple(itertools.permutations(CELLS))


def _related_cells(relation: str, line: int) -> list[tuple[int, int]]:
    """Neighbouring cells of one row or column, so that only one relation holds."""
    dx, dy = RELATIONS[relation]
    first, second = (1, 0) if dx + dy > 0 else (0, 1)
    return [(first, line), (second, line)] if dx else [(line, first), (line, second)]


def _place(kind: Kind, cell: tuple[int, int], size: tuple[int, int], draws: Draws) -> Thing:
    """An object somewhere in its cell, at least 1/16 of the cell away from the edge."""
    height, width = size[0] / 2, size[1] / 2
    side = min(height, width)
    radius = side * draws.between(0.25, 0.375)
    slack = [extent / 2 - radius - side / 16 for extent in (width, height)]
    x, y = (
        extent * (place + 0.5) + draws.between(-free, free)
        for extent, place, free in zip((width, height), cell, slack, strict=True)
    )
    return Thing(*kind, x, y, radius)


def draw(scene: Scene, vocabulary: Vocabulary = VOCABULARY) -> np.ndarray:
    """The picture, uint8 (H, W, 3), edges antialiased."""
    image = np.empty((*scene.size, 3), dtype=np.float32)
    image[:] = vocabulary.backgrounds[scene.background]
    for thing in scene.things:
        x0, y0, x1, y1 = thing.box
        rows = slice(max(0, int(y0) - 1), int(y1) + 2)
        columns = slice(max(0, int(x0) - 1), int(x1) + 2)
        part = image[rows, columns]
        inside = coverage(thing, part.shape[:2], (columns.start, rows.start))[..., None]
        part += inside * (np.asarray(vocabulary.colours[thing.colour], dtype=np.float32) - part)
    return np.rint(image).astype(np.uint8)


def coverage(thing: Thing, size: tuple[int, int], corner: tuple[int, int] = (0, 0)) -> np.ndarray:
    """How much of each pixel the object covers, float32 (H, W) in [0, 1], from its signed distance.

    corner: (x, y) of the first pixel. ValueError for a shape that nobody told how to draw.
    """
    x = np.arange(corner[0], corner[0] + size[1], dtype=np.float32) + (0.5 - thing.x)
    y = np.arange(corner[1], corner[1] + size[0], dtype=np.float32)[:, None] + (0.5 - thing.y)
    r = thing.radius
    if thing.shape == "circle":
        distance = np.sqrt(x * x + y * y) - r
    elif thing.shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - r
    elif thing.shape == "triangle":  # apex at the top, base 2 r, height 2 r: sides have the normals (2, -1) / sqrt 5
        distance = np.maximum((2 * np.abs(x) - y - r) / 5**0.5, y - r)
    else:
        raise ValueError(f"scenes draw circles, squares and triangles, not a {thing.shape}")
    return np.clip(0.5 - distance, 0, 1)


# ------------------------------------------------------------------------------------------------------ what is said


def noun(shape: str, colour: str = "", count: int = 1) -> str:
    """One object or several of a kind in words: a red circle, two squares."""
    words = [*([colour] if colour else []), shape + ("s" if count > 1 else "")]
    article = "an" if words[0][0] in "aeiou" else "a"
    return " ".join([article if count == 1 else NUMBERS[count], *words])


def describe(scene: Scene) -> str:
    """The caption: what the task names, in the scene's phrase."""
    things = scene.things
    nouns = [noun(t.shape, t.colour if scene.named else "") for t in things]
    if scene.task == "counting":
        said = noun(things[0].shape, things[0].colour if scene.named else "", len(things))
    elif scene.task == "position":
        said = f"{nouns[0]} {scene.relation} {nouns[1]}"
    else:
        said = " and ".join(nouns)
    verb = "are" if scene.task in ("counting", "two_object", "color_attr") else "is"
    return PHRASES[scene.phrase].format(said, verb, scene.background)


# ------------------------------------------------------------------------------------------------------ the source


class Scenes(ImageSource):
    """`n` scenes with captions (None: LENGTHS of the split), each a function of (split, seed, index) alone.

    split "train" never shows a held-out pair of objects, and "test" only such where it shows two kinds; "all" shows
    any. Tasks take turns at random. size: side or (H, W), at least 16. Unlabelled: the captions are the condition.
    """

    made = True

    def __init__(
        self,
        split: Split = "all",
        size: int | tuple[int, int] = 32,
        channels: int = 3,
        *,
        n: int | None = None,
        seed: int = 0,
        tasks: tuple[str, ...] = TASKS,
        vocabulary: Vocabulary = VOCABULARY,
    ):
        shape = (size, size) if isinstance(size, int) else size
        if channels != 3:
            raise DataError("data 'scenes': the captions name colours, which need channels=3")
        if min(shape) < SMALLEST:
            raise DataError(f"data 'scenes': size {shape[0]}x{shape[1]} is too small for shapes: {SMALLEST} at least")
        if strange := set(tasks) - set(TASKS):
            raise DataError(f"data 'scenes': no task {min(strange)!r}; choose from {', '.join(TASKS)}")
        super().__init__(np.full(LENGTHS[split] if n is None else n, -1, dtype=np.int64), (), channels)
        self.size, self.split, self.seed, self.tasks, self.vocabulary = shape, split, seed, tasks, vocabulary

    def scene(self, index: int) -> Scene:
        """What picture `index` shows."""
        draws = Draws(f"scenes/{self.split}", self.seed, range(len(self))[index])
        return make_scene(self.tasks[draws.below(len(self.tasks))], self.split, draws, self.size, self.vocabulary)

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(draw(self.scene(index), self.vocabulary))

    def read(self, index: int) -> Item:
        if self.size_of(index) != self.size:  # a bucket's
            return super().read(index)
        scene = self.scene(index)
        image = torch.from_numpy(draw(scene, self.vocabulary)).permute(2, 0, 1).contiguous()
        caption = describe(scene)
        return Item(image, -1, caption, self.name(index), Captions((caption,)))

    def shape(self, index: int) -> tuple[int, int]:
        return self.size

    def name(self, index: int) -> str:
        return f"scenes/{self.split}/{index}"

    def caption(self, index: int) -> str:
        return describe(self.scene(index))

    def content(self) -> Iterable[str]:
        return (f"scenes 1 {self.split} {self.seed} {len(self)} {self.tasks} {self.vocabulary}",)

    def keep_in_memory(self, limit: int | None = None) -> None:
        """Only where the user asks for it (None): a scene is made as fast as it is read."""
        if limit is None:
            super().keep_in_memory()
