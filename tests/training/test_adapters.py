"""LoRA on our models: targets, counts, seeds, the reference with the adapter off, merging, files, diffusers' layout."""

from __future__ import annotations

import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from ditkit.checkpoints import export_published
from ditkit.checkpoints.diffusers_sd3 import transformer_config
from ditkit.models import build_model, ddt_settings, dit_settings, example_condition, mmdit_settings
from ditkit.protocols import Condition
from ditkit.training import (
    AdapterSettings,
    CheckpointError,
    Ema,
    adapter_off,
    add_adapter,
    load_adapter,
    merge,
    save_adapter,
    save_diffusers,
)
from ditkit.training.adapter_files import to_diffusers
from ditkit.training.adapters import adapter_layers, adapter_tensors, target_names

TEXT = {"channels": 4, "size": (8, 8), "text_width": 24, "pooled_width": 12, "text_length": 5}
MODELS = {
    "mmdit": mmdit_settings(2, width=32, heads=2, dual=(1,), qk_norm="rms", **TEXT),
    "mmdit-3": mmdit_settings(2, width=32, heads=2, sets=3, text_split=2, **TEXT),
    "dit": dit_settings("S/2", depth=2, width=32, heads=2, size=(8, 8), num_classes=3),
    "ddt": ddt_settings("B/2", width=32, heads=2, encoder_blocks=2, decoder_blocks=1, size=(8, 8), num_classes=3),
}


def randomised(settings, seed=0):
    model = build_model(settings)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return model


def answer(model, settings, seed=1):
    g = torch.Generator().manual_seed(seed)
    cond = example_condition(settings, 2)
    drawn = {k: torch.randn(v.shape, generator=g) for k, v in cond.tensors.items() if v.is_floating_point()}
    x = torch.randn(2, settings.channels, *settings.size, generator=g)
    with torch.no_grad():
        return model(x, torch.tensor([0.3, 0.7]), type(cond)(**{**cond.tensors, **drawn})).sample


def trained(model, seed=5):
    """The adapter as if it had been trained: B is no longer 0."""
    generator = torch.Generator().manual_seed(seed)
    for value in adapter_tensors(model).values():
        value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return model


@pytest.mark.parametrize(("depth", "count"), [(24, 213_909_504), (38, 539_164_672)])
def test_rank_128_on_all_linear_layers_of_sd3_has_the_published_size(depth, count):
    with torch.device("meta"):
        model = build_model(mmdit_settings(depth))
    adapter = add_adapter(model, AdapterSettings())
    assert adapter.parameters == count == ((depth - 1) * 46 + 30) * 64 * depth * 128
    assert adapter.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert len(adapter.targets) == depth * 10 - 3 and f"{count:,} parameters" in adapter.describe()


@pytest.mark.parametrize("name", MODELS)
def test_a_new_adapter_changes_nothing_and_a_trained_one_can_be_turned_off_and_merged(name):
    settings = MODELS[name]
    model = randomised(settings).requires_grad_(False)  # the flag chooses matrix products: see frozen_copy
    before, state = answer(model, settings), {k: v.clone() for k, v in model.state_dict().items()}
    add_adapter(model, AdapterSettings(rank=3, alpha=6), torch.Generator().manual_seed(0))
    assert torch.equal(answer(model, settings), before)
    trained(model)
    tuned = answer(model, settings)
    assert (tuned - before).abs().max() > 1e-3
    flags = [p.requires_grad for p in model.parameters()]
    with adapter_off(model) as base:
        assert torch.equal(answer(base, settings), before)
    assert torch.equal(answer(model, settings), tuned) and flags == [p.requires_grad for p in model.parameters()]
    merged = merge(model)
    assert torch.allclose(answer(merged, settings), tuned, atol=1e-5, rtol=1e-4)
    assert merged is model and not adapter_layers(model) and model.state_dict().keys() == state.keys()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, state[k])}
    assert changed == {f"{n}.weight" for n in target_names(model)}


