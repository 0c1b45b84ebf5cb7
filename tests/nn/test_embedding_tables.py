"""Position tables and timestep embeddings against the recordings and golden numbers of the released code."""

import pytest
import torch

from ditkit.nn.embed import TimeEmbed, sinusoid
from ditkit.nn.position import sincos_table


@pytest.fixture
def tables(reference):
    return reference("embedding_tables")


@pytest.mark.parametrize("width, side", [(64, 4), (48, 3)])
def test_position_table_as_published(tables, width, side):
    tables.close(f"dit.pos_embed.h{width}.g{side}", sincos_table(side, side, width))


@pytest.mark.parametrize(
    "output, width, time",
    [
        ("dit.t_embed.int", 256, "t_int"),
        ("dit.t_embed.frac", 256, "t_frac"),
        ("dit.t_embed.dim9", 9, "t_int"),  # odd: a zero column at the end
        ("sit.t_embed.frac", 256, "t_frac"),
        ("repa.t_embed.frac", 256, "t_frac"),
    ],
)
def test_timestep_embedding_as_published(tables, output, width, time):
    tables.close(output, sinusoid(tables.inputs[time], width))


def test_ddt_period_is_an_argument(tables):
    tables.close("ddt.t_embed.frac", sinusoid(tables.inputs["t_frac"], 256, max_period=10.0))


def test_first_half_of_the_table_is_the_column():
    table = sincos_table(4, 4, 64)
    row0_column1, row1_column0 = table[1], table[4]
    expected = torch.tensor([0.841471, 0.533168, 0.310984])
    assert torch.allclose(row0_column1[0:3], expected, atol=1e-6) and torch.equal(row0_column1[32:35], torch.zeros(3))
    assert torch.allclose(row1_column0[32:35], expected, atol=1e-6) and torch.equal(row1_column0[0:3], torch.zeros(3))
    cosines = torch.tensor([0.540302, 0.846009, 0.950415])
    assert torch.allclose(row0_column1[16:19], cosines, atol=1e-6)
    assert torch.allclose(row1_column0[48:51], cosines, atol=1e-6)


def test_table_of_another_grid_is_a_crop_not_an_interpolation():
    big = sincos_table(6, 8, 32).unflatten(0, (6, 8))
    assert torch.equal(sincos_table(4, 5, 32), big[:4, :5].flatten(0, 1))


@pytest.mark.parametrize(
    "t, values",
    [
        (500.0, (-0.883849, 0.945946, 0.998557, -0.467772, 0.324325, 0.053705)),
        (0.75, (0.731689, 0.766175, 1.0, 0.681639, 0.642632, 0.000081)),
    ],
)
def test_sinusoid_golden_numbers(t, values):
    got = sinusoid(torch.tensor([t]))[0, [0, 1, 127, 128, 129, 255]]
    assert torch.allclose(got, torch.tensor(values), atol=2e-6)


def test_width_must_allow_four_parts():
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_table(2, 2, 10)


def test_sinusoid_is_float32_whatever_comes_in():
    assert sinusoid(torch.tensor([0.5], dtype=torch.float64)).dtype == torch.float32
    halves = TimeEmbed(8).to(torch.bfloat16)
    assert halves(torch.tensor([0.5])).dtype == torch.bfloat16
