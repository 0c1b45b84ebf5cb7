"""Costs of text models: SD3's sizes by their released files, and multiply-accumulates against closed formulas."""

import pytest

from ditkit.analysis.cost import cost
from ditkit.models import (
    SD3_SIZES,
    CrossDiTSettings,
    JointDiTSettings,
    MMDiTSettings,
    UViTSettings,
    mmdit_settings,
)

TEXT = {"heads": 4, "channels": 3, "text_width": 20, "pooled_width": 12, "text_length": 6}
BASE = {**TEXT, "depth": 3, "width": 32, "size": (8, 12)}


@pytest.mark.parametrize(
    ("name", "trainable", "table"),
    [
        ("sd3-medium", 2_028_328_000, 192**2 * 1536),
        ("sd3.5-medium", 2_243_171_520, 384**2 * 1536),
        pytest.param("sd3.5-large", 8_056_627_520, 192**2 * 2432, marks=pytest.mark.long),
    ],
)
def test_released_sizes(name, trainable, table):
    """Parameters of the released files, whose position tables are stored but not trained."""
    got = cost(SD3_SIZES[name])
    assert (got.trainable, got.parameters) == (trainable, trainable + table)


@pytest.mark.parametrize(
    ("depth", "trainable"), [(15, 496_066_624), (18, 856_159_552), (22, 1_562_387_264), (30, 3_962_392_384)]
)
def test_the_papers_ladder(depth, trainable):
    assert cost(mmdit_settings(depth)).trainable == trainable


def tokens_of(s, size):
    height, width = size or s.size
    side = s.size[0] // s.grid[0]
    return height * width // side**2


def embedded(s, n, first):
    """Patches, time, pooled text, text tokens."""
    patches = n * s.patch**2 * s.channels * first
    pooled = s.pooled_width * s.width + s.width**2 if s.pooled_width else 0
    return patches + 256 * s.width + s.width**2 + pooled + s.text_length * s.text_width * s.width


def mmdit_macs(s, size=None):
    n, words, d, w = tokens_of(s, size), s.text_length, s.depth, s.width
    matrices = 4 + 2 * s.mlp_ratio
    every = (n + words) * matrices * w**2 + s.sets * 6 * w**2 + 2 * (n + words) ** 2 * w
    unused = (1 + 2 * s.mlp_ratio) * words * w**2 + (s.sets - 1) * 4 * w**2  # the last block reads the text, no more
    dual = len(s.dual) * ((4 * n + 3) * w**2 + 2 * n**2 * w)
    final = 2 * w**2 + n * w * s.patch**2 * s.channels
    return embedded(s, n, w) + d * every - unused + dual + final


def dit_macs(s, size=None):
    n, words, w = tokens_of(s, size), s.text_length, s.width
    rows = n + words if s.kind == "joint_dit" else n
    block = rows * (4 + 2 * s.mlp_ratio) * w**2 + 6 * w**2 + 2 * rows**2 * w
    if s.kind == "cross_dit":
        block += (2 * n + 2 * words) * w**2 + 2 * n * words * w
    return embedded(s, n, w) + s.depth * block + 2 * w**2 + n * w * s.patch**2 * s.channels


def uvit_macs(s, size=None):
    n, words, w, numbers = tokens_of(s, size), s.text_length, s.width, s.patch**2 * s.channels
    block = n * (6 + 2 * s.mlp_ratio) * w**2 + 6 * w**2 + 2 * n**2 * w + 2 * words * w**2 + 2 * n * words * w
    pixels = finest = n * 4 ** len(s.levels)
    total = embedded(s, pixels, s.levels[0]) + s.depth * block + 9 * pixels * s.levels[0] * numbers
    for c, below in zip(s.levels, (*s.levels[1:], w), strict=True):
        down, up = 18 * c * c, 27 * c * c + 2 * c * c  # 3 x 3 twice; from 2 c to c once, and 1 x 1 straight on
        total += s.level_blocks * (pixels * (down + up) + 2 * 2 * c * w) + 2 * (pixels // 4) * c * below
        pixels //= 4
    assert pixels == n and finest == n * 4 ** len(s.levels)
    return total


CLOSED = [
    (mmdit_macs, MMDiTSettings(**BASE)),
    (mmdit_macs, MMDiTSettings(**BASE, sets=3, text_split=2, qk_norm="rms")),
    (mmdit_macs, MMDiTSettings(**{**BASE, "pooled_width": 0}, dual=(1, 2), mlp_ratio=2.0)),
    (mmdit_macs, SD3_SIZES["sd3.5-medium"]),
    (dit_macs, JointDiTSettings(**BASE)),
    (dit_macs, CrossDiTSettings(**{**BASE, "pooled_width": 0}, patch=4, qk_norm="rms")),
    (uvit_macs, UViTSettings(**BASE, levels=(8,))),
    (uvit_macs, UViTSettings(**{**BASE, "size": (16, 24)}, levels=(8, 12), level_blocks=1, patch=2)),
]


@pytest.mark.parametrize(("formula", "settings"), CLOSED)
def test_macs_by_formula(formula, settings):
    assert cost(settings).gmacs * 1e9 == pytest.approx(formula(settings), rel=1e-12)
    twice = (2 * settings.size[0], settings.size[1])
    assert cost(settings, size=twice).gmacs * 1e9 == pytest.approx(formula(settings, twice), rel=1e-12)


def test_more_text_costs_more():
    short, long = (cost(JointDiTSettings(**{**BASE, "text_length": length})).gmacs for length in (6, 12))
    assert long > short
