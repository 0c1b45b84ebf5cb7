"""GenEval's verdicts on hand-made detections: every task, every rule, and the published arithmetic."""

from __future__ import annotations

import pytest
import torch

from ditkit.evaluation.geneval import Examined, Prompt, Requirement, Rules, judge
from ditkit.evaluation.geneval.metadata import TAGS
from ditkit.evaluation.geneval.prompts import counting_prompt
from ditkit.evaluation.geneval.published import IMAGES, TABLE_4, TABLE_5, overall
from ditkit.evaluation.geneval.scoring import aspects, iou, relations
from ditkit.protocols import Colours, Detection

IMAGE = torch.zeros(3, 100, 100, dtype=torch.uint8)


class ByColumn:
    """Colours by the left edge of the box, and how often they were asked for."""

    id = "by column"

    def __init__(self, **at):
        self.at = {int(name[1:]): colour for name, colour in at.items()}
        self.asked = 0

    def __call__(self, image, found):
        self.asked += len(found)
        return [self.at[int(d.box[0])] for d in found]


def thing(label, score=0.95, x=0, y=0, side=10):
    return Detection(label, score, (float(x), float(y), float(x + side), float(y + side)))


def verdict(prompt, found, colours=None, rules=None):
    return judge(prompt, Examined(IMAGE, found, colours or ByColumn(), rules or Rules()))


def prompt(tag, *include):
    return Prompt(tag, "", tuple(Requirement(*r) if isinstance(r, tuple) else Requirement(r) for r in include))


def test_single_object():
    cat = prompt("single_object", "cat")
    assert verdict(cat, [thing("cat", 0.31)]).correct
    assert verdict(cat, [thing("dog"), thing("cat"), thing("cat", x=30)]).correct, "others may be there too"
    wrong = verdict(cat, [thing("cat", 0.3), thing("dog")])
    assert not wrong.correct and wrong.reasons == ("expected 1 cat, found 0",), "0.3 itself is not enough"
    assert not verdict(cat, []).correct


def test_two_objects():
    both = prompt("two_object", "cat", "dog")
    assert verdict(both, [thing("dog"), thing("cat")]).correct
    assert verdict(both, [thing("dog")]).reasons == ("expected 1 cat, found 0",)
    assert len(verdict(both, []).reasons) == 2, "every broken clause is told"


@pytest.mark.parametrize(("seen", "correct"), [(1, False), (2, False), (3, True), (4, False)])
def test_counting_is_exact(seen, correct):
    three = counting_prompt("three cats", Requirement("cat", 3))
    found = [thing("cat", 0.91, x=20 * i) for i in range(seen)] + [thing("dog")] * 9
    assert verdict(three, found).correct == correct


def test_counting_wants_more_confidence():
    two = counting_prompt("two cats", Requirement("cat", 2))
    sure, unsure = [thing("cat", 0.91, x=20 * i) for i in range(2)], [thing("cat", 0.9, x=60)]
    assert verdict(two, sure + unsure).correct
    assert not verdict(two, sure[:1] + unsure).correct
    assert not verdict(two, sure + unsure, rules=Rules(counting=0.5)).correct


def test_at_most_sixteen_of_a_class():
    crowd = [thing("cat", 0.95, x=i) for i in range(20)]
    twenty = Prompt("counting", "", (Requirement("cat", 17),))
    assert verdict(twenty, crowd).reasons == ("expected 17 cat, found 16",)
    assert verdict(twenty, crowd, rules=Rules(most=20)).correct


def test_overlapping_boxes_count_unless_told_otherwise():
    two = counting_prompt("two cats", Requirement("cat", 2))
    found = [thing("cat", 0.99), thing("cat", 0.95, x=1)]
    assert verdict(two, found).correct
    assert verdict(two, found, rules=Rules(overlap=0.5)).reasons == ("expected 2 cat, found 1",)
    assert verdict(two, [thing("cat"), thing("cat")]).correct, "equal boxes: 1.0 is off"


