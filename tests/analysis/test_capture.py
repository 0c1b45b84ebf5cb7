"""Mean tokens of blocks: of every network, with the null condition, for any batch size, leaving the network alone."""

from __future__ import annotations

import pytest
import torch

from ditkit.analysis.capture import token_means
from ditkit.diffusion import EDM, Linear
from ditkit.models import (
    CrossDiTSettings,
    DDTSettings,
    DiTSettings,
    JointDiTSettings,
    MMDiTSettings,
    UViTSettings,
    build_model,
    example_condition,
)
from ditkit.protocols import Condition

SMALL = {"width": 24, "heads": 2, "patch": 2, "channels": 3, "size": (8, 8)}
TEXT = {"text_width": 10, "pooled_width": 6, "text_length": 5}
NETWORKS = {
    "dit": DiTSettings(depth=3, num_classes=4, **SMALL),
    "unlabelled": DiTSettings(depth=3, num_classes=0, **SMALL),
    "in_context": DiTSettings(depth=3, num_classes=4, conditioning="in_context", **SMALL),
    "ddt": DDTSettings(encoder_blocks=2, decoder_blocks=1, num_classes=4, **SMALL),
    "mmdit": MMDiTSettings(depth=3, **SMALL, **TEXT),
    "joint_dit": JointDiTSettings(depth=3, **SMALL, **TEXT),
    "cross_dit": CrossDiTSettings(depth=3, **SMALL, **TEXT),
    "uvit": UViTSettings(depth=3, levels=(8,), level_blocks=1, **{**SMALL, "patch": 1}, **TEXT),
}
LINEAR = Linear()


def network(name: str):
    """A network whose blocks do something: their modulations start at 0."""
    generator = torch.Generator().manual_seed(0)
    model = build_model(NETWORKS[name], generator=generator)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model


def draw(n: int):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def conditions(name: str, n: int) -> Condition:
    """Conditions that are not null."""
    cond = example_condition(NETWORKS[name], n)
    given = {key: v + torch.arange(n).view(-1, *[1] * (v.ndim - 1)).to(v) % 4 for key, v in cond.tensors.items()}
    return Condition(**given)


@pytest.mark.parametrize("name", NETWORKS)
def test_tokens_of_the_null_condition_are_averaged(name):
    model, x, cond = network(name), draw(7), conditions(name, 7)
    found = token_means(model, x, 0.3, cond, (1, 3), path=LINEAR, batch=3)
    model.eval()
    with torch.no_grad():
        hidden = model(x, torch.full((7,), 0.3), model.null(cond), capture=(1, 3)).hidden
    assert found.keys() == {1, 3}
    for block, means in found.items():
        assert means.dtype == torch.float32 and means.shape == (7, 24)
        assert torch.allclose(means, hidden[block].mean(1), atol=1e-5)
    assert (found[1] - found[3]).abs().max() > 1e-2
    alone = token_means(model, x, 0.3, cond.index(torch.tensor([0])), (1, 3), path=LINEAR, batch=7)
    assert all(torch.allclose(alone[b], found[b], atol=1e-5) for b in found)


def test_the_network_is_left_as_it_was():
    model = network("dit").train()
    model.blocks[1].eval()
    before = [m.training for m in model.modules()]
    counted = []
    found = token_means(
        model, draw(5), 0.5, conditions("dit", 5), (2,), path=LINEAR, batch=2, progress=lambda *n: counted.append(n)
    )
    assert [m.training for m in model.modules()] == before and not found[2].requires_grad
    assert counted == [(2, 5), (4, 5), (5, 5)] and all(p.grad is None for p in model.parameters())
    with pytest.raises(ValueError, match="names no block"):
        token_means(model, draw(5), 0.5, conditions("dit", 5), (4,), path=LINEAR)
    assert [m.training for m in model.modules()] == before


def test_the_edm_path_scales_what_the_network_sees():
    model, path = network("dit"), EDM()
    t = torch.tensor(0.7)
    spread = torch.sqrt(path.sigma(t) ** 2 + path.sigma_data**2)
    x, cond = draw(4) * spread, conditions("dit", 4)
    found = token_means(model, x, 0.7, cond, (2,), path=path)
    assert torch.allclose(found[2], token_means(model, x / spread, 0.7, cond, (2,), path=LINEAR)[2], atol=1e-5)
