"""Spatial structure: planted fields whose similarities are known, regions that are seen, and what must not count."""

import math

import pytest
import torch

from ditkit.analysis.spatial import Pairs, colour_regions, region_score, spatial_structure

GRID = (6, 8)
PLACES = torch.cartesian_prod(torch.arange(6.0), torch.arange(8.0)).double()


def slow(tokens, grid):
    """LDS, CDS and RMSC of one image, pair by pair."""
    n, side = len(tokens), min(grid)
    near, far, points = [], [], []
    for i in range(n):
        for j in range(n):
            if i != j:
                d = math.hypot(i // grid[1] - j // grid[1], i % grid[1] - j % grid[1])
                k = float(tokens[i] @ tokens[j] / tokens[i].norm() / tokens[j].norm())
                (near if d < side / 2 else far).append(k)
                points.append((d / side, k))
    d, k = torch.tensor(points, dtype=torch.float64).T
    slope = ((d - d.mean()) * (k - k.mean())).sum() / ((d - d.mean()) ** 2).sum()
    unit = tokens / tokens.norm(dim=1, keepdim=True)
    return (
        sum(near) / len(near) - sum(far) / len(far),
        -float(slope),
        float((unit - unit.mean(0)).norm(dim=1).pow(2).mean().sqrt()),
    )


def test_against_a_loop_over_pairs():
    tokens = torch.randn(3, 48, 5, generator=torch.Generator().manual_seed(0)) + 0.5
    found = spatial_structure(tokens, GRID)
    for b in range(3):
        want = slow(tokens[b].double(), GRID)
        assert (float(found.lds[b]), float(found.cds[b]), float(found.rmsc[b])) == pytest.approx(want, abs=1e-6)
    assert found.region.isnan().all() and found.profile.shape == (3, Pairs.of(GRID).rings)


def test_a_field_that_turns_with_the_column_has_the_cosine_of_the_distance():
    angle = 0.2 * PLACES[:, 1]
    one_row = torch.stack([angle.cos(), angle.sin()], 1)[None]
    found = spatial_structure(one_row, GRID)
    pairs = Pairs.of(GRID)
    want = (0.2 * (PLACES[pairs.i, 1] - PLACES[pairs.j, 1])).cos()
    near = pairs.distance < 3
    assert float(found.lds) == pytest.approx(float(want[near].mean() - want[~near].mean()), abs=1e-6)
    assert float(found.lds) > 0.2 and float(found.cds) > 0.2
    assert (found.profile[0].diff() < 0).all()


def test_tokens_that_are_all_alike_have_no_structure():
    found = spatial_structure(torch.ones(2, 48, 3) * torch.arange(1.0, 49.0)[:, None], GRID)  # lengths do not count
    for value in (found.lds, found.cds, found.rmsc):
        assert torch.allclose(value, torch.zeros(2, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(found.profile, torch.ones_like(found.profile))


def test_independent_tokens_have_contrast_and_no_order():
    found = spatial_structure(torch.randn(64, 48, 256, generator=torch.Generator().manual_seed(1)), GRID)
    assert abs(float(found.lds.mean())) < 0.003 and abs(float(found.cds.mean())) < 0.003
    assert float(found.rmsc.mean()) == pytest.approx(math.sqrt(1 - 1 / 48), abs=0.003)


def test_order_of_tokens_matters_to_distance_and_not_to_contrast():
    angle = 0.2 * PLACES[:, 1]
    tokens = torch.stack([angle.cos(), angle.sin()], 1)[None]
    shuffled = tokens[:, torch.randperm(48, generator=torch.Generator().manual_seed(2))]
    a, b = spatial_structure(tokens, GRID), spatial_structure(shuffled, GRID)
    assert float(a.lds) > 3 * abs(float(b.lds)) and float(a.rmsc) == pytest.approx(float(b.rmsc), abs=1e-6)


def test_turning_and_scaling_the_space_change_nothing_and_batches_do_not_either(monkeypatch):
    tokens = torch.randn(5, 48, 6, generator=torch.Generator().manual_seed(3)) + 1
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(4)))[0]
    a, b = spatial_structure(tokens, GRID), spatial_structure(3 * tokens @ turn, GRID)
    assert torch.allclose(a.lds, b.lds, atol=1e-6) and torch.allclose(a.cds, b.cds, atol=1e-6)
    monkeypatch.setattr("ditkit.analysis.spatial.AT_ONCE", 1)
    assert torch.allclose(a.profile, spatial_structure(tokens, GRID).profile)


def test_region_score_sees_regions_and_not_closeness():
    pairs = Pairs.of(GRID)
    regions = (PLACES[:, 1] >= 4)[None]
    same = regions[:, pairs.i] == regions[:, pairs.j]
    assert float(region_score(same.double(), regions, pairs)) == pytest.approx(1)
    close = (-pairs.distance.round())[None]  # a function of the whole distance alone
    assert float(region_score(close, regions, pairs)) == pytest.approx(0, abs=1e-12)
    assert region_score(close, torch.zeros_like(regions), pairs).isnan().all()
    tokens = torch.nn.functional.one_hot(regions.long(), 2).float()
    found = spatial_structure(tokens, GRID, regions)
    assert float(found.region) == pytest.approx(1)


def test_regions_are_those_of_the_colours():
    images = torch.full((3, 3, 24, 32), 40, dtype=torch.uint8)
    images[0, :, 8:16, 8:24] = 200  # a bright block
    images[1, 0, :, :16] = 90  # the left half is redder
    found = colour_regions(images, GRID)
    inside = (PLACES[:, 0] >= 2) & (PLACES[:, 0] < 4) & (PLACES[:, 1] >= 2) & (PLACES[:, 1] < 6)
    for got, want in ((found[0], inside), (found[1], PLACES[:, 1] < 4)):
        assert torch.equal(got, want) or torch.equal(~got, want)
    assert not found[2].any()


def test_refusals():
    with pytest.raises(ValueError, match="do not fill a grid of 6 x 8"):
        spatial_structure(torch.ones(2, 47, 3), GRID)
    for grid in ((1, 6), (2, 3)):
        with pytest.raises(ValueError, match="3 x 3 tokens at least"):
            spatial_structure(torch.ones(2, 6, 3), grid)
