"""Costs against the published tables; their "Gflops" are multiply-accumulates."""

import pytest

from ditkit.analysis.cost import cost
from ditkit.models import dit_settings

# DiT paper, Table 4: size, Gflops, millions of parameters; trainable parameters exactly (position table excluded)
PUBLISHED = [
    ("S/8", 0.36, 33, 33_142_016),
    ("S/4", 1.41, 33, 32_920_448),
    ("S/2", 6.06, 33, 32_865_056),
    ("B/8", 1.42, 131, 130_869_248),
    ("B/4", 5.56, 130, 130_426_496),
    ("B/2", 23.01, 130, 130_315_808),
    ("L/8", 5.01, 459, 458_578_432),
    ("L/4", 19.70, 458, 457_988_224),
    ("L/2", 80.71, 458, 457_840_672),
    ("XL/8", 7.39, 676, 675_664_640),
    ("XL/4", 29.05, 675, 675_000_704),
    ("XL/2", 118.64, 675, 674_834_720),
]
BLOCKS = [
    ("in_context", 119.37, 449),
    ("cross_attention", 137.62, 598),
    ("adaln", 118.56, 600),
    ("adaln_zero", 118.64, 675),
]


@pytest.mark.parametrize("name, gflops, millions, trainable", PUBLISHED)
def test_published_sizes(name, gflops, millions, trainable):
    got = cost(dit_settings(name, variance="learned"))
    assert got.gmacs == pytest.approx(gflops, abs=0.025)
    assert got.trainable == trainable and round(trainable / 1e6) == millions


@pytest.mark.parametrize("conditioning, gflops, millions", BLOCKS)
def test_published_conditioning_blocks(conditioning, gflops, millions):
    got = cost(dit_settings("XL/2", variance="learned", conditioning=conditioning))
    assert got.gmacs == pytest.approx(gflops, abs=0.025)
    assert round(got.trainable / 1e6) == millions


def test_512_pixels():
    got = cost(dit_settings("XL/2", variance="learned", size=(64, 64)))
    assert got.gmacs == pytest.approx(524.60, abs=0.1)
    assert (got.parameters, got.trainable) == (676_014_368, 674_834_720)
    assert cost(dit_settings("XL/2", variance="learned"), size=(64, 64)).gmacs == got.gmacs


def test_heads_of_sit_and_repa():
    assert cost(dit_settings("XL/2")).parameters == 675_111_184
    learned = cost(dit_settings("S/8", variance="learned")).parameters
    assert learned == 33_148_160 and cost(dit_settings("S/8", variance="dropped")).parameters == learned


def test_unconditional_has_no_label_table():
    labelled, plain = cost(dit_settings("S/8", num_classes=1000)), cost(dit_settings("S/8", num_classes=0))
    assert labelled.trainable - plain.trainable == 1001 * 384
