"""The variational bound of a whole chain, through a network (its numbers: test_losses.py)."""

import pytest
import torch

from ditkit.diffusion import DDPM, Denoise, bits_per_dimension
from ditkit.protocols import Output


class Scaled(torch.nn.Module):
    """Answers with its input, stretched by the time, as many times as it has output channels."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    def forward(self, x, t, cond, *, capture=()):
        assert t.shape == (len(x),) and t.dtype == torch.float32
        return Output((x * (1 + t.view(-1, 1, 1, 1)) / 2).repeat(1, self.times, 1, 1))


@pytest.mark.parametrize("variance", ["learned_range", "fixed_large", "fixed_small"])
def test_the_bound_of_a_batch_is_that_of_each_image(variance):
    path = DDPM().respace(3)
    x = torch.linspace(-0.9, 0.9, 96).view(3, 2, 4, 4)
    draws = torch.randn(3, 3, 2, 4, 4, generator=torch.Generator().manual_seed(1))

    def bound(rows):
        model = Scaled(2 if variance == "learned_range" else 1)
        denoise = Denoise(model, None, path=path, prediction="noise")
        found = bits_per_dimension(denoise, path, x[rows], lambda step: draws[step, rows], variance=variance)
        assert [round(999 * t) for _, t in denoise.calls] == [999, 500, 0]
        return found

    whole = bound([0, 1, 2])
    assert whole.vb.shape == (3, 3) and whole.total.isfinite().all()
    for row in range(3):
        for alone, together in zip(bound([row]), whole, strict=True):
            torch.testing.assert_close(alone[0], together[row])
