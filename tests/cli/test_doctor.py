"""`ditkit doctor`: every problem named before a run, and nothing written."""

from __future__ import annotations

import re

import pytest

PLAIN = ("--codec", "pixels", "--teacher", "none", "--device", "cpu")
SMALL = ("model.depth=2", "model.width=64", "model.heads=2", "training.batch=8", "training.precision=fp32")
SHORT = ("--steps", 500, "training.ema=0.99")


@pytest.fixture
def home(tmp_path, monkeypatch, pictures):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "data", n=5)
    return tmp_path


def lines(result, level: str) -> str:
    return "\n".join(line for line in result.stdout.splitlines() if line.startswith(level))


def test_a_good_set_up_passes_and_writes_nothing(home, ditkit):
    result = ditkit("doctor", "repa.sit_s_2", "--data", "data", *PLAIN, *SMALL, *SHORT)
    assert result.exit_code == 0, result.output
    good = lines(result, "ok")
    for said in (
        "10 images, 10 usable", "size 24x40", "model.num_classes: 1000 in the recipe, 2 here", "12x20 = 240 tokens",
        "2x2x3 = 12 numbers, width 64", "parameters", "GMACs a forward pass", "an estimate", "checkpoints of",
        "runs/repa.sit_s_2: can be written", "latents",
    ):  # fmt: skip
        assert said in good, said
    assert not lines(result, "fail") and not lines(result, "warn")
    assert [p.name for p in home.iterdir()] == ["data"]


def test_bad_images_are_warnings_until_none_is_left(home, ditkit):
    files = sorted((home / "data").rglob("*.png"))
    files[0].write_bytes(files[0].read_bytes()[:200])
    result = ditkit("doctor", "repa.sit_s_2", "--data", "data", *PLAIN, *SMALL)
    assert result.exit_code == 0 and "10 images, 9 usable" in result.stdout
    assert "cat/000.png: cannot be decoded" in lines(result, "warn")
    for file in files:
        file.write_bytes(file.read_bytes()[:200])
    result = ditkit("doctor", "repa.sit_s_2", "--data", "data", "--size", 24, *PLAIN, *SMALL)
    assert result.exit_code == 1 and "no image can be used" in lines(result, "fail")
    assert result.stderr.splitlines()[-1].startswith("ditkit: 1 of")


def test_a_class_without_usable_images(home, ditkit):
    for file in (home / "data" / "dog").iterdir():
        file.write_bytes(b"")
    result = ditkit("doctor", "repa.sit_s_2", "--data", "data", *PLAIN, *SMALL)
    assert "class 'dog' has no usable image" in lines(result, "warn")


def test_networks_that_cannot_be_had(home, ditkit):
    words = ("doctor", "repa.sit_s_2", "--data", "data", "--codec", "pixels", *SMALL, *SHORT)
    result = ditkit(*words, "--teacher", "./selftaught-that-is-not-there")
    assert result.exit_code == 1 and "1 of" in result.stderr
    assert "teacher './selftaught-that-is-not-there': no folder" in lines(result, "fail")
    assert "10 images, 10 usable" in lines(result, "ok") and "checkpoints of" in lines(result, "ok")
    result = ditkit("doctor", "repa.sit_s_2", "--data", "data", "--codec", "./no-vae")
    assert result.exit_code == 1
    failed = lines(result, "fail")
    assert "codec './no-vae': no folder of that name" in failed and "dinov2" in failed
    assert "10 images, 10 usable" in lines(result, "ok"), "the data are looked at all the same"


def test_patches_that_hold_more_numbers_than_the_width(home, ditkit):
    result = ditkit("doctor", "repa.sit_s_2", "--data", "data", *PLAIN, *SMALL, "model.patch=8")
    assert result.exit_code == 0
    assert "a patch holds 192 numbers and the model is 64 wide" in lines(result, "warn")


def test_memory_that_cannot_suffice(home, ditkit):
    result = ditkit("doctor", "repa.sit_s_2", "--data", "data", *PLAIN, "training.batch=1000000")
    assert "set training.micro_batch" in lines(result, "fail") and result.exit_code == 1
    result = ditkit(
        "doctor", "repa.sit_s_2", "--data", "data", *PLAIN, "training.batch=1000000", "training.micro_batch=1"
    )
    assert "memory" in lines(result, "ok")


