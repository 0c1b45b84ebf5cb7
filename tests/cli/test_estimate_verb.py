"""`ditkit estimate`: a table, what it assumes, one line for bad input."""

from __future__ import annotations

import json

import pytest

TINY = ("model.width=16", "model.heads=2", "training.batch=4", "--device", "cpu")


def test_it_says_what_it_takes_and_what_it_assumes(ditkit, tmp_path):
    done = ditkit("estimate", "digits.sit", *TINY, "--device-memory", "1", "--data", "digits")
    assert done.exit_code == 0, done.output
    for said in ("weights", "activations and gradients", "at most", "of 954 MiB: fits", "a checkpoint",
                 "a cache of 1,797 images", "images/s on 1 device", "assumed: 50 GMACs a second"):  # fmt: skip
        assert said in done.stdout, said


def test_a_measurement_gives_the_time(ditkit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--repeats", "1", "--steps", "1", "--ceiling", "false", "--out", "bench.json")
    assert ditkit("bench", "train", "digits.sit", *TINY, *words).exit_code == 0
    rate = json.loads((tmp_path / "bench.json").read_text())["results"]["arms"]["chosen"]["tflops_a_second"]
    done = ditkit("estimate", "digits.sit", *TINY, "--bench", "bench.json", "--processes", "2")
    assert done.exit_code == 0, done.output
    assert f"measured: {rate:.4g} TFLOP/s, digits.sit on cpu, fp32, batch 4" in done.stdout
    assert "2 devices" in done.stdout and "device-hours" in done.stdout


def test_too_much_is_said(ditkit):
    done = ditkit("estimate", "digits.sit", *TINY, "--device-memory", "0.0001")
    assert done.exit_code == 0 and "does not fit: set training.micro_batch" in done.stdout
    card = ditkit("estimate", "digits.sit", *TINY, "--gpu", "H100", "--utilisation", "0.5", "training.precision=bf16")
    assert "assumed: 50 % of 989.5 TFLOP/s" in card.stdout and " of 23" not in card.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--gpu", "Some card"), "no peak is known of it"),
        (("--bench", "nowhere.json"), "nowhere.json: No such file"),
        (("--bench", "x.json", "--gpu", "H100"), "--bench is a measurement"),
        (("--processes", "3"), "training.batch=4 does not divide over 3 processes"),
    ],
)
def test_bad_input_is_one_line(ditkit, words, said):
    done = ditkit("estimate", "digits.sit", *TINY, *words)
    assert done.exit_code != 0 and said in done.output
    assert "Traceback" not in done.output
