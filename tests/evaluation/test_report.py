"""The report: valid HTML, nothing from outside, nothing from names gets through unescaped."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser

import matplotlib
import pytest
import torch
from PIL import Image

from ditkit.evaluation.plots import Panel, Series, draw, read_rows, running_mean, series_of, thin
from ditkit.evaluation.protocols import Protocol, Score
from ditkit.evaluation.report import Report, render, write_report
from ditkit.evaluation.score_table import Space, score_table
from ditkit.evaluation.sections import (
    Section,
    class_grids,
    curves,
    facts,
    join,
    json_block,
    number,
    sheets,
    slug,
    table,
    text,
)

HOSTILE = "<script>alert('x')</script>\"' onload=\"y\" & $\\frac{1}{0}$ </style></pre></svg>"
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks nesting while reading; keeps every tag with its attributes, and the text."""

    def __init__(self, source: str):
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert not self.stack, f"left open: {self.stack}"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice: {attrs}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack and self.stack.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text += data

    def every(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def pictures(n: int = 12, channels: int = 1, size: int = 8):
    images = torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))  # fmt: skip
    return images, torch.arange(n) % 3


def score(value: float, half: float = 0.5, metric: str = "frechet", **changes) -> Score:
    base = {"n": 100, "labels": "random", "evaluations": 25, "extractor": "toy", "reference": "abc"}
    return Score(metric=metric, value=value, interval=(value - half, value + half), better="lower",
                 protocol=Protocol(**{**base, **changes}))  # fmt: skip


def full_report(name: str = "SiT") -> Report:
    steps = list(range(50))
    line = Series(name, steps, [1 / (s + 1) for s in steps], smooth=True)
    other = Series(f"{name} + REPA", steps, [0.9 / (s + 1) for s in steps])
    spaces = [Space(f"{name} space", {name: [score(5.0)], f"{name} + REPA": [score(3.0)]}, {"frechet": 0.1}, name)]
    return Report(
        f"Report of {name}",
        [f"{name} was trained.", "REPA gained nothing."],
        [
            curves(f"Curves of {name}", [Panel(f"loss {name}", [line, other], y_label=name), Panel("empty", [])], name),
            class_grids(f"Samples {name}", {name: pictures(), "real": pictures()}, [name, "b", "c"], note=name),
            sheets("Sheets", {name: pictures(5, 3, 100)[0]}, columns=2),
            score_table("Scores", spaces, name),
            table("Table", [name, "k-NN"], [[name, 0.5], ["pixels", None]], name),
            facts("Cost", {name: 1_000_000, "GMACs": 0.0213}),
            text("Words", [name, name]),
            join("Both", [text(name, name), json_block("inner", {name: name})]),
            json_block("Recipe", {name: [1, name]}),
        ],
        f"made by {name}",
    )


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render(full_report()))


def test_it_parses_and_has_the_parts(page):
    assert page.every("html") == [{"lang": "en"}] and len(page.every("h1")) == 1
    assert len(page.every("section")) == 9
    assert "REPA gained nothing." in page.text and "made by SiT" in page.text
    assert {"viewport"} <= {m.get("name") for m in page.every("meta")}


def test_nothing_comes_from_outside(page):
    source = render(full_report())
    assert not page.every("script") and not page.every("link") and not page.every("iframe")
    for tag, attrs in page.tags:
        for key, value in attrs.items():
            assert not key.startswith("on"), f"<{tag} {key}>"
            if key in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
                assert value.startswith(("#", "data:image/png;base64,")), f"<{tag} {key}={value[:60]}>"
    assert "http" not in source.replace("http-equiv", "")
    assert "@import" not in source
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", source))
    policy = next(m["content"] for m in page.every("meta") if "http-equiv" in m)
    assert "default-src 'none'" in policy


def test_ids_are_unique_and_links_arrive(page):
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids)), sorted(i for i in ids if ids.count(i) > 1)
    source = render(full_report())
    targets = [a["href"][1:] for _, a in page.tags if a.get("href", "").startswith("#")]
    targets += re.findall(r"url\(#([^)]*)\)", source)
    assert targets and set(targets) <= set(ids)
    assert {a["aria-labelledby"] for a in page.every("section")} <= set(ids)