@pytest.mark.parametrize("units", [True, False])
def test_bf16_on_a_processor_without_it_is_a_warning(home, ditkit, monkeypatch, units):
    monkeypatch.setattr("ditkit.recipes.inspect.has_bf16_products", lambda device: units)
    result = ditkit("doctor", "repa.sit_s_2", "--data", "data", *PLAIN, *SMALL[:-1], "training.precision=bf16")
    assert ("no bf16 matrix units" in lines(result, "warn")) is not units


def test_more_steps_than_make_sense(home, ditkit):
    result = ditkit("doctor", "repa.sit_s_2", "--data", "data", *PLAIN, *SMALL, "--steps", 5000)
    assert result.exit_code == 0
    assert "every image is visited 4,000 times; training.steps=625 makes it 500" in lines(result, "warn")
    assert "CPU" not in lines(result, "warn")
    result = ditkit("doctor", "repa.sit_s_2", "--data", "data", *PLAIN, "training.micro_batch=1")
    assert "CPU cores (an estimate that assumes 50 GMACs" in lines(result, "warn")


def test_a_disk_that_is_too_small(home, ditkit, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 2**20})())
    result = ditkit("doctor", "repa.sit_s_2", "--data", "data", *PLAIN, *SMALL)
    assert result.exit_code == 1 and re.search(r"4 checkpoints of \d+ MiB, 1 MiB free", lines(result, "fail"))


def test_out_that_cannot_be_used(home, ditkit):
    (home / "file").write_text("x")
    result = ditkit("doctor", "repa.sit_s_2", "--data", "data", *PLAIN, *SMALL, "--out", "file")
    assert result.exit_code == 1 and "file is a file" in lines(result, "fail")


def test_a_run_that_is_there(home, ditkit):
    words = ("repa.sit_s_2", "--data", "data", *PLAIN, *SMALL, "sampling.steps=1", "--steps", 1, "--out", "run")
    assert ditkit("train", *words).exit_code == 0
    assert "run: continues at step 1" in lines(ditkit("doctor", *words), "ok")
    result = ditkit("doctor", *words, "--size", 100_000)
    assert result.exit_code == 1 and "size 100000x100000 is out of reach" in lines(result, "fail")
    assert "continues" not in result.stdout and "elongated" not in result.stdout
    result = ditkit("doctor", *words, "model.depth=1")
    assert result.exit_code == 1 and "model.depth was 2, is 1" in lines(result, "fail")
    (home / "data" / "dog" / "000.png").unlink()
    assert "not those it was trained on" in lines(ditkit("doctor", *words), "fail")


def test_a_grey_teacher_and_a_damaged_one(home, ditkit):
    tiny = ("--steps", 1, "batch=4", "network.width=16", "network.depth=1")
    assert ditkit("teacher", "data", "--out", "teacher", *tiny).exit_code == 0
    words = ("doctor", "repa.sit_s_2", "--data", "data", "--codec", "pixels", "--teacher", "teacher", *SMALL)
    words += ("align.depth=1",)
    assert "width 16" in lines(ditkit(*words), "ok")
    (home / "teacher" / "model.safetensors").write_bytes(b"x")
    result = ditkit(*words)
    assert result.exit_code == 1 and "damaged" in lines(result, "fail")


@pytest.mark.long
def test_the_weights_to_begin_from_are_looked_at(home, ditkit):
    tiny = ("model.width=32", "model.heads=2", "align.depth=1", "align.projector_width=16", "training.batch=8")
    words = ("digits.ddt", *tiny, "--teacher", "toy", "--device", "cpu")
    trained = ditkit("train", *words, "sampling.steps=2", "--steps", 1, "--out", "first")
    assert trained.exit_code == 0, trained.output
    long_average = ("training.ema=0.9999", "--steps", 300, "--out", "second")
    found = ditkit("doctor", *words, *long_average, "--start", "first")
    assert found.exit_code == 0, found.output
    assert "start     first: step 1 fits" in lines(found, "ok")
    assert "the random start" not in found.stdout
    assert "the random start" in ditkit("doctor", *words, *long_average).stdout
    other = ditkit("doctor", *words, "--steps", 300, "--out", "second", "--start", "first", "model.encoder_blocks=2")
    assert other.exit_code == 1
    assert "model.encoder_blocks is 3 there, 2 here" in lines(other, "fail")
    again = ditkit("doctor", *words, "--steps", 300, "--out", "first", "start=first")
    assert "holds another run: start" in again.stdout
