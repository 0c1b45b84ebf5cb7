"""`ditkit convert`: published file -> model folder -> published file, the same tensors; refusals say why."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

import ditkit as package
from ditkit.align import Projector
from ditkit.diffusion import Flow, Linear, Uniform
from ditkit.models import build_model
from ditkit.recipes import recipe
from ditkit.recipes.load import Loaded, save_exported

ROWS = [
    ("dit_forward_learnsigma", "dit", []),
    ("sit_forward", "sit", []),
    ("repa_forward_1enc", "repa", ["--align-depth", "2"]),
    ("repa_forward_1enc", "repa", ["align_depth=2"]),
    ("repa_forward_2enc", "repa", ["shape.align_depth=1"]),
    ("ddt_forward", "ddt", ["--encoder-blocks", "3"]),
    ("ddt_forward", "ddt", ["encoder_blocks=3", "shape.size=[16,8]"]),
    ("ddt_improved_dit_forward", "improved-dit", ["--patch", "2"]),
    ("sd35_basemodel", "sd3", []),
    ("sd35_mmditx_plain", "sd3", ["shape.size=[8,12]"]),
    ("diffusers_sd3_native", "diffusers-sd3", ["--heads", "4"]),
    ("repa_mmdit", "repa-mmdit", ["--align-depth", "2"]),
]


@pytest.fixture
def published(reference, tmp_path):
    """published(recording, source) -> (the words that name its file, its official state dict)."""

    def make(name: str, source: str):
        found, file = reference(name), tmp_path / f"{name}.safetensors"
        state = {f"model.diffusion_model.{k}": v for k, v in found.state.items()} if source == "sd3" else found.state
        save_file(state, file)
        maker = found.meta.get("constructor", {})
        heads = maker.get("num_heads") or maker.get("num_groups")  # of MMDiTs the tensors tell
        return [file, "--source", source, *(["--heads", heads] if heads else [])], state

    return make


def read(file):
    return load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def ok(result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(("name", "source", "words"), ROWS)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_there_and_back(ditkit, published, tmp_path, name, source, words, suffix):
    (file, *named), state = published(name, source)
    folder, back = tmp_path / "folder", tmp_path / f"back.{suffix}"
    told = ok(ditkit("convert", file, folder, *named, *words))
    assert f"ditkit sample {folder}" in told
    assert ("--text sd3:FOLDER --codec FOLDER" in told) == (source in ("sd3", "diffusers-sd3"))
    loaded = package.load(folder)
    assert (loaded.projectors is not None) == source.startswith("repa")
    assert f"{source} file {back}" in ok(ditkit("convert", folder, back, "--to", source))
    assert equal(read(back), state)


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_a_lightning_checkpoint_keeps_its_projector(ditkit, refused, reference, tmp_path, weights):
    official, file, back = reference("ddt_forward").state, tmp_path / "R256.ckpt", tmp_path / "back.safetensors"
    projector = {f"diffusion_trainer.proj.0.{k}": v for k, v in Projector(48, 16, 32).state_dict().items()}
    copies = {f"ema_denoiser._orig_mod.{k}": v for k, v in official.items()}
    copies |= {f"denoiser._orig_mod.{k}": v + 1 for k, v in official.items()}
    torch.save({"state_dict": {**copies, **projector}, "epoch": 1, "loops": {}, "callbacks": {}}, file)
    words = ["convert", file, tmp_path / "folder", "--source", "ddt", "--encoder-blocks", 3, "--weights", weights]
    assert "give align_depth=" in refused(*words)
    ok(ditkit(*words, "--align-depth", 2))
    loaded = package.load(tmp_path / "folder")
    assert (loaded.weights, loaded.align_depth, len(loaded.projectors)) == (weights, 2, 1)
    assert (loaded.recipe.align.depth, loaded.recipe.align.projector_width) == (2, 32)
    ok(ditkit("convert", tmp_path / "folder", back, "--to", "ddt"))
    chosen = official if weights == "ema" else {k: v + 1 for k, v in official.items()}
    state = load_file(back)  # one network, under the name that its sampling application reads
    assert state.keys() == {f"ema_denoiser.{k}" for k in official} | projector.keys()
    assert all(torch.equal(state[k], v) for k, v in projector.items())
    assert all(torch.equal(state[f"ema_denoiser.{k}"], v) for k, v in chosen.items())
    again = package.load(back, source="ddt", encoder_blocks=3, align_depth=2)
    assert equal(again.model.state_dict(), loaded.model.state_dict())


def test_heads_have_every_spelling(ditkit, refused, published, tmp_path):
    (file, _, source, _, heads), _ = published("sit_forward", "sit")
    for i, words in enumerate(([f"heads={heads}"], [f"shape.heads={heads}"], [f"--heads={heads}"])):
        ok(ditkit("convert", file, tmp_path / str(i), "--source", source, *words))
    assert "sampling.steps=3: nothing is sampled" in refused(
        "convert", file, tmp_path / "x", "--source", source, "steps=3"
    )


def test_a_file_without_projectors_is_doubted_and_claims_no_training(ditkit, published, tmp_path):
    (file, *_, heads), _ = published("sit_forward", "sit")
    state = load_file(file)
    for key in ("final_layer.linear.weight", "final_layer.linear.bias"):
        state[key] = state[key][: len(state[key]) // 2].clone()  # one output channel per input channel, as REPA's
    save_file(state, tmp_path / "plain.safetensors")
    words = ["convert", tmp_path / "plain.safetensors", tmp_path / "mine", "--source", "repa", f"heads={heads}"]
    assert "no projectors in this file: it looks like a SiT file" in ok(ditkit(*words))
    told = ok(ditkit("show", tmp_path / "mine", "--cost")).splitlines()[1].split()
    assert told[0] == "plain" and told[-2:] == ["unknown", "unknown"]
    assert "training:  # not (fully) published" in ok(ditkit("show", tmp_path / "mine"))


def test_dit_to_diffusers_and_back(ditkit, published, tmp_path):
    (file, *named), state = published("dit_forward_learnsigma", "dit")
    middle, back = tmp_path / "diffusers.safetensors", tmp_path / "back.pt"
    ok(ditkit("convert", file, middle, *named, "--to", "diffusers-dit"))
    assert any(key.startswith("transformer_blocks.") for key in load_file(middle))
    side = state["x_embedder.proj.weight"].shape[2] * int(state["pos_embed"].shape[1] ** 0.5)
    words = ["--source", "diffusers-dit", *named[2:], f"shape.size=[{side},{side}]", "--to", "dit"]
    ok(ditkit("convert", middle, back, *words))
    other = read(back)
    assert other.keys() == state.keys()
    assert all(torch.equal(other[k], state[k]) for k in state if k != "pos_embed")  # diffusers makes its table anew


def test_a_run_becomes_a_folder_and_a_repa_file(ditkit, tiny_run, tmp_path):
    assert "raw, step 2" in ok(ditkit("convert", tiny_run, tmp_path / "raw", "--weights", "raw", "--step", 2))
    loaded, run = package.load(tmp_path / "raw"), package.load(tiny_run, "raw", step=2)
    assert equal(loaded.model.state_dict(), run.model.state_dict()) and (loaded.weights, loaded.step) == ("raw", 2)
    told = ok(ditkit("convert", tiny_run, tmp_path / "mine.pt", "--to", "repa"))
    assert "not in the file: path linear, prediction velocity, codec" in told
    state = read(tmp_path / "mine.pt")
    assert "projectors.0.0.weight" in state
    again = package.load(tmp_path / "mine.pt", source="repa", heads=2, align_depth=1)
    x, y = torch.randn(2, 1, 8, 8), package.Condition(label=torch.tensor([1, 10]))
    ema = package.load(tiny_run)
    assert torch.equal(
        again.model(x, torch.rand(2).fill_(0.3), y).sample, ema.model(x, torch.full((2,), 0.3), y).sample
    )


def test_refusals_name_the_reason_and_write_nothing(refused, published, tiny_run, tmp_path):
    out = tmp_path / "out.safetensors"
    assert "time embedding cannot be remapped" in refused("convert", tiny_run, out, "--to", "sit")
    assert "predicts noise or data, not velocity" in refused("convert", published_dit(tmp_path), out, "--to", "dit")
    assert "choose from dit, sit" in refused("convert", tmp_path / "gone", out, "--to", "foo")
    assert "samples on ddpm" in refused("convert", published_dit(tmp_path, "noise"), out, "--to", "dit")
    assert "choose from dit, sit, repa, ddt, improved-dit, diffusers-dit" in refused(
        "convert", tiny_run, out, "--to", "edm"
    )
    assert "source 'ddt' takes a DDT, not a DiT" in refused("convert", tiny_run, out, "--to", "ddt")
    assert "end the name in .safetensors or .pt" in refused("convert", tiny_run, tmp_path / "x.bin", "--to", "repa")
    assert "no such run" in refused("convert", tmp_path / "gone", out)
    words, _ = published("sit_forward", "sit")
    assert "say --source dit, sit" in refused("convert", words[0], tmp_path / "x")
    assert "looks like 'dit' or 'sit'" in refused("convert", words[0], tmp_path / "x", "--source", "diffusers-dit")
    assert "give heads=" in refused("convert", words[0], tmp_path / "x", "--source", "sit")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(words[0].read_bytes()[:-50])
    assert "damaged or incomplete" in refused("convert", cut, tmp_path / "x", *words[1:])
    assert not out.exists() and not (tmp_path / "x").exists() and not list(tmp_path.glob(".*"))


def published_dit(folder, prediction="velocity"):
    """A model folder with DiT's time map that was trained on the linear path."""
    place = folder / prediction
    if not place.exists():
        base = recipe("digits.sit").with_({"model.depth": 1, "model.width": 16, "model.heads": 2})
        density = Uniform(low=1e-3, high=0.999)
        flow = Flow(path=Linear(), prediction=prediction, density=density)
        made = base.with_({"model.time_scale": 999.0, "objective": flow})
        model = build_model(made.model, generator=torch.Generator().manual_seed(0))
        loaded = Loaded(model, Linear(), prediction, None, None, made.model, "ditkit", "ema", made, 1)
        save_exported(loaded, place)
    return place


