"""Principal colours: planted directions come out in order, with their shares and signs, whatever the rotation."""

import pytest
import torch

from ditkit.analysis.components import principal_colours


def planted(turn=None, seed=0):
    """(B, N, 12) tokens with three independent signals of variances 9, 4, 1; and the signals."""
    g = torch.Generator().manual_seed(seed)
    signals = torch.randn(4, 50, 3, generator=g, dtype=torch.float64)
    signals = signals.flatten(0, 1)
    signals = torch.linalg.qr(signals - signals.mean(0))[0] * len(signals) ** 0.5  # uncorrelated, variance 1
    tokens = torch.cat([signals * torch.tensor([3.0, 2.0, 1.0]), torch.zeros(200, 9)], 1) + 5
    tokens = tokens if turn is None else tokens @ turn
    return tokens.unflatten(0, (4, 50)), signals.unflatten(0, (4, 50))


def test_planted_signals_are_the_colours():
    tokens, signals = planted()
    colours, shares = principal_colours(tokens)
    assert shares == pytest.approx([9 / 14, 4 / 14, 1 / 14]) and colours.shape == (4, 50, 3)
    assert colours.min() == 0 and colours.max() == 1
    for i in range(3):
        inner = (colours[..., i] > 0) & (colours[..., i] < 1)
        pair = torch.stack([colours[..., i][inner], signals[..., i][inner]])
        assert float(torch.corrcoef(pair)[0, 1]) == pytest.approx(1), "as it is, with a positive sign"
        assert float((~inner).double().mean()) <= 0.03


def test_a_turned_space_shows_the_same_picture_but_for_signs():
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    (a, shares), (b, turned) = principal_colours(planted()[0]), principal_colours(planted(turn)[0])
    assert turned == pytest.approx(shares)
    for i in range(3):
        assert torch.allclose(a[..., i], b[..., i]) or torch.allclose(a[..., i], 1 - b[..., i])


def test_the_sign_is_that_of_the_largest_weight():
    tokens, _ = planted()
    assert torch.allclose(principal_colours(tokens)[0], principal_colours(10 - tokens)[0].mul(-1).add(1))


def test_missing_components_are_grey_and_too_few_channels_are_told():
    tokens = torch.zeros(2, 8, 4)
    tokens[..., 0] = torch.arange(8.0)
    colours, shares = principal_colours(tokens)
    assert shares == pytest.approx([1, 0, 0]) and (colours[..., 1:] == 0.5).all()
    assert (principal_colours(torch.ones(1, 4, 3))[0] == 0.5).all()
    with pytest.raises(ValueError, match="D of 3 or more"):
        principal_colours(torch.ones(1, 4, 2))
