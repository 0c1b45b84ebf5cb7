"""What goes wrong is said in one line, and no code from a file ever runs."""

import argparse
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from ditkit.align import Projector
from ditkit.checkpoints import SOURCES, CheckpointError, export_published, load_published
from ditkit.models import DiT, DiTSettings


@pytest.fixture(scope="module")
def state():
    return export_published(DiT(DiTSettings(depth=2, width=32, heads=4, size=(8, 8), num_classes=5,
                                            time_scale=999.0, variance="learned")), "dit")  # fmt: skip


def refused(checkpoint, source="dit", match=None, **arguments):
    heads = {"heads": 4} if source in SOURCES and "heads" in SOURCES[source].arguments else {}
    with pytest.raises(CheckpointError, match=match) as caught:
        load_published(checkpoint, source, **{**heads, **arguments})
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Attack:
    """Unpickling this runs a shell command."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["torch", "torch_legacy", "pickle2", "pickle5", "hidden_in_args", "hidden_in_opt"])
def test_no_code_from_a_file_runs(tmp_path, state, how):
    marker, file = tmp_path / "ran", tmp_path / "model.pt"
    attack = Attack(marker)
    content = {"model": state, "ema": state, "opt": {}, "args": argparse.Namespace(lr=1e-4)}
    if how == "hidden_in_args":
        content["args"].lr = attack
    elif how == "hidden_in_opt":
        content["opt"] = attack
    else:
        content = {**state, "x": attack}
    if how.startswith("pickle"):
        file.write_bytes(pickle.dumps(attack, protocol=int(how[-1])))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=how != "torch_legacy")
    message = refused(file, match="model.pt")
    if how != "pickle5":  # torch's restricted reader does not even know that protocol
        assert "refused" in message and "system" in message and "safetensors" in message
    assert not marker.exists()
    # the attack is real: an unguarded load runs it
    pickle.loads(file.read_bytes()) if how.startswith("pickle") else torch.load(file, weights_only=False)
    assert marker.exists()


def test_training_file_with_namespace(tmp_path, state):
    """What DiT's, SiT's and REPA's train.py write: model, ema, opt, args (argparse.Namespace)."""
    file, ema = tmp_path / "0050000.pt", {k: v + 1 for k, v in state.items()}
    args = argparse.Namespace(model="DiT-XL/2", image_size=256, nested={"a": [1, 2]})
    torch.save({"model": state, "ema": ema, "opt": {"state": {0: {"step": torch.tensor(1.0)}}}, "args": args}, file)
    for weights, expected in (("ema", ema), ("raw", state)):
        published = load_published(file, "dit", heads=4, weights=weights)
        assert published.weights == weights
        back = export_published(published.model, "dit")
        assert all(torch.equal(back[k], v) for k, v in expected.items())
    file.unlink()  # memory-mapped while reading, copied before we return
    assert torch.equal(published.model.position, state["pos_embed"][0])


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "legacy.pt"])
def test_flat_files(tmp_path, state, suffix):
    file = tmp_path / f"model.{suffix}"
    if suffix == "safetensors":
        save_file(state, file)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=suffix == "pt")
    published = load_published(str(file), "dit", heads=4)
    assert published.weights == "flat"
    assert all(torch.equal(v, state[k]) for k, v in export_published(published.model, "dit").items())


def test_state_dict_container_and_wrapper_prefixes(state):
    wrapped = {f"module._orig_mod.{k}".replace("blocks.0.", "blocks.0._orig_mod."): v for k, v in state.items()}
    published = load_published({"state_dict": wrapped, "epoch": 3}, "dit", heads=4)
    assert all(torch.equal(v, state[k]) for k, v in export_published(published.model, "dit").items())
    refused({**state, "module.pos_embed": state["pos_embed"]}, match="pos_embed.*twice")


def test_missing_copy_is_named(state):
    refused({"model": state, "opt": {}}, match="holds model, opt but no 'ema'")
    refused({"ema": state}, weights="raw", match="no 'model'")
    refused(state, weights="best", match="choose 'ema' or 'raw'")


def test_damaged_files(tmp_path, state):
    whole = tmp_path / "whole.pt"
    torch.save(state, whole)
    for text in (b"<html>404 not found</html>", b"hello", b"import torch\n"):
        (tmp_path / "text.pt").write_bytes(text)
        refused(tmp_path / "text.pt", match=r"text\.pt: not a PyTorch or safetensors checkpoint$")
    for name, data in {
        "cut.pt": whole.read_bytes()[:2000],
        "empty.pt": b"",
        "text.safetensors": b"<html>404</html>",
    }.items():
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, match=f"{name}: not a readable checkpoint")
    torch.save([1, 2], tmp_path / "list.pt")
    refused(tmp_path / "list.pt", match="holds a list")
    torch.save({"a": 1}, tmp_path / "other.pt")
    refused(tmp_path / "other.pt", match=r"other\.pt: .*not tensors: a")
    with pytest.raises(FileNotFoundError, match=r"gone\.pt: no such checkpoint"):
        load_published(tmp_path / "gone.pt", "dit")
    with pytest.raises(FileNotFoundError, match="no diffusion_pytorch_model"):
        load_published(tmp_path, "diffusers-dit")


