"""Costs against the published tables; their "Gflops" are multiply-accumulates."""

import pytest

from ditkit.analysis.cost import cost, sharing_cost
from ditkit.models import ddt_settings, dit_settings

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


# DDT: parameters of the split and of the improved DiT; GMACs of a step, of its encoder blocks and its decoder blocks
SPLITS = [
    ("B/2", 130_262_800, 130_249_744, 26.91, 15.33, 11.27),
    pytest.param("L/2", 457_648_144, 457_630_736, 87.64, 67.22, 19.86, marks=pytest.mark.long),
    pytest.param("XL/2", 674_646_352, 674_626_768, 131.48, 93.19, 37.60, marks=pytest.mark.long),
]


@pytest.mark.parametrize("name, parameters, improved, total, encoder, decoder", SPLITS)
def test_ddt_and_its_halves(name, parameters, improved, total, encoder, decoder):
    settings = ddt_settings(name)
    whole, parts = cost(settings), sharing_cost(settings)
    assert (whole.parameters, whole.trainable) == (parameters, parameters)
    assert cost(ddt_settings(name, encoder_blocks=0)).parameters == improved
    assert whole.gmacs == parts.full == pytest.approx(total, abs=0.006)
    assert parts.encoder + parts.decoder == pytest.approx(parts.full, abs=1e-9)
    tokens, width = 256, settings.width
    embeddings = (16 * width * tokens + 256 * width + width * width) / 1e9  # patches and time
    assert parts.encoder - embeddings == pytest.approx(encoder, abs=0.005)
    final = (2 * width * width * tokens + 2 * 16 * width * tokens) / 1e9  # the decoder's patches, the final layer
    assert parts.decoder - final == pytest.approx(decoder, abs=0.005)
    modulations = (6 * settings.decoder_blocks + 2) * width * width * tokens / 1e9
    assert parts.decoder - parts.shared == pytest.approx(modulations, abs=1e-9)


def test_sharing_xl_one_step_in_five():
    xl = sharing_cost(ddt_settings("XL/2"))
    assert (xl.shared, xl.decoder) == (pytest.approx(25.4, abs=0.05), pytest.approx(38.3, abs=0.05))
    assert xl.speedup(250, 50) == pytest.approx(2.8, abs=0.05)
    assert cost(dit_settings("XL/2")).gmacs * 250 / xl.run(250, 50) == pytest.approx(2.5, abs=0.05)
    assert xl.speedup(250, 50, keep=False) == pytest.approx(2.3, abs=0.05)
    assert xl.speedup(250, 250) == xl.speedup(250, 250, keep=False) == 1
    assert xl.speedup(250, 1) < xl.full / xl.shared


@pytest.mark.long
def test_sharing_cost_follows_the_latent_size():
    small, large = (sharing_cost(ddt_settings("B/2"), size) for size in ((32, 32), (64, 64)))
    assert 4 < large.shared / small.shared < 6 and sharing_cost(ddt_settings("B/2", size=(64, 64))) == large


@pytest.mark.parametrize("settings", [dit_settings("S/8"), ddt_settings("B/2", encoder_blocks=0)])
def test_networks_without_an_encoder_have_no_sharing_cost(settings):
    with pytest.raises(ValueError, match=r"^sharing_cost: .*no encoder to share[^\n]*$"):
        sharing_cost(settings)


@pytest.mark.parametrize("budget", [0, 11, -1])
def test_a_budget_that_does_not_fit(budget):
    with pytest.raises(ValueError, match=r"^sharing: a budget of [^\n]*$"):
        sharing_cost(ddt_settings("B/2")).speedup(10, budget)


def test_unconditional_ddt():
    labelled, plain = cost(ddt_settings("B/2")), cost(ddt_settings("B/2", num_classes=0))
    assert labelled.trainable - plain.trainable == 1001 * 768 and labelled.gmacs == plain.gmacs