def test_a_stability_file_becomes_a_folder_and_a_pipeline(ditkit, refused, published, tmp_path):
    """The VAE in the file is named and left aside; the folder opens, and diffusers opens what is made of it."""
    (file, *_), state = published("sd35_basemodel", "sd3")
    save_file({**state, "first_stage_model.decoder.conv_in.weight": torch.ones(2)}, file)
    told = ok(ditkit("convert", file, tmp_path / "sd3", "--source", "sd3"))
    assert "note     left aside: the VAE, 1 tensors first_stage_model.*" in told
    loaded = package.load(tmp_path / "sd3")
    assert loaded.settings.dual == (1, 2) and loaded.path.kind == "linear"
    words = ["convert", tmp_path / "sd3", tmp_path / "pipeline", "--to", "diffusers", "--codec", "pixels"]
    told = ok(ditkit(*words, "--text", "toy"))
    assert f"pipeline {tmp_path / 'pipeline'}" in told and "text_encoder=None" in told
    diffusers = pytest.importorskip("diffusers")
    transformer = diffusers.SD3Transformer2DModel.from_pretrained(tmp_path / "pipeline", subfolder="transformer")
    x, text, pooled = torch.randn(1, 16, 8, 8), torch.randn(1, 3, 32), torch.randn(1, 24)
    with torch.no_grad():
        got = transformer(x, timestep=torch.tensor([500.0]), encoder_hidden_states=text, pooled_projections=pooled)
        want = loaded.model(x, torch.tensor([0.5]), package.Condition(text=text, pooled=pooled))
    torch.testing.assert_close(got.sample, want.sample, rtol=1e-4, atol=5e-5)
    assert "exists already" in refused(*words, "--text", "toy")


def test_nothing_is_overwritten(ditkit, refused, tiny_run, tmp_path):
    file, folder = tmp_path / "mine.safetensors", tmp_path / "folder"
    for words in ((file, "--to", "repa"), (folder,)):
        ok(ditkit("convert", tiny_run, *words))
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
        assert "exists already" in refused("convert", tiny_run, *words)
        assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_a_failed_write_leaves_nothing(ditkit, tiny_run, tmp_path, monkeypatch):
    def full(state, name):
        raise OSError(28, "No space left on device", name)

    monkeypatch.setattr("ditkit.recipes.converting.save_file", full)
    result = ditkit("convert", tiny_run, tmp_path / "mine.safetensors", "--to", "repa")
    assert result.exit_code == 2 and "No space left on device" in result.stderr
    assert list(tmp_path.iterdir()) == []