def test_every_difference_in_keys_is_listed(state):
    broken = dict(state)
    del broken["blocks.1.attn.proj.bias"], broken["blocks.0.mlp.fc2.weight"]
    broken["extra.weight"] = torch.zeros(1)
    broken["blocks.0.mlp.fc2.bias"] = torch.zeros(3)
    message = refused(broken)
    assert "missing blocks.0.mlp.fc2.weight, blocks.1.attn.proj.bias" in message
    assert "unknown extra.weight" in message and "blocks.0.mlp.fc2.bias (3,) instead of (32,)" in message
    for key in state:
        refused({k: v for k, v in state.items() if k != key}, match=key.replace(".", r"\."))


def test_projector_keys_are_checked(state):
    model = DiT(DiTSettings(depth=2, width=32, heads=4, size=(8, 8), num_classes=5))
    full = export_published(model, "repa", torch.nn.ModuleList([Projector(32, 6, 8)]))
    for key in [k for k in full if k.startswith("projectors.")]:
        part = {k: v for k, v in full.items() if k != key}
        refused(part, "repa", match=key.replace(".", r"\."), align_depth=1)
    refused({**full, "projectors.0.6.weight": torch.zeros(2)}, "repa", match=r"projectors\.0\.6", align_depth=1)
    refused(full, "repa", match="give align_depth=")
    refused(full, "repa", match="align_depth=3 does not fit 2 blocks", align_depth=3)


WRONG = {
    "ddt": {"s_embedder.proj.weight", "x_embedder.proj.weight", "blocks.0.adaLN_modulation.0.weight"},
    "improved-dit": {"x_embedder.proj.weight", "blocks.0.adaLN_modulation.0.weight"},
    "sd3": {f"model.diffusion_model.{k}" for k in ("joint_blocks.0.x_block.attn.qkv.weight", "y_embedder.mlp.0.bias")},
    "repa-mmdit": {"joint_blocks.0.x_block.attn.qkv.weight", "projectors.0.0.weight"},
    "diffusers-sd3": {"transformer_blocks.0.norm1_context.linear.weight", "transformer_blocks.0.norm1.linear.weight"},
    "autoencoder": {"decoder.conv_in.weight", "quant_conv.weight"},
    "ditkit model": {"patch.project.weight", "final.linear.weight"},
}


@pytest.mark.parametrize(("family", "source"), [(f, s) for f in WRONG for s in SOURCES if f != s])
def test_wrong_family_is_named(family, source):
    message = refused({k: torch.zeros(1) for k in WRONG[family]}, source, match=family)
    if "looks like '" in message:  # what ditkit cannot load it does not send you to
        assert ("no converter" in message) == (family not in SOURCES) and ("with that" in message) == (
            family in SOURCES
        )


def test_related_families_are_told_apart(state):
    projectors = torch.nn.ModuleList([Projector(32, 6, 8)])
    repa = export_published(
        DiT(DiTSettings(depth=2, width=32, heads=4, size=(8, 8), num_classes=5)), "repa", projectors
    )
    refused(repa, "dit", match="looks like 'repa'")
    refused(repa, "sit", match="looks like 'repa'")
    refused(state, "repa", match="looks like 'dit' or 'sit'")
    for source in ("diffusers-dit", "ddt", "improved-dit"):
        refused(state, source, match="looks like 'dit' or 'sit'")
    refused({"a": torch.zeros(1)}, match="no family that ditkit knows; its keys: a")


def test_arguments_are_checked(state):
    refused(state, heads=None, match="no published size; give heads=")
    refused(state, heads=5, match="heads=5 does not divide width 32")
    refused(state, patch=2, match="patch does not apply to source 'dit'")
    refused(state, head=4, match="head does not apply")
    refused(state, heads=-1, match="heads: ")
    refused(state, prediction="velocity", match="predicts noise or data, not velocity")
    refused(state, source="edm", match="no source 'edm'; choose from")


def test_diffusers_leftovers(state):
    from ditkit.checkpoints.diffusers_dit import DIFFUSERS_DIT

    model = load_published(state, "dit", heads=4).model
    foreign = DIFFUSERS_DIT.export(model, None, None)
    refused({**foreign, "pos_embed": state["pos_embed"]}, "diffusers-dit", match="unknown pos_embed", size=(8, 8))
    other = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"
    refused({**foreign, other: foreign[other] + 1}, "diffusers-dit", match="differs from another block")
    for key in foreign:
        part = {k: v for k, v in foreign.items() if k != key}
        refused(part, "diffusers-dit", match="missing")


def test_diffusers_folder(tmp_path, state):
    import json

    model = load_published(state, "dit", heads=4).model
    folder = tmp_path / "transformer"
    folder.mkdir()
    save_file(export_published(model, "diffusers-dit"), folder / "diffusion_pytorch_model.safetensors")
    config = {"_class_name": "DiTTransformer2DModel", "num_attention_heads": 4, "sample_size": 8}
    (folder / "config.json").write_text(json.dumps(config))
    for place in (tmp_path, folder):  # the pipeline's folder or its transformer: heads and size come from config.json
        published = load_published(place, "diffusers-dit")
        assert published.settings == model.settings
    os.remove(folder / "config.json")
    refused(tmp_path, "diffusers-dit", heads=None, match="give heads=")
