"""Heat maps and rows of ticks: whole drawings that stand in a page, said in words too."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ditkit.evaluation.maps import HeatMap, Ticks, draw_heat_map, draw_ticks
from ditkit.evaluation.plots import Panel, Series, draw
from ditkit.evaluation.sections import curves, heat_maps, tick_rows

VALUES = np.array([[1.0, np.nan, np.nan], [0.5, 1.0, np.nan], [0.25, 0.5, 1.0]])


def test_a_heat_map_is_drawn_and_said():
    panel = HeatMap("Similarity", VALUES, "step", "cosine", blocks=(0, 2))
    svg = draw_heat_map(panel, "h1")
    assert 'aria-label="Similarity: cosine from 0.25 to 1 over 3 places; blocks begin at 0, 2"' in svg
    assert svg.count("data:image/png;base64,") == 2, "the matrix and the scale of its colours"
    assert all(" " not in data for data in re.findall(r"base64,([^\"]*)", svg))
    assert all(name.startswith("h1-") for name in re.findall(r' id="([^"]*)"', svg))
    assert "#010203" not in svg and "currentColor" in svg
    assert svg == draw_heat_map(panel, "h1")


def test_labels_keep_inside_the_drawing():
    svg = draw_heat_map(HeatMap("Small", VALUES * 1e-6, "evaluation (0 = noise)", "RMS", (0,)), "h2")
    width, height = (float(v) for v in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg).groups())
    upright = re.findall(r'x="([\d.-]+)" y="([\d.-]+)" transform="rotate\(-90', svg)
    assert len(upright) == 2, "the axis and the scale"
    for x, y in upright:
        assert 9 <= float(x) <= width - 2 and 0 < float(y) < height


def test_ticks_stand_where_they_should():
    panel = Ticks("Runs", {"uniform": ((0, 2, 4), 0), "dp": ((0, 3, 5), 1)}, 6, "step")
    svg = draw_ticks(panel, "t1")
    assert 'aria-label="Runs: uniform at 0, 2, 4; dp at 0, 3, 5"' in svg
    assert svg.count("#3a7bd5") >= 1 and svg.count("#e0702e") >= 1
    section = tick_rows("Schedules", panel, "a note")
    assert section.title == "Schedules" and section.note == "a note" and "<svg" in section.body


def test_equal_titles_in_one_page_have_ids_of_their_own():
    maps = heat_maps("Maps", [HeatMap("Same", VALUES), HeatMap("Same", VALUES / 2)])
    names = re.findall(r' id="([^"]*)"', maps.body)
    assert len(names) == len(set(names)) > 0


def test_limits_and_words_stand_beside_points():
    s = Series("a", [1.0, 2.0, 3.0], [1.0, float("nan"), 3.0], limits=[(0, 2), (0, 0), (2, 4)], labels=["p", "q", "r"])
    (kept,) = Panel("t", [s]).finite
    assert (kept.limits, kept.labels) == ([(0, 2), (2, 4)], ["p", "r"])
    svg = draw(Panel("t", [s]), ["a"], "p1")
    assert ">p</text>" in svg and ">r</text>" in svg and ">q</text>" not in svg
    assert curves("c", [Panel("t", [s])]).body.count("LineCollection") == 1
    with pytest.raises(ValueError, match="3 points with 1 limits or labels"):
        Series("a", [1, 2, 3], [1, 2, 3], labels=["x"])
