"""`ditkit evaluate`: scores with floor and protocol; different protocols are not compared."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditkit.data import open_source
from ditkit.evaluation import read_images
from ditkit.recipes.score_files import Scores, read_scores

QUICK = ["--real", 120, "classifier.steps=8"]


def ok(result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A copy of the tiny run, which may grow samples."""
    return shutil.copytree(tiny_run, tmp_path_factory.mktemp("evaluated") / "tiny")


@pytest.fixture(scope="module")
def evaluated(ditkit, run):
    """(what was printed, scores) of 30 balanced samples of the run."""
    result = ditkit("evaluate", run, "--n", 30, "--classes", "balanced", "--extractor", "toy", *QUICK)
    out = ok(result)
    file = out.rsplit("scores ", 1)[1].strip()
    return out, file, read_scores(Path(file))


def test_a_run_is_sampled_and_scored_in_every_space(evaluated, run):
    out, file, scores = evaluated
    assert str(run / "samples") in file and file.endswith("/scores.json")
    assert list(scores.spaces) == ["pixels", "toy", "classifier"]
    for name, space in scores.spaces.items():
        found = {score.metric: score for score in space.scores}
        assert {"frechet", "kernel", "precision", "recall"} <= set(found) and set(space.floor) <= set(found)
        assert ("agreement" in found) == (name == "classifier")
        assert found["frechet"].value > space.floor["frechet"] >= 0, (
            "three steps of training are worse than real images"
        )
        protocol = found["frechet"].protocol
        assert (protocol.n, protocol.labels, protocol.reference_n, protocol.seed) == (30, "balanced", 120, 0)
        assert protocol.sampler["solver"] == "euler" and protocol.evaluations == 4 and protocol.guidance is None
        assert protocol.extractor == space.extractor
    assert 0 < scores.classifier_accuracy <= 1 and "of held-out real images named correctly" in out
    assert "real half/half" in out and "protocol   pixels: custom: 30 images of 8x8, balanced labels" in out
    assert "protocol   toy: the same, but extractor toy" in out


def test_the_folder_of_its_samples_scores_the_same(ditkit, evaluated, tmp_path):
    _, file, scores = evaluated
    folder = shutil.copytree(file.rsplit("/", 1)[0], tmp_path / "samples")
    ok(ditkit("evaluate", folder, "--data", "digits", "--extractor", "toy", *QUICK))
    assert read_scores(folder).spaces == scores.spaces
    ok(ditkit("evaluate", folder / "samples.npz", "--data", "digits", "--extractor", "toy", *QUICK))
    given = read_scores(folder / "samples.scores.json")
    for name, space in given.spaces.items():
        values = {s.metric: pytest.approx(s.value, rel=1e-6) for s in space.scores}  # sums in another memory order
        assert {s.metric: s.value for s in scores.spaces[name].scores} == values
        assert space.scores[0].protocol.labels == "given", "how an .npz was made is not known"


def test_real_images_as_plain_png_reach_the_floor(ditkit, tmp_path):
    images, _ = read_images(open_source("digits"), 120)
    for i, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{i:03d}.png")
    ok(ditkit("evaluate", tmp_path, "--data", "digits", "--real", 120, "classifier.steps=8"))
    scores = {s.metric: s.value for s in read_scores(tmp_path).spaces["pixels"].scores}
    assert scores["frechet"] == pytest.approx(0, abs=1e-3) and scores["precision"] == scores["recall"] == 1
    metrics = {s.metric for s in read_scores(tmp_path).spaces["classifier"].scores}
    assert "agreement" not in metrics and "inception_score" in metrics, "plain files have no labels"


def test_larger_colour_images_and_unlabelled_data(ditkit, pictures, tmp_path):
    real, fake = pictures(tmp_path / "real", n=12, size=(40, 48)), tmp_path / "fake.npz"
    rng = np.random.default_rng(0)
    np.savez(fake, arr_0=rng.integers(0, 255, (10, 40, 48, 3), dtype=np.uint8), label=np.arange(10) % 2)
    out = ok(ditkit("evaluate", fake, "--data", real, "classifier.steps=4"))
    assert "agreement" in out
    assert read_scores(tmp_path / "fake.scores.json").spaces["classifier"].extractor.endswith("-32x32")
    result = ditkit("evaluate", fake, "--data", pictures(tmp_path / "flat", classes=("",), n=12, size=(40, 48)))
    assert "classifier" not in ok(result) and "no classes: no classifier" in result.stderr


