"""The random network as a space: always the same, sees where things are, and depends on its seed alone."""

from __future__ import annotations

import torch

from ditkit.evaluation.random_features import CELLS, RandomFeatures


def pictures(n: int = 6, channels: int = 1, side: int = 8) -> torch.Tensor:
    """uint8 (n, channels, side, side)."""
    drawn = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, channels, side, side), generator=drawn, dtype=torch.uint8)


def test_shapes_for_grey_and_colour_and_any_size():
    for channels, side in ((1, 8), (3, 32)):
        space = RandomFeatures(channels, width=5)
        found = space(pictures(channels=channels, side=side))
        assert found.tokens.shape == (6, CELLS**2, 5) and found.pooled.shape == (6, space.width) == (6, 20)
        assert found.grid == (CELLS, CELLS) and torch.equal(found.pooled, found.tokens.flatten(1))
        assert torch.isfinite(found.pooled).all() and not found.pooled.requires_grad


def test_the_same_seed_is_the_same_network_whatever_was_drawn_before():
    one = RandomFeatures(1)(pictures()).pooled
    torch.rand(7)
    again, other = RandomFeatures(1), RandomFeatures(1, seed=1)
    assert torch.equal(again(pictures()).pooled, one)
    assert not torch.allclose(other(pictures()).pooled, one) and other.id != again.id != RandomFeatures(3).id


def test_an_image_has_its_features_whatever_stands_beside_it():
    space, images = RandomFeatures(1), pictures()
    torch.testing.assert_close(space(images[2:3]).pooled[0], space(images).pooled[2])


def test_it_sees_level_and_place():
    space = RandomFeatures(1)
    flat = torch.stack([torch.full((1, 8, 8), level, dtype=torch.uint8) for level in (0, 128, 255)])
    dark, grey, bright = space(flat).pooled
    assert min((dark - grey).norm(), (grey - bright).norm()) > 0.1
    spot = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    spot[..., :3, :3] = 255
    here, there = space(torch.cat([spot, spot.flip(-1, -2)])).pooled
    assert (here - there).norm() > 0.1
