"""PSNR and SSIM against scikit-image and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ditkit.evaluation.metrics import psnr, ssim

# scikit-image 0.26.0 on the two pairs of `pairs()`:
# structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255,
#                       channel_axis=0) and peak_signal_noise_ratio(a, b, data_range=255)
SSIM = (0.7404197235597468, 0.698327438551202)
PSNR = (23.046432339232744, 21.531503022419486)


def pairs() -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(0)
    base = np.add.outer(np.arange(16), np.arange(20)) * 7 % 256
    a = np.clip(base[None, None] + draws.integers(-20, 21, (2, 3, 16, 20)), 0, 255).astype(np.uint8)
    brighter = np.array([0, 12])[:, None, None, None]
    b = np.clip(a.astype(int) + draws.integers(-30, 31, a.shape) + brighter, 0, 255).astype(np.uint8)
    return a, b


def test_both_recorded():
    a, b = pairs()
    torch.testing.assert_close(ssim(a, b), torch.tensor(SSIM, dtype=torch.float64), rtol=1e-10, atol=0)
    torch.testing.assert_close(psnr(a, b), torch.tensor(PSNR, dtype=torch.float64), rtol=1e-12, atol=0)


def test_equal_symmetric_and_one_image_at_a_time():
    a, b = map(torch.from_numpy, pairs())
    assert ssim(a, a).tolist() == [1.0, 1.0] and psnr(a, a).tolist() == [math.inf, math.inf]
    for score in (psnr, ssim):
        torch.testing.assert_close(score(a, b), score(b, a), rtol=1e-12, atol=0)
        many = score(a.repeat(40, 1, 1, 1), b.repeat(40, 1, 1, 1))
        torch.testing.assert_close(many, score(a, b).repeat(40), rtol=1e-12, atol=0)


def test_closed_forms():
    flat, other = (torch.full((1, 1, 11, 11), v, dtype=torch.uint8) for v in (100, 110))
    assert psnr(flat, other).item() == pytest.approx(20 * math.log10(25.5))
    c1 = 2.55**2
    assert ssim(flat, other).item() == pytest.approx((2 * 100 * 110 + c1) / (100**2 + 110**2 + c1), rel=1e-9)


def test_what_cannot_be_scored_is_refused():
    small = torch.zeros(2, 3, 10, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match="images of 10 x 32 pixels are smaller than its window of 11 x 11"):
        ssim(small, small)
    with pytest.raises(ValueError, match=r"psnr: expected two uint8 batches .* got torch.float32 \(2, 3, 10, 32\)"):
        psnr(small.float(), small)
    with pytest.raises(ValueError, match="of one shape"):
        psnr(small, small[:1])