def test_real_images_that_cannot_be_used_are_counted_and_named(ditkit, pictures, tmp_path):
    real, fake = pictures(tmp_path / "real"), tmp_path / "fake.npz"
    for name in ("cat/bad.png", "dog/worse.png"):
        (real / name).write_bytes(b"no picture")
    np.savez(fake, arr_0=np.random.default_rng(0).integers(0, 255, (10, 24, 40, 3), dtype=np.uint8))
    out = ok(ditkit("evaluate", fake, "--data", real, "classifier.steps=4"))
    assert f"left out   2 real images that cannot be used: {real}/cat/bad.png, {real}/dog/worse.png" in out
    scores = read_scores(tmp_path / "fake.scores.json")
    assert (scores.unusable, len(scores.unusable_paths)) == (2, 2)
    assert scores.spaces["pixels"].scores[0].protocol.reference_n == 20


def test_data_and_model_must_belong_together(ditkit, refused, pictures, run, tmp_path):
    two = pictures(tmp_path / "two", size=(8, 8))
    line = refused("evaluate", run, "--n", 11, "--data", two)
    assert "it has 10 classes, the data 2, and 1 channels, the data 3 (data.channels=1 reads them so)" in line
    assert "10 classes, the data 2;" in refused("evaluate", run, "--n", 11, "--data", two, "data.channels=1")
    assert not list((run / "samples").glob("*n11-*"))
    ten = pictures(tmp_path / "ten", classes=[f"c{i}" for i in range(10)], n=4, size=(8, 8))
    result = ditkit("evaluate", run, "--n", 11, "--data", ten, "data.channels=1", "classifier.steps=4")
    assert "are not those that the model was trained on" in ok(result) + result.stderr
    own = ditkit("evaluate", run, "--n", 11, *QUICK)
    assert "are not those that" not in ok(own) + own.stderr


def test_labels_beyond_the_data_give_no_agreement(ditkit, pictures, tmp_path):
    shades = np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(24, 1).repeat(24, 2).repeat(3, 3)
    np.savez(tmp_path / "x.npz", arr_0=shades, label=np.arange(6))
    result = ditkit("evaluate", tmp_path / "x.npz", "--data", pictures(tmp_path / "real"), "classifier.steps=4")
    assert "agreement" not in ok(result) and "classes go up to 5, the data have 2" in result.stderr


def test_comparison_names_every_difference(ditkit, refused, evaluated, run):
    _, file, _ = evaluated
    same = ["evaluate", run, "--n", 30, "--classes", "balanced", *QUICK]
    out = ok(ditkit(*same, "--weights", "raw", "--against", file))
    lines = [line.split() for line in out.splitlines()]
    compared = lines[lines.index(["space", "score", "there", "here", "here", "is"]) + 1 :]
    assert len(compared) == 12 and {line[-1] for line in compared} <= {"better", "worse", "equal", "unclear"}
    assert f"there: {run} (averaged (EMA), step 3)\nhere:  {run} (raw, step 3)" in out
    unclear = sum(line[-1] == "unclear" for line in compared)
    assert unclear and f"noise: {unclear} of 12 gaps are unclear" in out
    itself = ok(ditkit(*same, "--extractor", "toy", "--against", file)).splitlines()
    assert sum(line.rstrip().endswith(" equal") for line in itself) == 17
    before = sorted((run / "samples").iterdir())
    line = refused(*same, "--seed", 1, "--steps", 3, "--against", file)
    assert sorted((run / "samples").iterdir()) == before, "refused before anything is sampled"
    for difference in ("sampler.steps 4 there, 3 here", "seed 0 there, 1 here"):
        assert line.count(difference) == 1, "said once, not for every space"
    assert "--force compares" in line
    forced = ditkit(*same, "--seed", 1, "--steps", 3, "--against", file, "--force")
    assert "(protocols differ)" in ok(forced)


def test_scores_tell_which_weights_were_scored(evaluated):
    out, _, scores = evaluated
    assert scores.weights == "averaged (EMA), step 3" and f"weights    {scores.weights}" in out