def test_the_adapter_is_drawn_from_the_generator_and_from_nothing_else():
    def drawn(seed):
        model = build_model(MODELS["dit"])
        torch.manual_seed(99)
        add_adapter(model, AdapterSettings(rank=16), torch.Generator().manual_seed(seed))
        return adapter_tensors(model), torch.rand(())

    (a, after), (b, _), (c, _) = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(a[k], b[k]) for k in a)
    downs = [k for k in a if k.endswith("lora_A.weight")]
    assert all(not torch.equal(a[k], c[k]) for k in downs)
    assert not any(bool(a[k].any()) for k in a if k not in downs)
    every = torch.cat([a[k].flatten() for k in downs])
    assert every.std() == pytest.approx(1 / 16, rel=0.05), "N(0, 1 / rank^2)"
    torch.manual_seed(99)
    assert torch.equal(after, torch.rand(())), "torch's global generator was used"


def test_targets_are_those_asked_for():
    model = build_model(MODELS["mmdit"])
    attention = target_names(model, "attention")
    assert set(attention) < set(target_names(model)) and all(".attention" in name for name in attention)
    assert len(attention) == 2 + 4 + 3, "second attention of block 1; four and three projections of the joint ones"
    assert target_names(model, ("image.mlp.fc1",)) == [f"blocks.{i}.image.mlp.fc1" for i in range(2)]
    assert target_names(model, ("final.linear", "time.mlp.0")) == ["time.mlp.0", "final.linear"]
    with pytest.raises(ValueError, match=r"adapter\.targets: no Linear layer's name ends in 'to_q'; there are .*qkv"):
        target_names(model, ("qkv", "to_q"))
    with pytest.raises(ValueError, match="this model has no such layers"):
        target_names(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_a_model_takes_one_adapter_and_adapter_off_needs_one():
    model = build_model(MODELS["dit"])
    with pytest.raises(ValueError, match="no adapter"), adapter_off(model):
        pass
    add_adapter(model, AdapterSettings(rank=2))
    with pytest.raises(ValueError, match="has one already; merge it first"):
        add_adapter(model, AdapterSettings(rank=2))


def test_missing_peft_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"^adapter: LoRA needs peft: pip install 'ditkit\[hf\]'$"):
        add_adapter(build_model(MODELS["dit"]), AdapterSettings())


def test_the_average_shares_the_frozen_weights_and_merging_it_leaves_them():
    model = build_model(MODELS["dit"])
    add_adapter(model, AdapterSettings(rank=2))
    ema = Ema(model, 0.5)
    trained(model)
    base = model.blocks[0].attention.qkv.base_layer.weight
    ours = ema.model.blocks[0].attention.qkv
    assert ours.base_layer.weight is base
    held = base.clone()
    ema.update(model)
    want = 0.5 * model.blocks[0].attention.qkv.lora_B["default"].weight
    assert torch.allclose(ours.lora_B["default"].weight, want)
    merge(ema.model)
    assert torch.equal(base, held) and not torch.equal(ema.model.blocks[0].attention.qkv.weight, held)


# ------------------------------------------------------------------------------------------------ files


def test_saved_and_loaded(tmp_path):
    settings, chosen = MODELS["mmdit"], AdapterSettings(rank=3, alpha=1.5, targets="attention")
    model = randomised(settings)
    add_adapter(model, chosen)
    save_adapter(trained(model), chosen, tmp_path / "a", {"base": "runs/x"})
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["adapter.json", "adapter.safetensors"]
    other = randomised(settings)
    adapter = load_adapter(other, tmp_path / "a")
    assert adapter.settings == chosen
    assert torch.equal(answer(other, settings), answer(model, settings))


def test_an_adapter_that_changes_nothing_is_refused(tmp_path):
    settings, chosen = MODELS["dit"], AdapterSettings(rank=2)
    model = build_model(settings)
    add_adapter(model, chosen)
    with pytest.raises(CheckpointError, match="changes nothing: all its lora_B are 0"):
        save_adapter(model, chosen, tmp_path / "zero")
    assert not (tmp_path / "zero").exists()
    save_adapter(trained(model), chosen, tmp_path / "a")
    file = tmp_path / "a" / "adapter.safetensors"
    good = load_file(file)

    def refused(tensors, match, onto=settings):
        save_file(tensors, file)
        fresh = build_model(onto)
        with pytest.raises(CheckpointError, match=match):
            load_adapter(fresh, tmp_path / "a")
        assert not adapter_layers(fresh), "refused before the model is touched"

    refused({k: v * ("lora_A" in k) for k, v in good.items()}, "changes nothing: all its lora_B are 0")
    refused({k: v * ("lora_B" in k) for k, v in good.items()}, "changes nothing: all its lora_A are 0")
    refused({"a.weight": torch.ones(1)}, "no LoRA tensors in it; its keys: a.weight")
    refused({k.replace("blocks", "layers"): v for k, v in good.items()}, "its layers layers.0.* are not in this model")
    refused(dict(list(good.items())[:2]), "nothing for the layers")
    refused(good, "other shapes", settings.model_copy(update={"width": 64}))
    refused(good, "nothing for the layers", settings.model_copy(update={"depth": 3}))
    file.write_bytes(b"no")
    with pytest.raises(CheckpointError, match="not readable"):
        load_adapter(build_model(settings), tmp_path / "a")
    with pytest.raises(CheckpointError, match="not an adapter folder"):
        load_adapter(build_model(settings), tmp_path)


