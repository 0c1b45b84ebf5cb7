"""Scenes: every picture and caption a function of its index, and held-out pairs never seen in training."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
import torch

from ditkit.data import DataError, DataSettings, Loader, Scenes, open_source
from ditkit.data.scan import scan
from ditkit.data.scenes import (
    RELATIONS,
    TASKS,
    VOCABULARY,
    Draws,
    Scene,
    Thing,
    Vocabulary,
    coverage,
    describe,
    draw,
    held_out,
    make_scene,
    pairs,
)
from ditkit.protocols import Source

TWO = ("two_object", "position", "color_attr")


def test_a_scene_depends_on_its_index_alone():
    source = Scenes("train")
    assert isinstance(source, Source) and len(source) == 50_000 and source.size == (32, 32)
    backwards = [source[i] for i in reversed(range(30))][::-1]
    for i, item in enumerate(backwards):
        again = pickle.loads(pickle.dumps(source))[i]
        assert torch.equal(item.image, again.image) and item.caption == again.caption == source.caption(i)
        assert item.image.shape == (3, 32, 32) and item.image.dtype == torch.uint8 and item.label == -1
        assert item.captions.first == item.caption
        assert np.array_equal(np.asarray(source.picture(i)), item.image.permute(1, 2, 0))
    assert len({item.image.numpy().tobytes() for item in backwards}) == 30
    assert source[-1].path == "scenes/train/49999"
    with pytest.raises(IndexError):
        source[50_000]


def test_golden_captions():
    """Old runs and scores stay comparable."""
    assert [Scenes("train").caption(i) for i in range(6)] == [
        "a circle on a grey background",
        "there is a square",
        "a green circle and a red square",
        "a yellow circle",
        "a circle and a square",
        "a yellow circle",
    ]


def test_splits_and_seeds_differ():
    sources = [Scenes(), Scenes("train"), Scenes("test"), Scenes(seed=1), Scenes(size=64), Scenes(n=10)]
    assert len({s.fingerprint for s in sources}) == len(sources)
    assert Scenes("test").fingerprint == Scenes("test").fingerprint
    assert len({s[0].image.numpy().tobytes() for s in sources}) == len(sources) - 1  # n changes no picture


def test_held_out_pairs_are_kept_from_training():
    for two_colours in (False, True):
        train, test, every = (set(pairs(split, two_colours)) for split in ("train", "test", "all"))
        assert train | test == every and not train & test
        assert 1 / 9 < len(test) / len(every) < 1 / 5
    assert held_out(("circle", "black"), ("triangle", "red")) == held_out(("triangle", "red"), ("circle", "black"))
    in_training = {kind for pair in pairs("train", True) for kind in pair}
    assert in_training == set(VOCABULARY.kinds()), "each shape is seen in each colour, in some pair"
    for split in ("train", "test"):
        source = Scenes(split, tasks=TWO)
        seen = [source.scene(i).things for i in range(300)]
        assert {held_out(*((t.shape, t.colour) for t in things)) for things in seen} == {split == "test"}


def test_tasks_take_turns_and_show_what_they_say():
    source = Scenes()
    scenes = [source.scene(i) for i in range(1500)]
    counts = Counter(s.task for s in scenes)
    assert set(counts) == set(TASKS) and min(counts.values()) > 1500 / 6 * 0.8
    numbers = Counter(len(s.things) for s in scenes if s.task == "counting")
    assert set(numbers) == {2, 3, 4}
    for scene in scenes:
        shapes, colours = ({getattr(t, name) for t in scene.things} for name in ("shape", "colour"))
        assert len(shapes) == (2 if scene.task in TWO else 1)
        assert len(colours) == 2 or scene.task != "color_attr"
        assert (scene.relation in RELATIONS) == (scene.task == "position")
        for t in scene.things:
            x0, y0, x1, y1 = t.box
            assert min(x0, y0) >= 0.99 and max(x1, y1) <= 31.01, "a pixel of background at every edge"
        for i, a in enumerate(scene.things):
            for b in scene.things[:i]:
                gap = max(abs(a.x - b.x), abs(a.y - b.y)) - a.radius - b.radius
                assert gap > 1.99, "objects never touch"


def test_only_one_relation_holds():
    for i in range(200):
        first, second = (scene := make_scene("position", "all", Draws("t", 0, i))).things
        dx, dy = RELATIONS[scene.relation]
        along, across = (first.x - second.x, first.y - second.y)[:: 1 if dx else -1]
        assert along * (dx + dy) > 10 and abs(across) < 6


@pytest.mark.parametrize(
    ("task", "named", "relation", "phrase", "caption"),
    [
        ("single_object", False, "", 0, "a circle"),
        ("colors", True, "", 3, "a picture of a red circle"),
        ("colors", True, "", 4, "there is a red circle"),
        ("two_object", False, "", 0, "a circle and a square"),
        ("two_object", False, "", 4, "there are a circle and a square"),
        ("color_attr", True, "", 5, "a red circle and an orange square on a grey background"),
        ("position", True, "left of", 0, "a red circle left of an orange square"),
        ("counting", True, "", 0, "two red circles"),
        ("counting", False, "", 4, "there are two circles"),
    ],
)
def test_grammar(task, named, relation, phrase, caption):
    circle, square = Thing("circle", "red", 8, 8, 5), Thing("square", "orange", 24, 8, 5)
    things = (circle, circle) if task == "counting" else (circle, square) if task in TWO else (circle,)
    assert describe(Scene(task, things, (32, 32), "grey", named, relation, phrase)) == caption


def test_every_word_is_in_the_vocabulary():
    source = Scenes()
    said = {word for i in range(3000) for word in source.caption(i).split()}
    assert said == set(VOCABULARY.words())


@pytest.mark.parametrize("shape", VOCABULARY.shapes)
def test_shapes_have_their_area(shape):
    thing = Thing(shape, "red", 20.3, 19.6, 14.0)
    area = {"circle": np.pi * 14**2, "square": 28**2, "triangle": 28**2 / 2}[shape]
    covered = coverage(thing, (40, 40))
    assert abs(covered.sum() - area) < 0.01 * area
    rows = covered.sum(1)
    assert (rows[:20].sum() < 0.5 * rows[20:].sum()) == (shape == "triangle"), "triangles stand on their base"


def test_other_sizes_draw_the_same_scene_larger():
    small, large, wide = (Scenes("test", size).scene(3) for size in (32, 64, (32, 64)))
    assert [(t.shape, t.colour) for t in small.things] == [(t.shape, t.colour) for t in wide.things]
    for a, b in zip(small.things, large.things, strict=True):
        assert np.allclose(np.array(a.box) * 2, b.box)
    assert draw(wide).shape == (32, 64, 3) and Scenes("test", (32, 64))[3].image.shape == (3, 32, 64)
    middle = large.things[0]
    assert tuple(draw(large)[int(middle.y), int(middle.x)]) == VOCABULARY.colours[middle.colour]


def test_another_vocabulary():
    words = Vocabulary(("circle", "square"), {"orange": (250, 150, 30), "pink": (250, 150, 200)}, {"white": (255,) * 3})
    source = Scenes(vocabulary=words)
    assert {t.colour for i in range(50) for t in source.scene(i).things} == {"orange", "pink"}
    with pytest.raises(ValueError, match="not a star"):
        Scenes(vocabulary=Vocabulary(shapes=("star",)), tasks=("single_object",))[0]


def test_opened_by_name_and_loaded():
    source = open_source(DataSettings(source="scenes", split="test", size=(16, 24)))
    assert source.size == (16, 24) and len(source) == 10_000 and open_source("scenes").size == (32, 32)
    source = open_source("scenes", captioned=True)
    batch = next(iter(Loader(source, batch=5, seed=0)))
    assert batch.images.shape == (5, 3, 32, 32) and all(batch.captions)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 1}, "which need channels=3"),
        ({"size": 12}, "12x12 is too small for shapes: 16 at least"),
        ({"flip": True}, "flip=true would swap"),
    ],
)
def test_what_scenes_cannot_be(settings, message):
    with pytest.raises(DataError, match=message):
        open_source(DataSettings(source="scenes", **settings))
    with pytest.raises(DataError, match="no task 'dance'"):
        Scenes(tasks=("dance",))


def test_kept_in_memory_only_on_demand():
    assert open_source("scenes")._kept is None
    source = open_source(DataSettings(source="scenes", cache=True))
    assert source[1].image is source[1].image


def test_a_scan_of_pictures_made_on_the_fly_looks_at_some_and_says_so():
    found = scan(Scenes("train", n=2000))
    assert (found.images, found.usable, found.captions) == (2000, 2000, 2000) and not found.rejects
    assert sum(found.sizes.values()) == 512 and "512 of 2,000 pictures were looked at" in found.notes[-1]
