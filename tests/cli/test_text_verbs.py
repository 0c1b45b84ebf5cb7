"""Text models on the command line: train, sample by prompt, evaluate, GenEval, doctor; what cannot be is one line."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from ditkit.cli.keys import respell
from ditkit.evaluation.images import read_png


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    monkeypatch.setattr("ditkit.recipes.build.VALIDATION_IMAGES", 8)
    monkeypatch.setattr("ditkit.evaluation.geneval.scenes.ATTEMPTS", 5)


SMALL = (
    "model.depth=1", "model.width=32", "model.heads=2", "training.steps=2", "training.batch=4", "sampling.steps=2",
    "training.ema=0.5",
)  # fmt: skip


@pytest.fixture(scope="module")
def scenes(ditkit, tmp_path_factory):
    """A run of two steps on scenes."""
    folder = tmp_path_factory.mktemp("runs") / "scenes"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ditkit.recipes.build.VALIDATION_IMAGES", 8)
        result = ditkit("train", "t2i.scenes", "--out", folder, *SMALL)
    assert result.exit_code == 0, result.output
    assert f'next: ditkit sample {folder} --prompt "..."' in result.stdout
    return folder


def test_words_of_prompts():
    keys = {"prompt": "prompt", "negative": "negative", "seed": "seed", "geneval": "geneval"}
    assert respell(["--prompt", "a", "--prompt=b", "--negative", ""], set(), keys) == [
        "prompt=a", "prompt=b", "negative=",
    ]  # fmt: skip
    assert respell(["--geneval", "--seed", "3"], set(), keys) == ["geneval=auto", "seed=3"]
    assert respell(["--geneval=mine.jsonl"], set(), keys) == ["geneval=mine.jsonl"]
    for words in (["--prompt"], ["--seed", ""]):
        with pytest.raises(ValueError, match="its value is missing"):
            respell(words, set(), keys)


def test_pictures_by_prompt(ditkit, scenes, tmp_path):
    out = tmp_path / "out"
    words = ("--prompt", "two red circles", "--prompt", "", "--negative", "a blue square", "--size", "48x32")
    words += ("--guidance", 1, "--shift", 3)
    result = ditkit("sample", scenes, "--out", out, *words)
    assert result.exit_code == 0, result.output
    assert f"8 in {out}, 2 prompts, seed 0" in result.stdout
    assert "the negative prompt has no effect" in result.output and "shift 3" in result.stdout
    image, told = read_png(out / "000000.png")
    assert image.shape == (3, 48, 32) and told["prompt"] == "two red circles"
    assert json.loads((out / "request.json").read_text())["request"]["negative"] == "a blue square"
    assert read_png(tmp_path / "out-grid.png")[0].shape[2] == 2 * 128 + 8


def test_without_prompts_captions_of_the_data_are_drawn(ditkit, scenes, tmp_path):
    assert ditkit("sample", scenes, "--out", tmp_path / "out", "--n", 5).exit_code == 0
    asked = json.loads((tmp_path / "out" / "request.json").read_text())["request"]["prompts"]
    kept = json.loads((scenes / "environment.json").read_text())["data"]["captions"]
    assert asked == kept[:5] and all(asked)


def test_a_file_of_prompts(ditkit, refused, scenes, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a square"}\n{"text": "a circle"}\n')
    result = ditkit("sample", scenes, "--out", tmp_path / "out", "--prompts", tmp_path / "p.jsonl", "--n", 2)
    assert result.exit_code == 0 and "2 prompts" in result.stdout, result.output
    assert "no such file" in refused("sample", scenes, "--prompts", tmp_path / "none.txt")


def test_geneval_of_scenes(ditkit, scenes):
    result = ditkit("evaluate", scenes, "--geneval", "--n", 24)
    assert result.exit_code == 0, result.output
    for task in ("single object", "two objects", "counting", "colours", "position", "colour attribution", "overall"):
        assert task in result.stdout
    file = next((scenes / "samples").glob("*geneval.json"))
    told = json.loads(file.read_text())
    assert set(told["scores"]) == {"single_object", "two_object", "counting", "colors", "position", "color_attr"}
    assert told["overall"] == pytest.approx(sum(told["scores"].values()) / 6)
    assert len(told["result"]["images"]) == 24 and told["result"]["detector"] == "scenes"
    assert "SD3" in file.with_name(file.name.replace("geneval.json", "geneval.html")).read_text()


def test_evaluation_of_captions_with_labels(ditkit, tiny_text, tmp_path):
    folder = shutil.copytree(tiny_text, tmp_path / "run")
    result = ditkit("evaluate", folder, "--n", 20, "--real", 200, "classifier.steps=4")
    assert result.exit_code == 0, result.output
    assert "agreement" in result.stdout and re.search(r"20 images of \d+x\d+, prompts ", result.stdout)
    assert "not those that the model was trained on" not in result.output


@pytest.mark.long
def test_doctor_looks_at_the_text(ditkit, tmp_path):
    result = ditkit("doctor", "t2i.digits", "--out", tmp_path / "run", "--text", "toy", "text.length=4")
    assert result.exit_code == 0, result.output
    assert "toy-text-48-4-0: 4 tokens of width 48, pooled 48" in result.stdout
    assert "of 10 captions 10 are longer than the encoder reads" in result.stdout
    shifted = ditkit("doctor", "t2i.digits", "--out", tmp_path / "run", "sampling.shift=3")
    assert "training shifts times by 1, sampling by 3" in shifted.stdout
    wide = ditkit("doctor", "t2i.digits", "--out", tmp_path / "run", "model.patch=8", "model.width=32")
    assert "a patch holds 64 numbers and the model is 32 wide: velocity prediction" in wide.stdout
    lost = ditkit("doctor", "t2i.digits", "--out", tmp_path / "run", "--text", "clip:./none")
    assert lost.exit_code == 1 and "fail  text" in lost.stdout


def test_what_cannot_be_is_one_line(refused, ditkit, tiny_run, tiny_text, tmp_path):
    assert "give --prompt TEXT" in refused("sample", tiny_text, "--classes", "3")
    assert "it knows classes" in refused("sample", tiny_run, "--prompt", "a cat")
    assert "GenEval is for text models" in refused("evaluate", tiny_run, "--geneval")
    assert "GenEval brings its own prompts" in refused("evaluate", tiny_text, "--geneval", "--prompt", "a")
    assert "no such file of prompts" in refused("evaluate", tiny_text, "--geneval=none.jsonl")
    assert "--prompt: its value is missing" in refused("sample", tiny_text, "--prompt")
    assert "knows what it is: leave --source sd4 out" in refused("sample", tiny_text, "--source", "sd4")
    assert "--negative is given 2 times" in refused("sample", tiny_text, "--negative", "a", "--negative", "b")
    (tmp_path / "wide.csv").write_text("a,b\n1,2\n")
    assert "prompts are a .txt file" in refused("sample", tiny_text, "--prompts", tmp_path / "wide.csv")
    blocks = ("sampling.guidance.kind=skip_layer", "sampling.guidance.blocks=[9]", "--out", tmp_path / "out")
    assert "[9] names no block" in refused("sample", tiny_text, *blocks) and not (tmp_path / "out").exists()
    assert "none of the 512 images looked at has a caption" in refused(
        "train", "t2i.scenes", "--data", "digits", "--out", tmp_path / "run"
    )
    assert "reads no text, so --text has no use" in refused("train", "sit.s_2", "--text", "toy")
    assert not (tmp_path / "run").exists()


def test_show_lists_parameters_and_scores(ditkit):
    listed = ditkit("show", "--find", "sd3.").stdout
    assert "sd3.large_3_5" in listed and "8.06B" in listed
    assert "0.68" in ditkit("show", "sd3.d38_512").stdout and "GenEval" in ditkit("show", "sd3.d38_512").stdout
    assert "4.14" in ditkit("show", "--find", "repa_t2i").stdout
    assert "2,028,328,000" in ditkit("show", "sd3.medium", "--cost").stdout