WHOLE = (  # every Linear that an MMDiT has, so that each row of the table is tried
    "qkv", "proj", "modulation.linear", "fc1", "fc2", "time.mlp.0", "time.mlp.2", "pooled.0", "pooled.2", "context.0",
    "final.linear",
)  # fmt: skip


@pytest.mark.parametrize("targets", ["all-linear", "attention", WHOLE], ids=["all-linear", "attention", "whole"])
def test_diffusers_reads_the_exported_adapter_and_answers_as_we_do(tmp_path, targets):
    diffusers = pytest.importorskip("diffusers")
    settings = mmdit_settings(3, width=32, heads=4, dual=(1,), qk_norm="rms", table=8, **TEXT)
    model = randomised(settings).requires_grad_(False)
    published = export_published(model, "diffusers-sd3")
    theirs = diffusers.SD3Transformer2DModel.from_config(transformer_config(settings)).eval()
    theirs.load_state_dict(published)
    chosen = AdapterSettings(rank=3, alpha=6, targets=targets)
    adapter = add_adapter(model, chosen)
    assert (
        targets != WHOLE
        or len(adapter.targets) == sum(isinstance(m, torch.nn.Linear) for m in theirs.modules()) - 2 * 7
    )
    plain = torch.no_grad()(lambda: theirs(**inputs)[0])
    g = torch.Generator().manual_seed(2)
    x, text, pooled = (torch.randn(shape, generator=g) for shape in ((2, 4, 8, 8), (2, 5, 24), (2, 12)))
    t = torch.tensor([0.3, 0.7])
    inputs = {"hidden_states": x, "encoder_hidden_states": text, "pooled_projections": pooled, "timestep": 1000 * t}
    before = plain()
    save_diffusers(adapter_tensors(trained(model)), chosen, settings.depth, tmp_path / "lora.safetensors")
    pipeline_state = diffusers.StableDiffusion3Pipeline.lora_state_dict(str(tmp_path / "lora.safetensors"))
    theirs.load_lora_adapter(pipeline_state, prefix="transformer")
    with torch.no_grad():
        ours = model(x, t, Condition(text=text, pooled=pooled)).sample
    assert (ours - before).abs().max() > 1e-2
    assert torch.allclose(plain(), ours, atol=1e-5, rtol=1e-4)


def test_a_fused_matrix_becomes_three_adapters_with_equal_a(tmp_path):
    model = build_model(MODELS["mmdit"])
    add_adapter(model, AdapterSettings(rank=3, targets=("image.attention.qkv",)))
    tensors = adapter_tensors(trained(model))
    made = to_diffusers(tensors, AdapterSettings(rank=3), 2)
    assert len(made) == 2 * 3 * 2
    prefix = "transformer.transformer_blocks.1.attn"
    downs = [made[f"{prefix}.{to}.lora_A.weight"] for to in ("to_q", "to_k", "to_v")]
    ups = [made[f"{prefix}.{to}.lora_B.weight"] for to in ("to_q", "to_k", "to_v")]
    assert all(torch.equal(down, tensors["blocks.1.image.attention.qkv.lora_A.weight"]) for down in downs)
    assert torch.equal(torch.cat(ups), tensors["blocks.1.image.attention.qkv.lora_B.weight"])


def test_diffusers_names_only_what_it_has(tmp_path):
    model = build_model(MODELS["dit"])
    add_adapter(model, AdapterSettings(rank=2))
    with pytest.raises(CheckpointError, match=r"no layer like .*; an MMDiT of two sets fits it"):
        save_diffusers(adapter_tensors(trained(model)), AdapterSettings(rank=2), 2, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"end the name in \.safetensors"):
        save_diffusers({}, AdapterSettings(), 2, tmp_path / "a.pt")