def test_colours_of_the_most_confident_only():
    red = prompt("colors", ("cat", 1, "red"))
    eyes = ByColumn(_0="red", _20="blue")
    red_first = [thing("cat", 0.9), thing("cat", 0.8, x=20)]
    assert verdict(red, red_first, eyes).correct
    blue_first = [thing("cat", 0.7), thing("cat", 0.8, x=20)]
    assert verdict(red, blue_first, eyes).reasons == ("expected 1 red cat, found blue",)
    two = prompt("colors", ("cat", 2, "red"))
    assert not verdict(two, red_first, eyes).correct


def test_colour_attribution():
    attr = prompt("color_attr", ("cat", 1, "red"), ("dog", 1, "blue"))
    found = [thing("cat"), thing("dog", x=20)]
    assert verdict(attr, found, ByColumn(_0="red", _20="blue")).correct
    swapped = verdict(attr, found, ByColumn(_0="blue", _20="red"))
    assert len(swapped.reasons) == 2 and not swapped.correct


@pytest.mark.parametrize(
    ("x", "y", "right"),
    [(-30, 0, "left of"), (30, 0, "right of"), (0, -30, "above"), (0, 30, "below")],
)
def test_position(x, y, right):
    for relation in ("left of", "right of", "above", "below"):
        asked = prompt("position", "dog", ("cat", 1, "", (relation, 0)))
        found = [thing("dog", x=40, y=40), thing("cat", x=40 + x, y=40 + y)]
        assert verdict(asked, found).correct == (relation == right)


def test_position_needs_its_other_object():
    asked = prompt("position", "dog", ("cat", 1, "", ("above", 0)))
    assert verdict(asked, [thing("cat")]).reasons == (
        "expected 1 dog, found 0",
        "no object that cat could be above",
    )
    coloured = prompt("position", ("dog", 1, "red"), ("cat", 1, "blue", ("left of", 0)))
    found = [thing("dog", x=40), thing("cat")]
    assert verdict(coloured, found, ByColumn(_0="blue", _40="red")).correct
    assert not verdict(coloured, found, ByColumn(_0="blue", _40="green")).correct
    assert not verdict(coloured, found, ByColumn(_0="black", _40="red")).correct


def test_exclude_fails_at_its_count():
    no_dogs = Prompt("single_object", "", (Requirement("cat"),), (Requirement("dog", 1),))
    assert verdict(no_dogs, [thing("cat")]).correct
    assert verdict(no_dogs, [thing("cat"), thing("dog")]).reasons == ("expected fewer than 1 dog, found 1",)


def test_relation_rule_in_numbers():
    a = (0.0, 0.0, 10.0, 10.0)
    # offset 8 along x less 0.1 * 20 = 6; over |offset| 8: 0.75
    assert relations(a, (8.0, 0.0, 18.0, 10.0)) == ("left of",)
    # offset 3.9: (3.9 - 2) / 3.9 = 0.487, not above 0.5
    assert relations(a, (3.9, 0.0, 13.9, 10.0)) == () and relations(a, (4.1, 0.0, 14.1, 10.0)) == ("left of",)
    # offset within a tenth of both sizes: none; the same box: none
    assert relations(a, (2.0, 1.0, 12.0, 11.0)) == () == relations(a, a)
    # a revised offset of half a thousandth of a pixel: none, though its component would be tiny anyway
    assert relations(a, (2.0005, 0.0, 12.0005, 10.0)) == ()
    # diagonal: both, since (40 - 2) / (40 sqrt 2) = 0.67; the un-revised norm divides
    assert relations((40.0, 40.0, 50.0, 50.0), a) == ("right of", "below")
    # diagonal and near: (6 - 2) / (6 sqrt 2) = 0.471, where the revised norm would give 0.707
    assert relations((6.0, 6.0, 16.0, 16.0), a) == ()
    # sizes count per axis: 0.1 * (100 + 10) = 11 of 12 along x
    assert relations((-57.0, 0.0, 43.0, 10.0), a) == () and relations((-157.0, 0.0, -57.0, 10.0), a) == ("left of",)


