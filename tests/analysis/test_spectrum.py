"""Spectra: Parseval, a planted wave in its own ring, white noise flat, and shares of what was planted."""

import math

import pytest
import torch

from ditkit.analysis.ratio import Ratio
from ditkit.analysis.spectrum import centroid, high_share, on_grid, power, radial, radii, white

SIZES = [(16, 16), (12, 20), (4, 4), (7, 5)]


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wave(rows, columns, height=16, width=16, phase=0.3):
    """cos of so many cycles over the height and over the width, (1, 1, h, w)."""
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    return (2 * math.pi * (rows * y / height + columns * x / width) + phase).cos()[None, None]


@pytest.mark.parametrize("size", SIZES)
def test_parseval(size):
    x = noise(3, 2, *size)
    want = x.square().sum((2, 3)).mean(1)
    assert torch.allclose(power(x).sum((1, 2)), want, rtol=1e-12)
    found = radial(power(x)[0])
    assert float((found.power * found.count).sum()) == pytest.approx(float(want[0]), rel=1e-12)
    assert int(found.count.sum()) == size[0] * size[1] and float(found.frequency[0]) == 0


@pytest.mark.parametrize(("rows", "columns"), [(0, 3), (5, 0), (4, 3), (-2, 6)])
def test_a_planted_wave_is_found_in_its_ring(rows, columns):
    powers = power(wave(rows, columns))
    found = radial(powers[0])
    ring = round(math.hypot(rows, columns))
    share = found.power * found.count / (found.power * found.count).sum()
    assert int(share.argmax()) == ring and float(share[ring]) == pytest.approx(1, abs=1e-12)
    frequency = math.hypot(rows, columns) / 8
    assert centroid(powers).value == pytest.approx(frequency, abs=1e-9)
    assert high_share(powers).value == pytest.approx(float(frequency > 0.5), abs=1e-12)


def test_the_mean_is_left_out_and_amplitudes_count_squared():
    x = 100 + 2 * wave(1, 0) + wave(0, 7)
    assert high_share(power(x)).value == pytest.approx(1 / 5)
    assert centroid(power(x)).value == pytest.approx(4 / 5 / 8 + 7 / 8 / 5)
    assert Ratio.of(torch.tensor([0.0]), torch.tensor([0.0])) == Ratio(0.0, None), "a constant map has no power"


@pytest.mark.parametrize("size", [(16, 16), (8, 12)])
def test_white_noise_is_flat(size):
    powers = power(noise(400, 2, *size, seed=1))
    found = radial(powers.mean(0))
    assert ((found.power - 1).abs() < 5 * (2 / (800 * found.count)).sqrt()).all()  # 800 maps of real numbers
    share, mean = white(*size)
    for got, want in ((high_share(powers), share), (centroid(powers), mean)):
        assert abs(got.value - want) < 4 * got.error and got.error < 0.01
    assert share == pytest.approx(float((radii(*size) > 0.5).double().sum() / (size[0] * size[1] - 1)), abs=0.05)


def test_the_standard_error_is_that_of_repetition():
    share = [high_share(power(noise(20, 1, 8, 8, seed=s))) for s in range(300)]
    spread = torch.tensor([r.value for r in share]).std()
    assert float(torch.tensor([r.error for r in share]).mean()) == pytest.approx(float(spread), rel=0.15)


def test_tokens_are_laid_row_by_row():
    x = noise(2, 3, 4, 6)
    assert torch.equal(on_grid(x.flatten(2).mT, (4, 6)), x)


def test_what_each_sample_has_in_a_ratio():
    a, b = torch.tensor([1.0, 2.0, 6.0]).double(), torch.tensor([2.0, 2.0, 5.0]).double()
    whole = Ratio.of(a, b)
    assert whole.value == 1 and float(whole.each.mean()) == pytest.approx(1)
    assert whole.error == pytest.approx(float(whole.each.std()) / 3**0.5)
    assert Ratio.of(a, 0 * b).each.tolist() == [0, 0, 0]
