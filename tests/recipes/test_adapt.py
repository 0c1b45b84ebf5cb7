"""A recipe meets data: size, classes, channels and patch follow, every change is said, the user's keys stay."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from ditkit.diffusion import CFG
from ditkit.recipes import RECIPES, recipe
from ditkit.recipes.adapt import adapt, concerns, even_patch, explain, has_pixel_patch, pixel_patch

OURS = recipe("repa.sit_s_2")
IN_PIXELS = OURS.with_({"codec": {"kind": "pixels"}})


def data(size, classes=3, channels=3):
    return SimpleNamespace(size=size, classes=tuple(f"c{i}" for i in range(classes)), channels=channels)


def test_size_classes_and_channels_come_from_the_data():
    made = adapt(OURS, data((256, 384), 7), channels=4, factor=8)
    assert (made.model.size, made.model.num_classes, made.model.channels, made.model.patch) == ((32, 48), 7, 4, 2)
    assert explain(OURS, made) == [
        "model.size: [32, 32] in the recipe, [32, 48] here (from the data)",
        "model.num_classes: 1000 in the recipe, 7 here (from the data)",
    ]
    assert made.training == OURS.training and made.sampling == OURS.sampling


def test_a_patch_says_why_it_changed_and_beside_a_users_patch_no_size_is_claimed():
    made = adapt(IN_PIXELS, data((64, 64)), channels=4, factor=1)
    (line,) = (line for line in explain(IN_PIXELS, made) if line.startswith("model.patch"))
    assert "2 in the recipe, 4 here" in line and "must divide the size and leave 256 tokens at most" in line
    chosen = IN_PIXELS.with_({"model.patch": 5, "model.size": (80, 80)})
    lines = explain(chosen, adapt(chosen, data((50, 50)), channels=4, factor=1, keep={"model.patch"}), {"model.patch"})
    assert "model.size: [50, 50] here (from the data)" in lines


def test_nothing_to_change_says_nothing():
    made = adapt(OURS, data((256, 256), 1000), channels=4, factor=8)
    assert made == OURS and explain(OURS, made) == []


def test_unlabelled_data_are_not_guided():
    made = adapt(OURS, data((256, 256), 0), channels=4, factor=8)
    assert made.model.num_classes == 0 and made.sampling.guidance is None
    assert "sampling without guidance: the data have no classes to guide by" in explain(OURS, made)
    kept = adapt(OURS, data((256, 256), 0), channels=4, factor=8, keep={"sampling.guidance.scale"})
    assert isinstance(kept.sampling.guidance, CFG), "what the user set stays"


def test_keys_of_the_user_stay_or_are_refused():
    made = adapt(IN_PIXELS, data((64, 64)), channels=3, factor=1, keep={"model.patch", "model.num_classes"})
    assert (made.model.patch, made.model.num_classes) == (2, 1000)
    assert made.model.grid == (32, 32), "more tokens than we would choose, but the user has said so"
    with pytest.raises(ValueError, match="multiple of 2, or set"):
        adapt(IN_PIXELS, data((65, 64)), channels=3, factor=1, keep={"model.patch"})


@pytest.mark.parametrize(
    "size, message", [((100, 256), "factor 8"), ((256, 264), "multiple of 16")], ids=["codec", "patch"]
)
def test_sizes_that_do_not_divide(size, message):
    with pytest.raises(ValueError, match=message):
        adapt(OURS, data(size), channels=4, factor=8)


@pytest.mark.parametrize(
    "size, patch",
    [((8, 8), 2), ((24, 40), 2), ((32, 32), 2), ((64, 64), 4), ((64, 128), 8), ((9, 9), 1), ((256, 256), 16)],
)
def test_in_pixels_the_patch_keeps_256_tokens(size, patch):
    made = adapt(IN_PIXELS, data(size), channels=3, factor=1)
    assert made.model.patch == patch
    assert math.prod(made.model.grid) <= 256
    assert any("model.patch" in line for line in explain(IN_PIXELS, made)) == (patch != 2)


def test_sizes_that_no_patch_cuts_well():
    for size in ((257, 257), (34, 34), (254, 254)):
        assert not has_pixel_patch(size)
        with pytest.raises(ValueError, match=f"multiple of {even_patch(size)}, or set"):
            pixel_patch(size)


def test_every_square_size_rounded_to_its_even_patch_has_a_patch():
    for side in range(2, 520):
        multiple = even_patch((side, side))
        rounded = max(multiple, side // multiple * multiple)
        patch = pixel_patch((rounded, rounded))
        assert rounded % patch == 0 and (rounded // patch) ** 2 <= 256


def test_concern_about_patches_that_hold_more_than_the_width():
    wide = adapt(IN_PIXELS, data((256, 256)), channels=3, factor=1)
    assert ["768 numbers" in line and "objective.prediction=data" in line for line in concerns(wide)] == [True]
    assert concerns(wide.with_({"objective.prediction": "data"})) == []
    assert concerns(adapt(IN_PIXELS, data((64, 64)), channels=3, factor=1)) == []


def test_concern_about_an_average_that_never_forgets_the_start():
    short = IN_PIXELS.with_({"training.steps": 2000})
    (line,) = concerns(short)
    assert "still 82% the random start" in line and "set training.ema=0.995" in line
    assert concerns(short.with_({"training.ema": 0.995})) == []
    assert all(concerns(make()) == [] for name, make in RECIPES.items() if not name.startswith("dit.")), "published"
