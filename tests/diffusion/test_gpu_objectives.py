"""On a CUDA device: tables, densities and losses are those of the CPU."""

import pytest
import torch

from ditkit.diffusion import DDPM, EDM, VP, BatchNoise, Cosine, EDMLogNormal, Flow, ImprovedDDPM, LogitNormal, Mode
from ditkit.protocols import Condition, Output

OBJECTIVES = [
    Flow(density=LogitNormal()),
    Flow(path=Cosine(), density=Mode()),
    Flow(path=VP(), prediction="noise"),
    Flow(path=EDM(), prediction="edm", density=EDMLogNormal()),
    Flow(path=DDPM(), prediction="velocity"),
    ImprovedDDPM(),
    ImprovedDDPM(path=DDPM().respace(50), loss="rescaled_kl"),
]


class Model:
    """A network without parameters: twice or once the channels of a fixed function of its input."""

    def __init__(self, doubled):
        self.doubled = doubled

    def __call__(self, x, t, cond, *, capture=()):
        value = torch.tanh(x + t.view(-1, 1, 1, 1) + cond.label.view(-1, 1, 1, 1))
        return Output(torch.cat([value, value], 1) if self.doubled else value)

    def null(self, cond):
        return Condition(label=torch.full_like(cond.label, 3))


@pytest.mark.gpu
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_losses_on_cuda_are_those_of_the_cpu(objective):
    generator = torch.Generator().manual_seed(0)
    x, label = torch.randn(8, 2, 4, 4, generator=generator), torch.arange(8) % 3
    model = Model(objective.kind == "improved_ddpm")
    on_cpu = objective(model, x, Condition(label=label), BatchNoise(0, 0, 8))
    on_gpu = objective(model, x.cuda(), Condition(label=label.cuda()), BatchNoise(0, 0, 8, device="cuda"))
    assert on_gpu.total.is_cuda and torch.allclose(on_gpu.t.cpu(), on_cpu.t, rtol=1e-6)
    for name, value in on_cpu.terms.items():
        assert torch.allclose(on_gpu.terms[name].cpu(), value, rtol=1e-4, atol=1e-5), name