def test_it_can_be_read_without_seeing(page):
    assert all(image["alt"].strip() for image in page.every("img"))
    assert all(s.get("aria-label") or s.get("aria-hidden") for s in page.every("svg"))
    assert all(h.get("scope") in ("col", "row", "rowgroup") for h in page.every("th"))
    drawing = next(s for s in page.every("svg") if s.get("role") == "img")
    assert "SiT ends at 0.02 at step 49" in drawing["aria-label"]


def test_hostile_names_stay_text():
    source = render(full_report(HOSTILE))
    page = Page(source)
    assert not page.every("script") and "<script" not in source
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert [t for t, _ in page.tags] == [t for t, _ in Page(render(full_report())).tags], "the same tags as ever"
    assert page.text.count(HOSTILE) > 10, "and the name is shown as it is"


def test_pictures_are_enlarged_pngs(page):
    tiny = [i for i in page.every("img") if i.get("class") == "tiny"]
    assert len(tiny) == 6, "two sources, three classes"
    data = Image.open(io.BytesIO(base64.b64decode(tiny[0]["src"].split(",")[1])))
    assert data.format == "PNG" and str(data.width) == tiny[0]["width"] and data.width == 2 * 40 + 3
    assert data.crop((0, 0, 5, 5)).getextrema()[0] == data.crop((0, 0, 5, 5)).getextrema()[1], "one pixel, 5 x 5"
    large = next(i for i in page.every("img") if "class" not in i)
    assert large["width"] == str(2 * 100 + 3)


def test_a_tiny_sheet_is_enlarged_until_it_can_be_seen():
    def shown(height, width):
        body = sheets("Samples", {"a": torch.zeros(1, 1, height, width, dtype=torch.uint8)}, columns=1).body
        return tuple(map(int, re.search(r'width="(\d+)" height="(\d+)"', body).groups()))

    assert shown(60, 90) == (450, 300) and shown(300, 700) == (700, 300) and shown(8, 240) == (480, 16)


def test_more_classes_than_fit_and_classes_without_samples():
    images, labels = pictures(40)
    body = class_grids("g", {"real": (images, labels)}, [f"c{i}" for i in range(1000)], most=5).body
    assert re.findall(r">(c\d+)<", body) == ["c0", "c200", "c400", "c600", "c800"]
    assert body.count("<img") == 1 and body.count("<td>–</td>") == 4


def test_table_refuses_ragged_rows():
    with pytest.raises(ValueError, match="a row has 1 cells for 2 columns"):
        table("t", ["a", "b"], [["x"]])


def test_written_atomically_and_deterministic(tmp_path):
    path = write_report(full_report(), tmp_path / "run" / "report.html")
    assert path.read_text(encoding="utf-8") == render(full_report())
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_equal_titles_get_different_anchors():
    page = Page(render(Report("t", "s", [text("Same", "a"), text("Same", "b"), Section("!?", "<p>c</p>")])))
    assert [s["id"] for s in page.every("section")] == ["s-same", "s-same-2", "s-"]
    assert slug("Größe 2") == "s-gr-e-2"


def test_score_table_marks_only_what_is_clearly_better():
    clear = score_table("s", [Space("x", {"a": [score(5.0)], "b": [score(3.0)]})]).body
    assert re.search(r'class="best number">3<', clear) and clear.count('class="best') == 1
    near = score_table("s", [Space("x", {"a": [score(5.0)], "b": [score(4.5)]})]).body
    assert 'class="best' not in near
    three = {"a": [score(5.0)], "b": [score(3.0)], "c": [score(3.2)]}
    assert 'class="best' not in score_table("s", [Space("x", three)]).body, "b and c are not told apart"
    assert 'class="best' not in score_table("s", [Space("x", {"a": [score(5.0)]})]).body


def test_score_table_of_different_protocols_says_so_and_marks_nothing():
    runs = {"a": [score(5.0)], "b": [score(1.0, quantiser="floor_255")]}
    body = score_table("s", [Space("x", runs)]).body
    assert "Not comparable" in body and 'class="best' not in body
    assert "uint8 round" in body and "uint8 floor_255" in body
    allowed = score_table("s", [Space("x", runs)], ignore=["quantiser"]).body
    assert "Not comparable" not in allowed and 'class="best' in allowed


def test_score_table_keeps_a_place_for_a_missing_score():
    runs = {"a": [score(5.0), score(1.0, metric="kernel")], "b": [score(5.0)]}
    page = Page(score_table("s", [Space("x", runs, {"kernel": 0.5})]).body)
    rows = [t for t, _ in page.tags].count("td")
    assert rows == 6 and "–" in page.text and "0.5" in page.text


