"""`ditkit bench`: a table of each further benchmark, and one line for what it cannot use."""

from __future__ import annotations

import json

import pytest

TINY = ("model.width=16", "model.heads=2", "--batch", "2", "--device", "cpu", "--threads", "1")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def numbers(home) -> dict:
    (file,) = (home / "runs" / "bench").iterdir()
    return json.loads(file.read_text())


def test_train_compares_on_random_numbers(ditkit, home):
    words = ("training.compile=true", "training.backend=eager", "--compare", "--repeats", "2", "--steps", "1")
    done = ditkit("bench", "train", "digits.sit", *TINY, *words, "--peak", "0.1")
    assert done.exit_code == 0, done.output
    for said in ("plain fp32", "products alone", "ms a step", "forward", "times plain fp32", "compiled (eager)",
                 "% of 0.1 TFLOP/s (given)", "compiling 4 blocks with eager", "data: random, in memory"):  # fmt: skip
        assert said in done.stdout, said
    found = numbers(home)
    assert found["command"] == (
        "ditkit bench train digits.sit batch=2 steps=1 repeats=2 threads=1 compare=true peak=0.1 model.width=16 "
        "model.heads=2 training.compile=true training.backend=eager"
    )
    assert found["settings"]["batch"] == 2 and found["results"]["training"]["batch"] == 2


def test_train_and_loader_on_data(ditkit, home):
    done = ditkit("bench", "train", "digits.sit", *TINY, "--data", "digits", "--repeats", "1", "--steps", "1",
                  "--ceiling", "false")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "data: the recipe's" in done.stdout and "products" not in done.stdout
    assert numbers(home)["command"].split()[-3:] == ["data=digits", "model.width=16", "model.heads=2"]
    done = ditkit("bench", "loader", "digits.sit", "--batch", "4", "--seconds", "0.02", "--out", "loader.json")
    assert done.exit_code == 0, done.output
    assert "samples/s" in done.stdout
    rows = json.loads((home / "loader.json").read_text())["results"]["rows"]
    assert {row["workers"] for row in rows} == {0, 1, 2} and {row["decode"] for row in rows} == {True, False}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("encode", "digits.repa", "--batch", "2", "--repeats", "1"), "random weights, as `ditkit teacher` makes it"),
        (("attention", "digits.sit", *TINY, "--repeats", "1"), "flash 8"),
        (
            ("evaluation", "digits.sit", "--batch", "2", "--repeats", "1", "extractor=toy", "samples=30", "width=4"),
            "of two sets of 30 x 4",
        ),
    ],
)
def test_other_benchmarks_print_a_table(ditkit, home, words, said):
    done = ditkit("bench", *words)
    assert done.exit_code == 0, done.output
    assert said in done.stdout
    assert numbers(home)["what"] == words[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("training",), "no benchmark 'training'; did you mean 'train'"),
        (("sampling", "digits.sit", "--compare"), "compare is a setting of bench train"),
        (("encode", "digits.repa", "--data", "x"), "data is a setting of bench loader and train"),
        (("attention", "digits.sit", "training.compile=true"), "of a recipe only model.* matters"),
        (("train", "digits.sit", "sampling.steps=3"), "sampling.steps=3 changes nothing here"),
        (("train", "digits.sit", "training.float8=true", "--device", "cpu"), "cpu has no float8 matrix products"),
        (("train", "digits.sit", "--data", "nowhere"), "nowhere"),
    ],
)
def test_what_has_no_use_is_refused_in_one_line(ditkit, home, words, said):
    done = ditkit("bench", *words)
    assert done.exit_code != 0 and said in done.output
    assert not (home / "runs").exists()
