"""The switches for speed: what is turned on, what is refused, and which layers float8 may touch."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from ditkit.models import Condition, build_model, ddt_settings, dit_settings
from ditkit.training import TrainSettings
from ditkit.training.precision import compile_blocks, float8_layers, has_bf16_products, hasten, to_float8

TINY = {"depth": 2, "width": 32, "heads": 2, "size": (4, 4)}


def tiny() -> nn.Module:
    return build_model(dit_settings("S/2").model_copy(update=TINY))


def settings(**changes) -> TrainSettings:
    return TrainSettings(steps=1, batch=1, **changes)


def test_nothing_is_turned_on_unasked():
    model = tiny()
    assert hasten(model, settings()) == []
    assert all(block._compiled_call_impl is None for block in model.blocks)


def test_a_compile_mode_reaches_the_compiler(monkeypatch):
    seen = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: seen.append(options))
    lines = hasten(tiny(), settings(compile=True, compile_mode="max-autotune"))
    assert lines == ["compiling 2 blocks with inductor (max-autotune)"]
    assert seen == [{"backend": "inductor", "mode": "max-autotune"}] * 2
    assert hasten(tiny(), settings(compile=True)) == ["compiling 2 blocks with inductor"]
    assert seen[2:] == [{"backend": "inductor"}] * 2


def test_a_mode_of_another_backend_is_refused():
    with pytest.raises(ValueError, match=r"compile_mode=reduce-overhead belongs to the inductor, not to .*aot_eager"):
        compile_blocks(tiny(), "aot_eager", "reduce-overhead")


def test_compiled_blocks_give_the_same_gradients():
    """Per block and in place, as a run does it; by the graph of forward and backward without the inductor's kernels."""
    x, t = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.2, 0.8])
    found = []
    for compiled in (False, True):
        model = build_model(dit_settings("S/2").model_copy(update=TINY), generator=torch.Generator().manual_seed(1))
        generator = torch.Generator().manual_seed(2)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.05, generator=generator)
        if compiled:
            hasten(model, settings(compile=True, backend="aot_eager"))
        model(x, t, Condition(label=torch.tensor([1, 2]))).sample.square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    for plain, graph in zip(*found, strict=True):
        torch.testing.assert_close(plain, graph, rtol=1e-5, atol=1e-7)


def test_float8_needs_a_device_that_has_it():
    with pytest.raises(ValueError, match="cpu has no float8 matrix products"):
        to_float8(tiny())
    with pytest.raises(ValueError, match="cpu has no float8"):
        hasten(tiny(), settings(float8=True))


def test_float8_without_torchao_is_one_line(monkeypatch):
    class Elsewhere:
        type = "cuda"

    class Pretender(nn.Module):
        def parameters(self, recurse=True):
            yield type("P", (), {"device": Elsewhere()})()

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(ValueError, match=r"training\.float8 needs torchao: pip install torchao") as caught:
        to_float8(Pretender())
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    with pytest.raises(ValueError, match="NVIDIA A100 has no float8"):
        to_float8(Pretender())


@pytest.mark.parametrize("made", [dit_settings("B/2"), ddt_settings("B/2")])
def test_float8_touches_token_wise_layers_of_blocks_alone(made):
    with torch.device("meta"):
        model = build_model(made)
    chosen = float8_layers(model)
    assert chosen and all(isinstance(model.get_submodule(name), nn.Linear) for name in chosen)
    assert any(name.endswith("attention.qkv") for name in chosen)
    words = {word for name in chosen for word in name.split(".")}
    assert not {"modulation", "time", "label", "final", "embed"} & words, words
    odd = build_model(dit_settings("S/2").model_copy(update={**TINY, "width": 40}))
    sizes = {(odd.get_submodule(name).in_features, odd.get_submodule(name).out_features) for name in float8_layers(odd)}
    assert not any(a % 16 or b % 16 for a, b in sizes)


def test_bf16_units_are_asked_of_the_processor():
    assert isinstance(has_bf16_products(torch.device("cpu")), bool)
    assert has_bf16_products(torch.device("meta")), "only processors are asked"


@pytest.mark.gpu
def test_float8_trains(tmp_path):
    pytest.importorskip("torchao")
    model = build_model(dit_settings("S/2").model_copy(update={"depth": 2})).cuda()
    names = set(model.state_dict())
    assert hasten(model, settings(float8=True))[0].startswith("float8: the matrix products of")
    assert set(model.state_dict()) == names


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"parallel": {"shards": 2}}, "shards: of parallel.kind=fsdp"),
        ({"parallel": {"reshard": False, "reduce": "bf16"}}, "reshard, reduce: of parallel.kind=fsdp"),
        ({"parallel": {"kind": "fsdp", "reduce": "bf16"}}, "parallel.reduce=bf16 needs precision=bf16"),
        ({"ema_snapshots": 5}, "ema_snapshots=5 stores averages of ema_power"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(given, says):
    with pytest.raises(ValueError, match=says):
        settings(**given)
