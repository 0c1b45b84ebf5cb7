"""Image preprocessing and posterior sampling against recordings of the published code."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ditkit.pretrained.codec import denormalise, normalise, sample_posterior
from ditkit.pretrained.position import resample_positions
from ditkit.pretrained.preprocess import published_grid
from ditkit.pretrained.vision import FAMILIES

RECORDED = {"dinov2": "dinov2", "clip": "clip", "mocov3": "mocov3", "mae": "mae", "ijepa": "jepa", "dinov1": "dinov1"}
PATCH = {"dinov2": 14, "clip": 14, "ijepa": 14}


def recorded_image(size: int) -> torch.Tensor:
    """value[c, i, j] = (7 i + 13 j + 53 c + (i j) // 5) mod 256, as the recording's JSON says."""
    i, j = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack([(7 * i + 13 * j + 53 * c + (i * j) // 5) % 256 for c in range(3)])[None].byte()


@pytest.mark.parametrize(("kind", "size"), [(k, 256) for k in RECORDED] + [("dinov2", 512)])
def test_preprocessing_equals_the_recording(reference, kind, size):
    recording = reference("repa_preprocess")
    grid = published_grid((size, size))
    patch = PATCH.get(kind, 16)
    pixels = FAMILIES[kind].preprocess(recorded_image(size), (grid[0] * patch, grid[1] * patch))
    name = f"{size}.{RECORDED[kind]}"
    recording.close(f"{name}.shape", torch.tensor(pixels.shape))
    recording.close(f"{name}.sub", pixels[:, :, ::9, ::9])
    recording.close(f"{name}.meanabs", pixels.double().abs().mean())


def test_dinov2_registers_see_what_dinov2_sees():
    assert FAMILIES["dinov2_reg"].preprocess == FAMILIES["dinov2"].preprocess


def test_posterior_equals_the_recording(reference):
    """Theirs is (mean + std noise) scale + bias, ours ((mean + std noise) - shift) scale: shift = -bias / scale."""
    recording = reference("repa_preprocess")
    scale = 0.18215
    shift = tuple(-b / scale for b in (0.0, 0.1, -0.2, 0.3))
    moments, noise = recording.inputs["moments"], recording.inputs["noise"]
    recording.close("posterior", sample_posterior(moments, noise, scale, shift))
    mean = sample_posterior(moments, None, scale, shift)
    assert torch.equal(mean, sample_posterior(moments, torch.zeros_like(noise), scale, shift))
    assert (mean - recording.outputs["posterior"]).abs().max() > 0.01


def test_normalise_and_back():
    latents = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for scale, shift in ((0.5, 0.25), ((0.5, 1.0, 2.0), (0.1, 0.2, -0.3))):
        there = normalise(latents, scale, shift)
        torch.testing.assert_close(denormalise(there, scale, shift), latents)
    torch.testing.assert_close(there[:, 2], (latents[:, 2] + 0.3) * 2.0)


def test_position_tables():
    """The same grid is untouched, cls is kept, a constant stays constant, and antialias makes a difference."""
    table = torch.randn(1, 1 + 37 * 37, 8, generator=torch.Generator().manual_seed(0))
    assert resample_positions(table, (37, 37), prefix=1) is table
    small = resample_positions(table, (16, 16), prefix=1)
    assert small.shape == (1, 257, 8) and torch.equal(small[:, 0], table[:, 0])
    image = table[:, 1:].reshape(1, 37, 37, 8).permute(0, 3, 1, 2)
    plain = F.interpolate(image, size=(16, 16), mode="bicubic").flatten(2).transpose(1, 2)
    assert (small[:, 1:] - plain).abs().max() > 0.1
    assert small[:, 1:].std() < 0.7 * table.std()  # antialias averages neighbours, plain bicubic does not
    constant = torch.full((1, 25, 4), 3.0)
    torch.testing.assert_close(resample_positions(constant, (3, 7)), torch.full((1, 21, 4), 3.0))
    ramp = torch.arange(8.0).view(1, 1, 8, 1).expand(1, 4, 8, 1).reshape(1, 32, 1)  # grows along columns only
    wide = resample_positions(ramp, (4, 16), old_grid=(4, 8)).reshape(4, 16)
    assert torch.allclose(wide[0], wide[3]) and (wide[0].diff() > -1e-4).all()
    with pytest.raises(ValueError, match="old_grid"):
        resample_positions(ramp, (2, 2))