def test_a_row_of_scores_has_one_notation():
    runs = {"a": [score(6.369e-4, 1e-4)], "b": [score(2e-3, 1e-3)]}
    shown = Page(score_table("s", [Space("x", runs, {"frechet": 8.69e-5})]).body).text
    for part in ("6.369e-04", "5.37e-04 … 7.37e-04", "2.000e-03", "8.690e-05"):
        assert part in shown, part
    assert "0.002" in Page(score_table("s", [Space("x", runs)]).body).text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        *((None, "–"), (0, "0"), (1234567, "1,234,567"), (0.9583, "0.9583"), (0.5, "0.5"), (18.9, "18.9")),
        *((123456.7, "123,457"), (1.234e-7, "1.23e-07"), (-0.00123456, "-0.001235"), (math.inf, "inf")),
        *((0.0, "0"), (100.0, "100"), (9999.96, "10000"), (True, "True"), ("<b>", "<b>")),
    ],
)
def test_numbers_for_people(value, shown):
    assert number(value) == shown


# ---- curves -----------------------------------------------------------------------------------------------------


def test_drawing_leaves_matplotlib_alone():
    before = dict(matplotlib.rcParams)
    svg = draw(Panel("t", [Series("a", [1, 2], [3.0, 4.0])]), ["a"], "p1")
    assert dict(matplotlib.rcParams) == before
    code = (
        "import sys; from ditkit.evaluation.plots import *; draw(Panel('t', [Series('a', [1], [1.0])]), ['a'], 'p');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert svg.startswith("<svg viewBox=") and svg.endswith("</svg>") and "currentColor" in svg and "#010203" not in svg


def test_a_series_keeps_its_colour_in_every_panel():
    a, b = Series("a", [1, 2], [1.0, 2.0]), Series("b", [1, 2], [2.0, 1.0])
    section = curves("c", [Panel("both", [a, b]), Panel("only b", [b])])
    panels = section.body.split("<figure>")[1:]
    assert "#e0702e" in panels[1] and "#3a7bd5" not in panels[1]
    assert "#e0702e" in panels[0] and "#3a7bd5" in panels[0]


@pytest.mark.parametrize(("x", "ticks"), [([1, 2, 3], "123"), ([200], ["200"]), ([0.0, 0.5, 1.0], None)])
def test_whole_numbers_have_no_ticks_between_them(x, ticks):
    drawn = draw(Panel("Over blocks", [Series("a", x, [5.25] * len(x))], "block"), ["a"], "p")
    found = re.findall(r"<text[^>]*>([^<]*)</text>", drawn.partition('id="p-matplotlib.axis_2"')[0])
    places = [t for t in found if t != "block"]
    assert places == list(ticks) if ticks else "0.2" in places


def test_values_that_cannot_be_drawn_are_left_out():
    s = Series("a", [1, 2, 3, 4], [1.0, math.nan, -2.0, math.inf])
    assert Panel("t", [s]).finite[0].y == (1.0, -2.0)
    assert Panel("t", [s], log_y=True).finite[0].y == (1.0,)
    assert "No values were recorded" in curves("c", [Panel("t", [Series("a", [1], [math.nan])])]).body
    with pytest.raises(ValueError, match="2 x and 1 y"):
        Series("a", [1, 2], [1.0])


def test_thin_and_running_mean():
    x, y = thin(range(10_000), range(10_000), most=100)
    assert len(x) == 100 and x[0] == 0 and x[-1] == 9999 and x == y
    straight = [3.0 + 2 * i for i in range(200)]
    assert running_mean(straight) == pytest.approx(straight), "it neither lags nor leans"
    assert running_mean([0.0, 1.0] * 500)[500] == pytest.approx(0.5, abs=0.03)
    assert running_mean([7.0]) == [7.0] and running_mean([]) == []


def test_rows_of_a_run(tmp_path):
    rows = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5, "validation": 2.0}, {"step": 2, "loss": 0.4}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 3, "lo')
    read = read_rows(path)
    assert read == rows
    loss = series_of(read, "loss", "SiT")
    assert (loss.name, list(loss.x), list(loss.y)) == ("SiT", [1, 2], [1.0, 0.4]), "the resumed run's row wins"
    assert list(series_of(read, "validation", "v").x) == [2] and list(series_of(read, "none", "v").x) == []
