"""Position tables and timestep embeddings against the recordings and golden numbers of the released code."""

import math

import pytest
import torch

from ditkit.nn.embed import TimeEmbed, sinusoid
from ditkit.nn.position import ROPE_SPAN, centred, rope_table, rotate, sincos_table


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
        ("repa_mmdit.t_embed.frac", 256, "t_frac"),
    ],
)
def test_timestep_embedding_as_published(tables, output, width, time):
    tables.close(output, sinusoid(tables.inputs[time], width))


@pytest.mark.parametrize("output", ["mmditx.t_embed.1000t", "diffusers.t_embed.shift0"])
def test_timestep_embedding_of_sd3_sees_a_thousand_times_the_time(tables, output):
    tables.close(output, sinusoid(1000 * tables.inputs["t_frac"], 256))


def test_timestep_embedding_of_diffusers_dit_is_another_one(tables):
    """It divides by half - 1: diffusers' shift 1, which our DiT has on purpose not (docs/checkpoints.md)."""
    ours = sinusoid(1000 * tables.inputs["t_frac"], 256)
    assert (tables.outputs["diffusers.t_embed.shift1"] - ours).abs().max() > 0.1
    half = torch.arange(128, dtype=torch.float32)
    angle = 1000 * tables.inputs["t_frac"][:, None] * torch.exp(-math.log(10000.0) * half / 127)
    tables.close("diffusers.t_embed.shift1", torch.cat([angle.cos(), angle.sin()], dim=1))


def test_position_tables_of_mmditx(tables):
    """Scaled and shifted grids: coordinate i / scaling_factor - offset."""
    assert [set(c) - {"embed_dim", "grid_size"} for c in tables.meta["mmditx_pos"]] == [
        set(), {"scaling_factor"}, {"scaling_factor", "offset"}
    ]  # fmt: skip
    for i, case in enumerate(tables.meta["mmditx_pos"]):
        side, first = case["grid_size"], -case.get("offset", 0.0)
        step = 1 / case.get("scaling_factor", 1.0)
        got = sincos_table(side, side, case["embed_dim"], step=step, first=(first, first))
        tables.close(f"mmditx.pos_embed.{i}", got)


def test_position_tables_that_diffusers_builds(tables):
    """The native grid is stretched over the whole stored one and not centred, unlike in the released checkpoints."""
    for i, case in enumerate(tables.meta["diffusers_pos"]):
        native = case["height"] // case["patch_size"]
        side = case.get("pos_embed_max_size", native)
        tables.close(f"diffusers.pos_embed.{i}", sincos_table(side, side, case["embed_dim"], step=native / side))


def sd3_table(side, width):
    """The grid of the released checkpoints: 64 native tokens on 0 .. 15.75 in the middle of `side`."""
    first = centred(side, 64, 0.25)
    return sincos_table(side, side, width, step=0.25, first=(first, first)).view(side, side, width)


def test_sd3_position_golden_numbers():
    """Width 1536, 192 x 192: row 96 and column 100 stand at 8 and 9; the grid runs from -16 to 31.75."""
    first = centred(192, 64, 0.25)
    row = sincos_table(1, 1, 1536, first=(first + 96 * 0.25, first + 100 * 0.25))[0]
    picked = row[[0, 1, 384, 385, 768, 769, 1152, 1153]]
    golden = (0.412118, 0.595652, -0.911130, -0.803243, 0.989358, 0.999051, -0.145500, 0.043567)
    assert torch.allclose(picked, torch.tensor(golden), atol=1e-6)
    assert (first, first + 191 * 0.25) == (-16.0, 31.75)
    assert (centred(384, 64, 0.25), centred(384, 64, 0.25) + 383 * 0.25) == (-40.0, 55.75)
    whole = sd3_table(192, 64)
    assert torch.equal(whole[96, 100], sincos_table(1, 1, 64, first=(8.0, 9.0))[0])


