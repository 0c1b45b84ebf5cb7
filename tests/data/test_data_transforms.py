"""ADM's crop against sequences of Pillow calls worked out by hand; uint8 and float conversions."""

import numpy as np
import pytest
import torch
from PIL import Image

from ditkit.data import adm_crop, to_float, to_uint8

BOX, BICUBIC = Image.Resampling.BOX, Image.Resampling.BICUBIC


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def same(a, b):
    return a.size == b.size and np.array_equal(np.asarray(a), np.asarray(b))


def test_halves_twice_then_resizes_then_crops():
    # 150x101 -> 75x50 (50 >= 2 * 20: again) -> 37x25; 25 < 40 stops; scale 20 / 25: 30x20 (37 * .8 = 29.6); left 5
    image = noise(150, 101)
    want = image.resize((75, 50), BOX).resize((37, 25), BOX).resize((30, 20), BICUBIC).crop((5, 0, 25, 20))
    assert same(adm_crop(image, (20, 20)), want)


def test_exactly_twice_is_halved():
    image = noise(40, 64)  # 20x32, then scale 1; top (32 - 20) // 2 = 6
    assert same(adm_crop(image, (20, 20)), image.resize((20, 32), BOX).crop((0, 6, 20, 26)))


def test_just_below_twice_is_not_halved():
    image = noise(39, 64)  # scale 20 / 39: 20 x 32.8 -> 33; top 6
    assert same(adm_crop(image, (20, 20)), image.resize((20, 33), BICUBIC).crop((0, 6, 20, 26)))


@pytest.mark.parametrize("wide", [True, False])
def test_long_pictures_are_halved_by_their_short_side(wide):
    image = noise(200, 25) if wide else noise(25, 200)  # scale .8: 160x20, no halving
    want = image.resize((160, 20), BICUBIC).crop((70, 0, 90, 20))
    if not wide:
        want = image.resize((20, 160), BICUBIC).crop((0, 70, 20, 90))
    assert same(adm_crop(image, (20, 20)), want)


def test_small_pictures_grow():
    image = noise(7, 5)  # scale 4: 28x20, left 4
    assert same(adm_crop(image, (20, 20)), image.resize((28, 20), BICUBIC).crop((4, 0, 24, 20)))
    assert adm_crop(noise(1, 1), (20, 20)).size == (20, 20)


def test_right_size_is_untouched():
    image = noise(20, 20)
    assert same(adm_crop(image, (20, 20)), image)


def test_odd_margin_is_rounded_down():
    image = noise(23, 20)
    assert same(adm_crop(image, (20, 20)), image.crop((1, 0, 21, 20)))


def test_height_and_width_may_differ():
    # 10 high, 30 wide. 130x41 -> 65x20 -> 32x10 (65 >= 2 * 30, 20 >= 2 * 10); scale max(30 / 32, 10 / 10) = 1; left 1
    image = noise(130, 41)
    want = image.resize((65, 20), BOX).resize((32, 10), BOX).crop((1, 0, 31, 10))
    assert same(adm_crop(image, (10, 30)), want)


def test_strips_do_not_eat_the_memory():
    with pytest.raises(ValueError, match="elongated"):
        adm_crop(Image.new("RGB", (1, 5000)), (256, 256))


@pytest.mark.parametrize("size", [(8, 8), (3, 17), (31, 30)])
@pytest.mark.parametrize("picture", [(1, 1), (2, 100), (333, 47), (64, 64), (17, 16)])
def test_result_always_has_the_size(size, picture):
    crop = adm_crop(noise(*picture), size)
    assert (crop.height, crop.width) == size


def test_uint8_layout():
    image = noise(4, 3)
    tensor = to_uint8(image, 3)
    assert tensor.shape == (3, 3, 4) and tensor.dtype == torch.uint8 and tensor.is_contiguous()
    assert tensor[:, 2, 1].tolist() == list(image.getpixel((1, 2)))
    grey = to_uint8(image, 1)
    assert grey.shape == (1, 3, 4)
    red, green, blue = image.getpixel((1, 2))
    assert abs(int(grey[0, 2, 1]) - (0.299 * red + 0.587 * green + 0.114 * blue)) <= 0.51


def test_greyscale_to_three_equal_channels():
    tensor = to_uint8(Image.new("L", (2, 2), 77), 3)
    assert tensor.shape == (3, 2, 2) and (tensor == 77).all()


def test_float_range():
    values = to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert values.dtype == torch.float32
    assert torch.allclose(values, torch.tensor([-1.0, -0.6, 1.0]), atol=1e-7)
