"""Fine-tuning as runs: LoRA and preference tuning begin from a run, resume to the bit, and open ready to sample."""

from __future__ import annotations

import io
import json
import math
import shutil

import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import ditkit
from ditkit.checkpoints import CheckpointError
from ditkit.cli import app
from ditkit.config import SettingsError
from ditkit.data import DataSettings, open_source
from ditkit.recipes.adapters import export_adapter
from ditkit.recipes.registry import recipe
from ditkit.recipes.run import train
from ditkit.training import list_steps, load_adapter, merge, read, read_metrics

CPU = torch.device("cpu")
TINY = {
    "model.depth": 2, "model.width": 32, "model.heads": 2, "training.batch": 4, "training.steps": 4,
    "training.ema": 0.5, "training.log_every": 1, "training.validate_every": 4, "training.save_every": 2,
    "training.keep_last": 9, "training.lr": 1e-2, "training.schedule": "constant", "sampling.steps": 2,
}  # fmt: skip
LORA = {"adapter.rank": 3, "adapter.alpha": 6}


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Runs that validate and show a few images only: there are many here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ditkit.recipes.build.VALIDATION_IMAGES", 8)
        patch.setattr("ditkit.recipes.run.PREVIEW", 2)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Four steps of a tiny MMDiT on scenes."""
    folder = tmp_path_factory.mktemp("tune") / "base"
    train(recipe("t2i.scenes").with_(TINY), folder, CPU)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Eight pairs of scenes as parquet: the scene that the caption describes wins over another one."""
    scenes = open_source("scenes")

    def png(i):
        file = io.BytesIO()
        Image.fromarray(scenes[i].image.permute(1, 2, 0).numpy()).save(file, "png")
        return file.getvalue()

    file = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    columns = {
        "winner": [png(i) for i in range(8)],
        "loser": [png(i + 8) for i in range(8)],
        "caption": [scenes[i].caption for i in range(8)],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file


def dpo(base, pairs, **changes):
    """A DPO recipe of the base run on these pairs."""
    told = {
        "start": str(base), "data": DataSettings(source=str(pairs), pairs="both", size=32, channels=3),
        "objective.kind": "dpo", "objective.prediction": "data", "objective.density.kind": "logit_normal",
        "objective.form": "velocity", "objective.beta": 100,
    }  # fmt: skip
    return recipe("t2i.scenes").with_({**TINY, **told, **changes})


def train_lora(base, folder, **changes):
    told = recipe("t2i.scenes").with_({**TINY, "start": str(base), **LORA, **changes})
    said = []
    train(told, folder, CPU, say=said.append)
    return said


@pytest.fixture(scope="module")
def lora(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune") / "lora"
    said = train_lora(base, folder)
    return folder, said


def test_a_lora_run_trains_the_adapter_alone_and_opens_merged(base, lora):
    folder, said = lora
    assert [line for line in said if line.startswith("LoRA of rank 3: 7,296 parameters on ")], said
    before, after = (ditkit.load(run).model.state_dict() for run in (base, folder))
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed and all(key.startswith("blocks.") and key.endswith(".weight") for key in changed)
    held = load_file(folder / "checkpoints" / "0000004" / "model.safetensors")
    assert held and all(".lora_" in key for key in held), "checkpoints hold the adapter alone"
    same = load_file(folder / "base.safetensors")
    assert all(torch.equal(same[key], value) for key, value in before.items())
    raw = ditkit.load(folder, weights="raw").model.state_dict()
    assert any(not torch.equal(raw[key], after[key]) for key in changed)


@pytest.mark.parametrize("changes", [{}, pytest.param({"adapter.dropout": 0.5}, marks=pytest.mark.long)])
def test_a_lora_run_resumes_to_the_bit_without_the_run_that_it_began_from(base, lora, tmp_path, changes):
    unbroken = tmp_path / "unbroken" if changes else lora[0]
    if changes:
        train_lora(base, unbroken, **changes)
    gone = shutil.copytree(base, tmp_path / "base")
    train_lora(gone, tmp_path / "run", **changes, **{"training.steps": 2})
    shutil.rmtree(gone)
    train_lora(gone, tmp_path / "run", **changes)
    for weights in ("ema", "raw"):
        mine, wanted = (read(run, 4, weights) for run in (tmp_path / "run", unbroken))
        assert all(torch.equal(mine[key], wanted[key]) for key in wanted | mine)


def test_dropout_changes_what_is_learned(base, lora, tmp_path):
    train_lora(base, tmp_path / "run", **{"adapter.dropout": 0.5})
    mine, other = read(tmp_path / "run", 4, "raw"), read(lora[0], 4, "raw")
    assert any(not torch.equal(mine[key], other[key]) for key in other)


def test_a_run_whose_base_is_gone_or_changed_says_so(base, tmp_path):
    train_lora(base, tmp_path / "run", **{"training.steps": 2})
    file = tmp_path / "run" / "base.safetensors"
    kept = file.read_bytes()
    file.unlink()
    with pytest.raises(CheckpointError, match="the weights that this run began from are gone"):
        train_lora(base, tmp_path / "run")
    with pytest.raises(CheckpointError, match="the weights that this run began from are gone"):
        ditkit.load(tmp_path / "run")
    file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(ValueError, match="cannot be resumed: base was"):
        train_lora(base, tmp_path / "run")


def test_adapters_and_preferences_need_weights_to_begin_from(base, pairs, tmp_path):
    with pytest.raises(ValueError, match="adapter: a LoRA needs trained weights to begin from: --start RUN"):
        train(recipe("t2i.scenes").with_({**TINY, **LORA}), tmp_path / "a", CPU)
    with pytest.raises(ValueError, match="preference tuning needs trained weights"):
        train(dpo(base, pairs, start=None), tmp_path / "b", CPU)
    assert not list(tmp_path.iterdir())
    with pytest.raises(SettingsError, match=r"objective\.kind=dpo and data\.pairs=both go together"):
        recipe("t2i.scenes").with_({"data.pairs": "both"})


@pytest.mark.parametrize("adapter", [{}, LORA], ids=["full", "lora"])
def test_preference_tuning_starts_at_ln_2_and_one_half_and_learns_the_winner(base, pairs, tmp_path, adapter):
    said = []
    train(dpo(base, pairs, **adapter, **{"training.steps": 12}), tmp_path / "run", CPU, say=said.append)
    rows = [row for row in read_metrics(tmp_path / "run") if "loss_accuracy" in row]
    assert rows[0]["step"] == 1 and rows[0]["loss_accuracy"] == 0.5 and rows[0]["loss_margin"] == 0
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert sum(row["loss_accuracy"] for row in rows[-4:]) / 4 > 0.75
    assert rows[-1]["loss"] < math.log(2)
    wanted = "the same weights with the adapter off" if adapter else "a frozen copy"
    assert f"the reference is {wanted}" in said
    assert ditkit.load(tmp_path / "run").prediction == "data"
    assert (tmp_path / "run" / "samples" / "0000012.png").is_file()


def test_a_preference_run_resumes_to_the_bit(base, pairs, tmp_path):
    for folder, steps in (("a", (4,)), ("b", (2, 4))):
        for step in steps:
            train(dpo(base, pairs, **{"training.steps": step}), tmp_path / folder, CPU)
    one, two = (read(tmp_path / folder, 4, "raw") for folder in "ab")
    assert all(torch.equal(one[key], two[key]) for key in one) and list_steps(tmp_path / "b") == [2, 4]


def test_winners_alone_are_plain_images(base, pairs, tmp_path):
    plain = {"data": DataSettings(source=str(pairs), pairs="winners", size=32, channels=3), "start": str(base)}
    train(recipe("t2i.scenes").with_({**TINY, **plain}), tmp_path / "run", CPU)
    assert "loss_accuracy" not in read_metrics(tmp_path / "run")[0]


def test_the_adapter_of_a_run_as_a_folder(base, lora, tmp_path):
    said = export_adapter(lora[0], tmp_path / "adapter")
    assert said.startswith("LoRA of rank 3")
    model = ditkit.load(base).model
    load_adapter(model, tmp_path / "adapter")
    wanted = ditkit.load(lora[0]).model.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in merge(model).state_dict().items())
    card = json.loads((tmp_path / "adapter" / "adapter.json").read_text())
    assert card["settings"]["alpha"] == 6 and card["about"]["weights"] == "ema"
    with pytest.raises(CheckpointError, match="this run trains no adapter"):
        export_adapter(base, tmp_path / "none")


def test_the_command_line_writes_adapters_and_refuses_what_has_none(base, lora, tmp_path):
    def convert(*words):
        done = CliRunner().invoke(app, ["convert", *map(str, words)])
        return done.exit_code, f"{done.output}{done.exception}"

    code, said = convert(lora[0], tmp_path / "a.safetensors", "--to", "diffusers-lora", "weights=raw")
    assert code == 0 and "LoRA of rank 3" in said
    keys = load_file(tmp_path / "a.safetensors")
    assert "transformer.transformer_blocks.1.attn.add_v_proj.lora_B.weight" in keys
    assert convert(lora[0], tmp_path / "a", "--to", "lora")[0] == 0 and (tmp_path / "a" / "adapter.json").is_file()
    code, said = convert(base, tmp_path / "b", "--to", "lora")
    assert code != 0 and "this run trains no adapter" in said
    code, said = convert(tmp_path, tmp_path / "b", "--to", "lora")
    assert code != 0 and "no run folder" in said


def test_doctor_and_train_look_at_pairs_and_targets_first(base, pairs, tmp_path):
    words = [
        "t2i.scenes", "--data", str(pairs), "data.pairs=both", "--start", str(base), "adapter=lora",
        "objective.kind=dpo", "objective.prediction=data", "objective.density.kind=logit_normal",
        "objective.form=velocity", "--out", str(tmp_path / "run"), *(f"{k}={v}" for k, v in TINY.items()),
    ]  # fmt: skip
    seen = CliRunner().invoke(app, ["doctor", *words])
    assert seen.exit_code == 0 and "latents   mean" in seen.stdout and "disk" in seen.stdout, seen.output
    seen = CliRunner().invoke(app, ["doctor", *words, "--start", "none"])
    assert seen.exit_code == 1 and "needs trained weights to begin from" in seen.stdout and "disk" in seen.stdout
    refused = CliRunner().invoke(app, ["train", *words, "adapter.targets=[qkx]"])
    assert refused.exit_code == 2 and "no Linear layer's name ends in 'qkx'" in refused.stderr
    assert not (tmp_path / "run").exists()
