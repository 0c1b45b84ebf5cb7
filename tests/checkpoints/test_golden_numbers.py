"""Golden outputs of the official code under a fill rule that needs no stored weights."""

import pytest
import torch

from ditkit.align import Projector
from ditkit.checkpoints import export_published, load_published
from ditkit.models import Condition, DiT, DiTSettings

TIMES = {"dit": (999.0, 0.0), "sit": (-1.0, 1.0), "repa": (1.0, 0.0)}


def _filled(source, variance):
    """Official keys, sorted without pos_embed; tensor i gets 0.05 sin(0.1 k + i)."""
    scale, offset = TIMES[source]
    settings = DiTSettings(
        depth=2, width=64, heads=4, size=(8, 8), variance=variance, time_scale=scale, time_offset=offset
    )
    projectors = torch.nn.ModuleList([Projector(64, 32, 48)]) if source == "repa" else None
    state = export_published(DiT(settings), source, projectors)
    for i, key in enumerate(sorted(state.keys() - {"pos_embed"})):
        k = torch.arange(state[key].numel(), dtype=torch.float64)
        state[key] = (0.05 * torch.sin(0.1 * k + i)).float().view(state[key].shape)
    extra = {"align_depth": 1} if source == "repa" else {}
    return load_published(state, source, heads=4, **extra)


def _x():
    return torch.sin(0.05 * torch.arange(2 * 4 * 8 * 8, dtype=torch.float64)).float().view(2, 4, 8, 8)


def _agrees(got, total, mean_abs, first, last):
    got = got.detach().double()
    assert got.sum().item() == pytest.approx(total, abs=5e-5)
    assert got.abs().mean().item() == pytest.approx(mean_abs, abs=2e-6)
    assert torch.allclose(got.flatten()[:4], torch.tensor(first, dtype=torch.float64), atol=2e-6)
    assert torch.allclose(got.flatten()[-2:], torch.tensor(last, dtype=torch.float64), atol=2e-6)


Y = Condition(label=torch.tensor([3, 1000]))


def test_dit():
    model = _filled("dit", "learned").model
    out = model(_x(), torch.tensor([0.0, 500.0]) / 999, Y).sample
    _agrees(out, -92.732717, 0.168167, (0.072342, -0.029211, -0.082654, -0.253750), (-0.095453, 0.071676))


def test_dit_with_guidance_on_three_channels():
    model = _filled("dit", "learned").model
    x, t = torch.cat([_x(), _x()]), torch.tensor([0.0, 500.0, 0.0, 500.0]) / 999
    out = model(x, t, Condition(label=torch.tensor([3, 5, 1000, 1000]))).sample
    cond, null = out[:, :3].chunk(2)
    guided = null + 1.5 * (cond - null)
    both = torch.cat([torch.cat([guided, guided]), out[:, 3:]], dim=1)
    _agrees(both, -134.859703, 0.186114, (0.137589, 0.062113, -0.013116, -0.164052), (-0.095452, 0.071676))


def test_sit():
    model = _filled("sit", "dropped").model
    out = -model(_x(), 1 - torch.tensor([0.25, 0.75]), Y).sample
    _agrees(out, -50.511908, 0.169199, (0.072918, -0.029064, -0.081859, -0.253270), (-0.162576, 0.022471))


def test_repa():
    published = _filled("repa", "none")
    out = published.model(_x(), torch.tensor([0.25, 0.75]), Y, capture=(1,))
    _agrees(out.sample, -61.773863, 0.201694, (0.029190, -0.013616, -0.129142, -0.230303), (-0.223339, -0.208991))
    projected = published.projectors[0](out.hidden[1])
    _agrees(projected, -31.441705, 0.035304, (-0.023153, 0.008665, 0.040411, 0.005146), (-0.050654, 0.002378))
