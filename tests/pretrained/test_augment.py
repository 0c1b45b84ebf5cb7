"""Random views: each part does what it says, nothing draws from global state."""

from __future__ import annotations

import math

import pytest
import torch

from ditkit.pretrained import Augment, default_augment

STILL = dict.fromkeys(
    ("rotation", "scale", "shear", "shift", "flip", "contrast", "brightness", "saturation", "grey", "noise"), 0.0
)


def still(**changes) -> Augment:
    return Augment(**STILL | changes)


def images(channels=3, size=9, count=16):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def view(augment: Augment, x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return augment(x, torch.Generator().manual_seed(seed))


def test_all_off_is_the_image():
    torch.testing.assert_close(view(still(), images()), images(), atol=1e-6, rtol=0)


def test_mirror_images():
    torch.testing.assert_close(view(still(flip=1.0), images()), images().flip(3), atol=1e-5, rtol=0)
    share = (view(still(flip=0.5), images(count=400)) - images(count=400)).abs().amax((1, 2, 3)) > 1e-3
    assert 0.4 < share.float().mean() < 0.6


def test_rotation_and_zoom_are_in_range():
    """The linear part of each matrix is a rotation of at most 15 degrees times a zoom of 1 +- 0.15."""
    draws = torch.rand(2000, 12, generator=torch.Generator().manual_seed(0))
    linear = still(rotation=15.0, scale=0.15).matrices(draws)[:, :, :2]
    zoom = torch.linalg.det(linear).sqrt()
    angle = torch.atan2(linear[:, 1, 0], linear[:, 0, 0])
    torch.testing.assert_close(linear @ linear.mT, zoom.square()[:, None, None] * torch.eye(2).expand(2000, 2, 2))
    assert 0.85 <= zoom.min() < 0.86 and 1.14 < zoom.max() <= 1.15
    assert math.radians(14.5) < angle.abs().max() <= math.radians(15) and abs(angle.mean()) < 0.02


def test_a_shift_moves_by_at_most_its_share():
    draws = torch.rand(2000, 12, generator=torch.Generator().manual_seed(0))
    moved = still(shift=0.125).matrices(draws)[:, :, 2] / 2  # [-1, 1] spans the side
    assert 0.12 < moved.abs().max() <= 0.125


def test_a_crop_stays_inside():
    """Corners of the output land inside the image, and the kept area is between 0.25 and 1."""
    draws = torch.rand(2000, 12, generator=torch.Generator().manual_seed(0))
    theta = still(crop=0.25).matrices(draws)
    corners = torch.tensor([[-1.0, -1, 1], [1, 1, 1], [-1, 1, 1], [1, -1, 1]]).T
    assert (theta @ corners).abs().max() <= 1 + 1e-5
    area = torch.linalg.det(theta[:, :, :2])
    assert 0.25 <= area.min() < 0.27 and 0.98 < area.max() <= 1


def test_colour():
    grey = view(still(grey=1.0), images())
    torch.testing.assert_close(grey, images().mean(1, keepdim=True).expand_as(grey), atol=1e-6, rtol=1e-5)
    bright = view(still(brightness=0.2), images()) - images()
    torch.testing.assert_close(bright, bright[:, :1, :1, :1].expand_as(bright), atol=1e-5, rtol=0)
    assert 0.05 < bright.abs().max() <= 0.2
    contrast = view(still(contrast=0.2), images())
    factor = contrast.std((1, 2, 3)) / images().std((1, 2, 3))
    assert 0.8 <= factor.min() < 1 < factor.max() <= 1.2
    torch.testing.assert_close(contrast.mean((1, 2, 3)), images().mean((1, 2, 3)))


def test_noise_has_its_strength():
    assert abs((view(still(noise=0.1), images(size=32)) - images(size=32)).std() - 0.1) < 0.005


@pytest.mark.parametrize("channels", [1, 3])
def test_views_follow_the_generator_only(channels):
    augment = default_augment(channels)
    torch.manual_seed(1)
    one = view(augment, images(channels))
    torch.manual_seed(2)
    assert torch.equal(one, view(augment, images(channels))) and one.isfinite().all()
    assert not torch.equal(one, view(augment, images(channels), seed=1))
