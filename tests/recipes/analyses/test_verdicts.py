"""Verdicts: pairs of images decide where there are any, ties are ties, and one unknown limit silences nothing."""

import pytest
import torch

from ditkit.evaluation.plots import Panel, Series, draw
from ditkit.recipes.analyses.verdicts import (
    ONE_EACH,
    Standing,
    changed,
    gap,
    halves,
    judged,
    paired,
    ranked,
    side_by_side,
)

IMAGES = torch.randn(80, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def percent(value):
    return f"{100 * value:.1f} %"


def standing(shift, **other):
    each = (IMAGES + shift).tolist()
    return Standing(sum(each) / len(each), each=each, **other)


def test_the_same_images_are_compared_in_pairs():
    wide = (-9.0, 9.0)
    a, b = standing(0.1, limits=wide), standing(0.0, limits=wide)
    assert gap(a, b).word == "beyond" and gap(b, a).difference == pytest.approx(-0.1)
    assert gap(a, Standing(b.value, wide)).word == "within", "limits alone"
    noisy = paired(torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]))
    assert noisy.word == "within" and noisy.limits is not None and noisy.limits[0] < 0 < noisy.limits[1]
    assert paired(torch.ones(12)).word == "beyond" and paired(torch.ones(3)).word == "unknown"
    assert paired(torch.zeros(12)).word == "equal"


def test_limits_of_independent_numbers_may_overlap_and_yet_differ():
    a, b = Standing(0.5, (0.45, 0.55)), Standing(0.42, (0.37, 0.47))
    assert (
        gap(a, b).limits == pytest.approx((0.08 - 0.05 * 2**0.5, 0.08 + 0.05 * 2**0.5)) and gap(a, b).word == "beyond"
    )
    assert gap(a, Standing(0.44, (0.39, 0.49))).word == "within" and gap(a, Standing(0.1)).word == "unknown"


def test_models_in_order():
    same = ranked("In S", {"one": standing(0), "two": standing(0)}, percent)
    assert same == [f"In S one and two are equal: {percent(standing(0).value)}."]
    far = ranked("In S", {"a": standing(0), "b": standing(0.2, where=" after block 3")}, percent)
    assert far[0].startswith("In S b with ") and "after block 3 is ahead; then a with " in far[0]
    assert far[0].endswith("It is ahead of a by 20.0 %, beyond noise.")
    three = {"a": Standing(0.5, (0.4, 0.6)), "b": Standing(0.45, (0.35, 0.55)), "c": Standing(0.1), "d": Standing(0.5)}
    assert ranked("In S", three, percent) == [
        "In S the highest is a with 50.0 %; then d with 50.0 %, b with 45.0 % and c with 10.0 %. It is within noise of "
        "b, equal to d and at a distance from c whose limits are not known."
    ]
    low = ranked("In S", {"a": Standing(0.5, (0.4, 0.6)), "b": Standing(0.1, (0.09, 0.11))}, percent, lowest=True)
    assert low[0].startswith("In S b with 10.0 % is ahead") and "by 40.0 % (limits 30.0 % to 50.0 %)" in low[0]
    assert ranked("In S", {"a": standing(0)}, percent) == []


def test_what_is_left_out_is_said_once():
    assert side_by_side(["A.", "B."]) == [f"A. {ONE_EACH}", "B."] and side_by_side([]) == []
    assert changed(judged(0.1, (-0.1, 0.3))) == "the change is within noise"
    assert changed(judged(0.1, None)).endswith("not known")


def test_halves_part_the_images():
    choose, measure = halves(7)
    assert choose.tolist() == [0, 2, 4, 6] and measure.tolist() == [1, 3, 5]


def test_a_drawing_without_lines_has_no_legend(recwarn):
    gone = Panel("nothing", [Series("a", [], []), Series("b", [1.0], [float("nan")])])
    assert "<svg" in draw(gone, ["a", "b"], "p", legend=True) and not recwarn.list
