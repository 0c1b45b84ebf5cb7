"""`ditkit bench`: a table, a file of numbers that replaces none, one line for bad input."""

from __future__ import annotations

import json

import pytest

TINY = ("model.width=16", "model.heads=2", "--batch", "2", "--repeats", "2", "--device", "cpu")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_sampling_prints_a_table_and_writes_its_numbers(ditkit, home):
    words = ("bench", "sampling", "digits.sit", *TINY, "--steps", "3", "--peak", "1", "--precision", "bf16")
    done = ditkit(*words, "--threads", "1", "--out", "new/mine.json")
    assert done.exit_code == 0, done.output
    assert "step loop over network, %" in done.stdout and "of the stated peak" in done.stdout
    assert "euler, 3 steps, batch 2, bf16" in done.stdout and "numbers: new/mine.json" in done.stdout
    found = json.loads((home / "new" / "mine.json").read_text())
    assert found["command"] == (
        "ditkit bench sampling digits.sit batch=2 steps=3 repeats=2 precision=bf16 threads=1 peak=1 "
        "model.width=16 model.heads=2"
    )
    assert found["settings"]["steps"] == 3 and found["model"]["width"] == 16
    assert found["results"]["seconds_a_call"]["n"] == 6
    assert str(home) not in json.dumps(found)
    assert [p.name for p in (home / "new").iterdir()] == ["mine.json"]


def test_sharing_compares_and_a_newer_measurement_is_a_newer_file(ditkit, home):
    for every in ("2", "4"):
        done = ditkit("bench", "sharing", "digits.ddt", *TINY, "--every", every, "--steps", "4")
        assert done.exit_code == 0, done.output
    table = done.stdout.splitlines()
    assert any(line.startswith("DDT shared over SiT") for line in table)
    assert any(line.startswith("DDT shared, modulations remade over DDT") for line in table)
    assert "encoder at evaluations [0]; kept and remade modulations: latents bit-equal" in done.stdout
    first, second = sorted((home / "runs" / "bench").iterdir(), key=lambda path: len(path.name))
    assert first.name.endswith("-sharing-digits.ddt-cpu.json") and second.name == f"{first.stem}-2.json"
    assert [json.loads(p.read_text())["results"]["schedule"] for p in (first, second)] == [[0, 2], [0]]


def test_an_evaluation_without_sharing_leaves_its_column_empty(ditkit):
    done = ditkit("bench", "sharing", "digits.ddt", *TINY, "--every", "1", "--steps", "2", "--against", "none")
    assert done.exit_code == 0, done.output
    assert "SiT" not in done.stdout
    assert next(line for line in done.stdout.splitlines() if line.startswith("DDT shared ")).split()[-4] == "-"


def test_networks_smaller_than_the_recipe_aligns(ditkit):
    small = ("model.encoder_blocks=1", "model.decoder_blocks=1", *TINY)
    done = ditkit("bench", "sharing", "ddt.b_2_256", "model.size=[4,4]", *small, "--every", "2", "--steps", "2")
    assert done.exit_code == 0, done.output


BAD = {
    "nothing": ((), "Missing argument"),
    "unknown benchmark": (("samplin",), "did you mean 'sampling'?"),
    "unknown recipe": (("sampling", "digits.sitt"), "did you mean 'digits.sit'"),
    "two recipes": (("sampling", "digits.sit", "sit.s_2"), "one recipe, then KEY=VALUE; found digits.sit sit.s_2"),
    "no DDT": (("sharing", "digits.sit"), "digits.sit has no encoder to share: name a DDT"),
    "seldom": (("sharing", "digits.ddt", "--every", "9"), "every 9 evaluations is not between 1 and the 5"),
    "no batch": (("sampling", "digits.sit", "--batch", "0"), "batch: input should be greater than or equal to 1"),
    "twice": (("sampling", "digits.sit", "--batch", "4", "batch=8"), "--batch 4 and batch=8: give one of the two"),
    "precision": (("sampling", "digits.sit", "--precision", "fp8"), "precision: input should be 'fp32' or 'bf16'"),
    "unknown key": (("sampling", "digits.sit", "warmupp=1"), "warmupp: unknown key; did you mean 'warmup'?"),
    "model key": (("sampling", "digits.sit", "model.dept=3"), "model.dept: unknown key; did you mean 'model.depth'?"),
    "no influence": (("sampling", "digits.sit", "training.lr=3"), "training.lr=3 changes nothing here"),
    "other steps": (("sampling", "digits.sit", "sampling.steps=50"), "the steps of a run are --steps"),
    "no sampler": (("sharing", "digits.ddt", "sampling.solver=heun"), "it samples with Euler without guidance"),
    "other's key": (("sampling", "digits.sit", "--every", "2"), "every is a setting of bench sharing"),
    "device": (("sampling", "digits.sit", "--device", "toaster"), "device 'toaster' cannot be used"),
    "there already": (("sampling", "digits.sit", "--out", "file"), "file: exists already"),
    "no folder": (("sampling", "digits.sit", "--out", "file/x.json"), "file is a file; name another"),
}


@pytest.mark.parametrize("words, said", BAD.values(), ids=BAD)
def test_bad_input(home, refused, words, said):
    (home / "file").write_text("x")
    assert said in refused("bench", *words)
    assert [p.name for p in home.iterdir()] == ["file"] and (home / "file").read_text() == "x"
