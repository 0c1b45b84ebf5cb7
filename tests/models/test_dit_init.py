"""The published initialisation, tensor by tensor, against statistics recorded from the official code."""

import math

import pytest
import torch

from ditkit.align import Projector
from ditkit.checkpoints import export_published
from ditkit.models import Condition, DiT, DiTSettings, build_model

FAMILIES = {
    "dit": ("dit", {"variance": "learned", "time_scale": 999.0}),
    "sit": ("sit", {"variance": "dropped", "time_scale": -1.0, "time_offset": 1.0}),
    "repa_sit": ("repa", {"qk_norm": "layer"}),
}


def _tiny(generator=None, **overrides):
    base = {"depth": 2, "width": 192, "heads": 6, "size": (16, 16), "num_classes": 100}
    return DiT(DiTSettings(**{**base, **overrides}), generator=generator)


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_statistics(reference, family):
    case = reference("init_stats")
    source, overrides = FAMILIES[family]
    generator = torch.Generator().manual_seed(1234)
    model = _tiny(generator, **overrides)
    projectors = None
    if source == "repa":
        projectors = torch.nn.ModuleList([Projector(192, 96, 256, generator=generator)])
    state, recorded = export_published(model, source, projectors), case.meta["info"][family]
    assert state.keys() == recorded.keys()
    for key, want in recorded.items():
        got = state[key].double()
        assert list(got.shape) == want["shape"], key
        if "constant" in want:
            assert torch.equal(got, torch.full_like(got, want["constant"])), key
        elif got.numel() > 500:
            assert got.std().item() == pytest.approx(want["std"], rel=0.1), key
            assert got.mean().item() == pytest.approx(
                want["mean"], abs=4 * want["std"] / math.sqrt(got.numel()) + 0.002
            )
            if want.get("looks_like") == "xavier_uniform":  # bounded: the largest value comes close to the bound
                assert got.abs().max().item() == pytest.approx(max(want["max"], -want["min"]), rel=0.02), key


def test_fused_qkv_has_the_smaller_bound():
    model = _tiny()
    bound = math.sqrt(6 / (192 + 3 * 192))
    largest = model.blocks[0].attention.qkv.weight.abs().max().item()
    assert 0.99 * bound < largest <= bound


@pytest.mark.parametrize("conditioning", ["adaln_zero", "adaln", "cross_attention", "in_context"])
def test_output_is_zero_at_the_start(conditioning):
    model = _tiny(conditioning=conditioning)
    out = model(torch.randn(2, 4, 16, 16), torch.tensor([0.1, 0.9]), Condition(label=torch.tensor([0, 100])))
    assert torch.equal(out.sample, torch.zeros(2, 4, 16, 16))


def test_adaln_zero_blocks_start_as_the_identity():
    model = _tiny()
    h, c = torch.randn(2, 64, 192), torch.randn(2, 192)
    assert torch.equal(model.blocks[0](h, c, c[:, None]), h)


def test_the_generator_decides():
    first, second, other = (
        build_model(
            DiTSettings(depth=1, width=32, heads=2, size=(8, 8)), generator=torch.Generator().manual_seed(seed)
        ).state_dict()
        for seed in (3, 3, 4)
    )
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["blocks.0.mlp.fc1.weight"], other["blocks.0.mlp.fc1.weight"])


def test_position_table_is_frozen_but_stored():
    model = _tiny()
    assert "position" in model.state_dict() and "position" not in dict(model.named_parameters())