@pytest.mark.parametrize("rows, columns", [(64, 64), (48, 84), (128, 32), (2, 190), (63, 64)])
def test_a_crop_of_the_stored_table_is_the_grid_of_the_paper(rows, columns):
    """Row i of a tall image stands at (i - (rows - 64) / 2) / 4, whatever the size of the table (section 5.3.2)."""
    first = tuple((64 - side) // 2 * 0.25 for side in (rows, columns))
    want = sincos_table(rows, columns, 16, step=0.25, first=first)
    for side in (192, 384):
        top, left = (side - rows) // 2, (side - columns) // 2
        crop = sd3_table(side, 16)[top : top + rows, left : left + columns]
        assert torch.equal(crop.flatten(0, 1), want)


@pytest.mark.parametrize("pixels, step, last", [(256, 1.0, 15.0), (512, 0.5, 15.5), (1024, 0.25, 15.75)])
def test_square_grids_of_the_paper(pixels, step, last):
    side = pixels // 16
    places = sincos_table(1, side, 8, step=step)[:, :4]  # slowest column frequency: sin(place / 100)
    assert torch.asin(places[:, 1]).mul(100).tolist() == pytest.approx([i * step for i in range(side)], abs=1e-4)
    assert (side - 1) * step == last


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


@pytest.mark.parametrize("name, head, rows, columns", [
    ("d16.4x4", 16, 4, 4), ("d16.4x6", 16, 4, 6), ("d8.1x3", 8, 1, 3), ("d72.3x2", 72, 3, 2),
])  # fmt: skip
def test_ddt_rotation_table_as_published(tables, name, head, rows, columns):
    cos, sin = rope_table(rows, columns, head)
    tables.close(f"ddt.rope.{name}.real", cos)
    tables.close(f"ddt.rope.{name}.imag", sin)
    assert cos.dtype == sin.dtype == torch.float32


def test_ddt_rotation_as_published(tables):
    q = tables.inputs["q"]  # (B, N, H, h), N = 2 x 3
    turned = rotate(q.transpose(1, 2), rope_table(2, 3, q.shape[-1]))
    tables.close("ddt.apply_rotary", turned.transpose(1, 2))


def test_ddt_rotation_golden_angles():
    """Token 1 is the next column, token 4 the next row; pairs alternate column, row (facts of the released code)."""
    cos, sin = rope_table(4, 4, 16)
    angles = torch.atan2(sin, cos)
    along = torch.tensor([-0.949852, 0.533333, 0.053333, 0.005333])
    zeros = torch.zeros(4)
    assert torch.allclose(angles[1], torch.stack([along, zeros], dim=1).flatten(), atol=2e-6)
    assert torch.allclose(angles[4], torch.stack([zeros, along], dim=1).flatten(), atol=2e-6)


@pytest.mark.parametrize("head", [8, 72])
def test_a_finer_grid_interpolates_and_keeps_its_ends(head):
    """Every second column and every third row of the finer grid are those of the coarse one; both end at 16."""
    coarse, fine = (torch.polar(torch.ones(()), angle_of(r, c, head)) for r, c in ((4, 5), (10, 9)))
    picked = fine.unflatten(0, (10, 9))[::3, ::2]
    assert torch.allclose(picked, coarse.unflatten(0, (4, 5)), atol=2e-6)
    ends = angle_of(4, 5, head).unflatten(0, (4, 5))[-1, -1, :2]
    assert torch.allclose(torch.exp(1j * ends), torch.exp(1j * torch.tensor([ROPE_SPAN] * 2)), atol=2e-6)


def angle_of(rows, columns, head):
    cos, sin = rope_table(rows, columns, head)
    return torch.atan2(sin, cos)


def test_rotation_keeps_norms_and_sees_distances_only():
    """<R(p) q, R(p') k> depends on p' - p: the same in every place of the grid with the same offset."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(16, generator=generator, dtype=torch.float64) for _ in range(2))
    rotation = rope_table(5, 6, 16)
    turned_q, turned_k = (rotate(v.expand(30, 16), rotation) for v in (q, k))
    assert torch.allclose(turned_q.norm(dim=1), q.norm().expand(30), atol=1e-6)
    products = (turned_q @ turned_k.T).view(5, 6, 5, 6)
    assert products.dtype == torch.float64
    for down, right in ((0, 1), (1, 0), (2, -3), (-1, 2)):
        places = [(r, c) for r in range(5) for c in range(6) if 0 <= r + down < 5 and 0 <= c + right < 6]
        same = torch.stack([products[r, c, r + down, c + right] for r, c in places])
        assert torch.allclose(same, same[:1].expand(len(same)), atol=1e-5)
    assert not torch.isclose(products[0, 0, 0, 1], products[0, 0, 1, 0], atol=1e-3)  # a row is not a column
    assert not torch.isclose(products[1, 1, 1, 2], products[1, 2, 1, 1], atol=1e-3)  # nor left right


def test_rotation_turns_adjacent_channels():
    quarter = (torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]))  # 90 degrees, then none
    assert rotate(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), quarter).tolist() == [[-2.0, 1.0, 3.0, 4.0]]


def test_rotation_of_bfloat16_is_float32():
    rotation = rope_table(2, 2, 8)
    assert rotate(torch.ones(4, 8, dtype=torch.bfloat16), rotation).dtype == torch.float32


def test_one_row_stands_at_zero():
    cos, sin = rope_table(1, 3, 8)
    assert torch.equal(cos[:, 1::2], torch.ones(3, 2)) and torch.equal(sin[:, 1::2], torch.zeros(3, 2))
    assert cos[1, 0].item() == pytest.approx(math.cos(ROPE_SPAN / 2), abs=1e-6)


@pytest.mark.parametrize(
    "t, period, values",
    [
        (1000.0, 10000.0, (0.562379, 0.789627, 0.994232, 0.826880, 0.613588, 0.107254)),
        (1.0, 10000.0, (0.540302, 0.597375, 1.0, 0.841471, 0.801962, 0.000107)),
        (500.0, 10000.0, (-0.883849, 0.945946, 0.998557, -0.467772, 0.324325, 0.053705)),
        (0.75, 10000.0, (0.731689, 0.766175, 1.0, 0.681639, 0.642632, 0.000081)),
        (0.75, 10.0, (0.731689, 0.740737, 0.997086, 0.681639, 0.671795, 0.076287)),  # DDT
    ],
)
def test_sinusoid_golden_numbers(t, period, values):
    got = sinusoid(torch.tensor([t]), max_period=period)[0, [0, 1, 127, 128, 129, 255]]
    assert torch.allclose(got, torch.tensor(values), atol=2e-6)


def test_width_must_allow_four_parts():
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_table(2, 2, 10)
    with pytest.raises(ValueError, match="head width must be a multiple of 4, got 10"):
        rope_table(2, 2, 10)


def test_sinusoid_is_float32_whatever_comes_in():
    assert sinusoid(torch.tensor([0.5], dtype=torch.float64)).dtype == torch.float32
    halves = TimeEmbed(8).to(torch.bfloat16)
    assert halves(torch.tensor([0.5])).dtype == torch.bfloat16