def test_iou_counts_the_last_pixel():
    assert iou((0, 0, 9, 9), (0, 0, 9, 9)) == 1
    assert iou((0, 0, 9, 9), (5, 0, 14, 9)) == pytest.approx(50 / 150)
    assert iou((0, 0, 9, 9), (9, 9, 18, 18)) == pytest.approx(1 / 199), "boxes that share an edge pixel"
    assert iou((0, 0, 9, 9), (10, 0, 19, 9)) == 0 == iou((0, 0, 9, 9), (40, 40, 49, 49))


def test_colours_are_asked_for_once():
    eyes = ByColumn(_0="red", _20="blue")
    assert isinstance(eyes, Colours)
    examined = Examined(IMAGE, [thing("cat"), thing("dog", x=20)], eyes)
    for colour in ("red", "blue", "red"):
        judge(prompt("colors", ("cat", 1, colour)), examined)
    assert eyes.asked == 1
    judge(prompt("two_object", "cat", "dog"), examined)
    assert eyes.asked == 1 and examined.known_colour(examined.found[1]) == ""


def test_aspects():
    position = prompt("position", ("square", 1, "red"), ("circle", 1, "blue", ("left of", 0)))
    circle, square = thing("circle"), thing("square", x=40)
    right = {"number": True, "classes": True, "colours": True, "pairs": True, "relation": True}
    seen = ByColumn(_0="blue", _40="red")
    assert aspects(position, Examined(IMAGE, [circle, square], seen)) == right
    below = [circle, thing("square", x=40, y=-60)]
    assert aspects(position, Examined(IMAGE, below, seen))["relation"] is True, "a diagonal is left of as well"
    left = [thing("circle", x=40), thing("square")]
    assert not aspects(position, Examined(IMAGE, left, ByColumn(_0="red", _40="blue")))["relation"]
    swapped = aspects(position, Examined(IMAGE, [circle, square], ByColumn(_0="red", _40="blue")))
    assert swapped == {"number": True, "classes": True, "colours": True, "pairs": False}, "and no relation"
    one = aspects(position, Examined(IMAGE, [circle], seen))
    assert one == {"number": False, "classes": False, "colours": False, "pairs": False}
    two = counting_prompt("", Requirement("circle", 2))
    assert aspects(two, Examined(IMAGE, [circle], seen)) == {"number": False, "classes": True}


def test_published_arithmetic():
    """SD3's Table 4: percentages are counts of four images a prompt, the overall score a mean over tasks."""
    percent = {
        "original captions": (11.75, 71.54, 6.50, 33.44, 95.00, 41.41),
        "50 % synthetic captions": (24.75, 68.09, 18.00, 41.56, 93.75, 52.53),
    }
    order = ("color_attr", "colors", "position", "counting", "single_object", "two_object")
    assert sum(IMAGES.values()) == 2212
    for name, (mean, counts) in TABLE_4.items():
        shares = {tag: counts[tag] / IMAGES[tag] for tag in TAGS}
        assert [round(100 * shares[tag], 2) for tag in order] == list(percent[name])
        assert round(100 * overall(shares), 2) == mean
    over_images = sum(TABLE_4["original captions"][1].values()) / 2212
    assert round(100 * over_images, 2) != 43.27, "not a mean over images"


def test_table_5_agrees_with_itself():
    assert len(TABLE_5) == 15
    for row in TABLE_5.values():
        assert abs(overall(dict(zip(TAGS, row.tasks, strict=True))) - row.overall) < 0.0101, "two digits everywhere"
    with pytest.raises(ValueError, match="got none"):
        overall({})
    with pytest.raises(ValueError, match="got dance"):
        overall({"dance": 1.0})