def test_bad_input(refused, pictures, run, evaluated, tmp_path):
    npz = tmp_path / "x.npz"
    np.savez(npz, arr_0=np.zeros((6, 8, 8, 1), np.uint8))
    for says, words in {
        "no such run, model folder or checkpoint file": [tmp_path / "gone"],
        "which real images? give --data": [npz],
        "which samples? name a run": [],
        "did you mean 'adm-imagenet256-50k'?": [
            npz,
            "--data",
            "digits",
            "--protocol",
            "adm-imagenet256",
        ],
        "data 'nowhere': no such file or folder": [npz, "--data", "nowhere"],
        "no such file or folder; give 'digits'": [run, "--data", "nowhere", "--n", 9],
        "nothing is sampled: leave n=3 out": [npz, "--data", "digits", "--n", 3],
        "cannot load extractor 'nowhere': no folder of that name": [npz, "--data", "digits", "--extractor", "nowhere"],
        "no scores.json there": [run, "--against", tmp_path],
        "did you mean 'classifier.steps'": [run, "classifier.stesp=3"],
        "n: input should be greater": [run, "--n", 0],
    }.items():
        assert says in refused("evaluate", *words)
    (tmp_path / "scores.json").write_text("[]")
    assert "not a scores.json" in refused("evaluate", run, "--against", tmp_path)
    (tmp_path / "bad.npz").write_bytes(npz.read_bytes()[:100])
    assert "not an .npz with arr_0" in refused("evaluate", tmp_path / "bad.npz", "--data", "digits")
    (tmp_path / "empty").mkdir()
    assert "holds no PNG files" in refused("evaluate", tmp_path / "empty", "--data", "digits")
    classes = pictures(tmp_path / "classes")
    assert f"one by one ({classes}/cat)" in refused("evaluate", classes, "--data", "digits")
    assert not list((run / "samples").glob("*n9-*"))


def test_scores_read_back(evaluated):
    _, file, scores = evaluated
    assert Scores.model_validate(json.loads(Path(file).read_text())) == scores
    assert torch.isfinite(torch.tensor([s.value for space in scores.spaces.values() for s in space.scores])).all()


def test_time_and_peak_memory_are_told(evaluated):
    found = re.search(r"^took       \d+ s, at most (\d+\.\d\d) GiB of memory$", evaluated[0], re.MULTILINE)
    assert found and 0.1 < float(found[1]) < 64


def test_seeds_may_differ_where_the_user_says_so(ditkit, refused, evaluated, run):
    _, file, _ = evaluated
    words = ["evaluate", run, "--n", 30, "--classes", "balanced", "--seed", 1, *QUICK, "--against", file]
    assert "seed 0 there, 1 here" in refused(*words)
    assert "--ignore sed: choose from" in refused(*words, "--ignore", "sed")
    assert "sampler.steps 4 there, 3 here" in refused(*words, "--steps", 3, "--ignore", "seed")
    out = ok(ditkit(*words, "--ignore", "seed"))
    assert "here is" in out and "protocols differ" not in out


def test_a_reference_of_ones_own_is_looked_at_by_its_own_network(ditkit, refused, evaluated, run, tmp_path):
    file = tmp_path / "mine.npz"
    ok(ditkit("evaluate", "--make-reference", "digits", "--extractor", "toy", "--out", file))
    out = ok(ditkit("evaluate", run, "--n", 30, "--classes", "balanced", "--reference", file, "--out", tmp_path / "x"))
    assert list(read_scores(tmp_path / "x").spaces) == ["toy"] and "Inception" not in out
    with np.load(file) as found:
        np.savez(tmp_path / "taught.npz", **{**found, "extractor": "selftaught-0123abcd"})
    line = refused("evaluate", run, "--n", 30, "--reference", tmp_path / "taught.npz")
    assert "taught.npz: its statistics are of selftaught-0123abcd: say by --extractor where that network is" in line


@pytest.mark.long
def test_several_processes_share_the_sampling_and_one_scores(own_process, ditkit, evaluated, run, tmp_path):
    """Each samples its part of one folder, the first prints; the scores are those of one process."""
    _, _, scores = evaluated
    copy = shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("samples"))
    process = own_process(
        "evaluate", copy, "n=30", "--classes", "balanced", "--extractor", "toy", *QUICK, "--chunk", 8, "--processes", 2
    )
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert out.count("\nscores ") == 1 and out.count("took  ") == 1
    found = read_scores(Path(out.split("scores     ")[1].splitlines()[0]))
    assert found.spaces.keys() == scores.spaces.keys()
    ok(ditkit("evaluate", run, "--n", 30, "--classes", "balanced", "--extractor", "toy", *QUICK, "--chunk", 8))
    alone = max(run.glob("samples/*/scores.json"), key=lambda p: p.stat().st_mtime_ns)
    assert read_scores(alone).spaces == found.spaces


def test_what_is_not_sampled_is_the_first_processes_alone(ditkit, monkeypatch, tmp_path):
    np.savez(tmp_path / "x.npz", arr_0=np.zeros((6, 8, 8, 1), np.uint8))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    for words in (
        [tmp_path / "x.npz", "--data", "digits"],
        ["--make-reference", "digits", "--extractor", "toy", "--out", tmp_path / "mine.npz"],
        ["--reconstruct", "pixels", "--data", "digits", "--out", tmp_path / "codec"],
    ):
        assert ok(ditkit("evaluate", *words)) == ""
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]
