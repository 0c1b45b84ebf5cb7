"""`ditkit evaluate` as papers need it: named protocols, reference files, files of other code bases, scores by class."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from ditkit.evaluation.named import NAMED
from ditkit.evaluation.score import sorted_by_class
from ditkit.pretrained.extractors import load_extractor
from ditkit.recipes.score_files import read_scores
from tests.evaluation.scenery import Eye, write_adm

ADM = "adm-imagenet256-50k"
pytestmark = pytest.mark.filterwarnings("ignore::ditkit.evaluation.FewSamples")


def ok(result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """ADM's protocol with 30 images of 8 x 8, and a small network for Inception."""
    monkeypatch.setitem(NAMED, ADM, dataclasses.replace(NAMED[ADM], n=30, size=(8, 8), lengths={}))
    monkeypatch.setattr("ditkit.evaluation.reference_files.WIDTH", Eye.width)
    monkeypatch.setattr(
        "ditkit.recipes.scoring.load_extractor",
        lambda text, device: Eye() if text == "inception" else load_extractor(text, device),
    )


@pytest.fixture
def foreign(tmp_path):
    """30 images as other code bases leave them: arr_0 and arr_1."""
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "dit.npz", rng.integers(0, 200, (30, 8, 8, 3), dtype=np.uint8), np.arange(30) % 4)
    return tmp_path / "dit.npz"


def test_a_foreign_archive_by_adms_protocol(ditkit, foreign, tmp_path):
    reference = write_adm(tmp_path / NAMED[ADM].reference)
    out = ok(ditkit("evaluate", foreign, "--protocol", ADM, "--reference", reference, "--out", tmp_path / "s.json"))
    scores = read_scores(tmp_path / "s.json")
    assert list(scores.spaces) == ["inception"] and scores.data == NAMED[ADM].reference
    found = scores.spaces["inception"].scores
    assert [s.metric for s in found] == ["frechet", "spatial_frechet", "inception_score", "precision", "recall"]
    protocol = found[0].protocol
    assert (protocol.name, protocol.labels, protocol.rules.distances, protocol.rules.split) == (
        ADM,
        "given",
        "adm",
        5000,
    )
    assert (
        f"{ADM}: 30 given images of 8x8" in out
        and "distances adm" in out
        and f"beware     {ADM}: balanced labels" in out
    )
    assert not (tmp_path / "dit.scores.json").exists(), "--out names the only file"


def test_a_run_by_adms_protocol_is_checked_before_it_is_sampled(ditkit, refused, tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "tiny")
    reference = write_adm(tmp_path / NAMED[ADM].reference)
    asked, before = ["evaluate", run, "--protocol", ADM], sorted((run / "samples").iterdir())
    for says, words in {
        "n must be 30, not 20": ["--n", 20, "--reference", reference],
        "labels must be random or balanced or balanced_sorted or none, not given": [
            "--n", 30, "--classes", "3", "--reference", reference,
        ],
        "its reference is a file: give --reference VIRTUAL_imagenet256_labeled.npz (https://": ["--n", 30],
        "give one of them": ["--n", 30, "--reference", reference, "--data", "digits"],
        "gone.npz: no such file": ["--n", 30, "--reference", tmp_path / "gone.npz"],
    }.items():  # fmt: skip
        assert says in refused(*asked, *words)
    assert sorted((run / "samples").iterdir()) == before
    out = ok(ditkit(*asked, "--n", 30, "--classes", "balanced", "--reference", reference))
    assert f"{ADM}: 30 images of 8x8, balanced labels" in out


def test_without_inceptions_weights_nothing_is_pretended(refused, foreign, tmp_path, monkeypatch):
    monkeypatch.setattr("ditkit.recipes.scoring.load_extractor", load_extractor)
    reference = write_adm(tmp_path / NAMED[ADM].reference)
    line = refused(
        "evaluate",
        foreign,
        "--protocol",
        ADM,
        "--reference",
        reference,
        "--extractor",
        f"inception:{tmp_path / 'no.pth'}",
    )
    assert "cannot load extractor inception" in line and "--extractor inception:SOURCE" in line
    assert not (tmp_path / "dit.scores.json").exists()


def test_one_makes_ones_own_reference_and_uses_it(ditkit, refused, pictures, tmp_path):
    folder, file = pictures(tmp_path / "mine", size=(12, 12)), tmp_path / "mine.npz"
    (folder / "cat" / "broken.png").write_bytes(b"no picture")
    out = ok(ditkit("evaluate", "--make-reference", folder, "--out", file, "--size", 8))
    assert "images     20 of" in out and "8x8; 20 of them in the file" in out and "network    adm-inception-eye" in out
    assert "left out   1 that cannot be used" in out
    np.savez(tmp_path / "fake.npz", arr_0=np.random.default_rng(0).integers(0, 255, (30, 8, 8, 3), dtype=np.uint8))
    out = ok(ditkit("evaluate", tmp_path / "fake.npz", "--reference", file))
    known = out.split("against 20 real images (")[1].split(")")[0]
    by_file = read_scores(tmp_path / "fake.scores.json").spaces["inception"]
    assert {s.metric for s in by_file.scores} >= {"frechet", "spatial_frechet", "recall", "kernel"}
    ok(ditkit(
        "evaluate", tmp_path / "fake.npz", "--data", folder, "--extractor", "inception", "classifier.steps=2"
    ))  # fmt: skip
    by_folder = read_scores(tmp_path / "fake.scores.json").spaces["inception"]
    assert by_folder.scores[0].protocol.reference == known, "the same images, wherever they come from"
    values = {s.metric: pytest.approx(s.value, rel=1e-6) for s in by_folder.scores}
    assert {s.metric: s.value for s in by_file.scores} == values
    assert "made by ditkit" in refused("evaluate", tmp_path / "fake.npz", "--reference", file, "--protocol", ADM)


def test_statistics_alone_are_taken_for_what_they_are(ditkit, foreign, tmp_path):
    with np.load(write_adm(tmp_path / "whole.npz")) as data:
        np.savez(tmp_path / "stats.npz", mu=data["mu"], sigma=data["sigma"])
    result = ditkit("evaluate", foreign, "--reference", tmp_path / "stats.npz")
    assert "precision" not in ok(result) and "frechet" in result.stdout
    assert "no recall in adm-inception-eye: the reference holds statistics and no images" in result.stderr
    assert "give no ADM number" in result.stderr


def test_statistics_of_an_unnamed_network_are_whose_the_user_says(ditkit, refused, foreign, tmp_path):
    width = load_extractor("toy", torch.device("cpu")).width
    np.savez(tmp_path / "stats.npz", mu=np.zeros(width), sigma=np.eye(width))
    asked = ("evaluate", foreign, "--reference", tmp_path / "stats.npz")
    said = f"statistics are of a network that it does not name (width {width})"
    assert said in refused(*asked) and "say by --extractor" in refused(*asked)
    assert said in refused(*asked, "--extractor", "inception")
    result = ditkit(*asked, "--extractor", "toy")
    assert "frechet" in ok(result)
    assert "stats.npz does not tell which network made it: taken for toy-extractor" in result.stderr


def test_a_single_image_is_refused_by_name_before_anything_is_trained(refused, tmp_path):
    np.savez(tmp_path / "one.npz", np.zeros((1, 8, 8, 1), dtype=np.uint8))
    assert "one.npz holds one image" in refused("evaluate", tmp_path / "one.npz", "--data", "digits")


def test_scores_by_class(ditkit, refused, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", arr_0=rng.integers(0, 255, (40, 8, 8, 1), dtype=np.uint8), label=np.arange(40) % 10)
    judged = ["evaluate", tmp_path / "x.npz", "--data", "digits", "--real", 120, "classifier.steps=8"]
    plain = ok(ditkit(*judged))
    assert "classifier agreement" not in plain
    out = ok(ditkit(*judged, "--per-class"))
    head = next(line for line in out.splitlines() if line.startswith("class "))
    assert head.split() == ["class", "pixels", "kernel", "classifier", "kernel", "classifier", "agreement"]
    space = read_scores(tmp_path / "x.scores.json").spaces["classifier"]
    assert list(space.classes["kernel"]) == [str(k) for k in range(10)]
    mean = sum(space.classes["agreement"].values()) / 10
    assert mean == pytest.approx({s.metric: s.value for s in space.scores}["agreement"]), "equal counts: the mean"


def test_an_archive_sorted_by_class_is_noticed():
    labels = torch.arange(50_000) // 50
    assert "no split of 5,000 holds more than 100 of 1000 classes" in sorted_by_class(labels)
    shuffled = labels[torch.randperm(50_000, generator=torch.Generator().manual_seed(0))]
    assert sorted_by_class(shuffled) == sorted_by_class(torch.arange(50_000) % 1000) == ""
    assert sorted_by_class(labels[:5000]) == "", "one split holds all there is"


def test_make_reference_in_bad_hands(refused, pictures, tmp_path):
    folder = pictures(tmp_path / "mine", n=2)
    for says, words in {
        "name it with --out FILE.npz": ["--make-reference", folder],
        "leave runs/x out": ["runs/x", "--make-reference", folder, "--out", tmp_path / "a.npz"],
        "make one of each": [
            "--make-reference", folder, "--out", tmp_path / "a.npz", "--extractor", "toy", "--extractor", "inception",
        ],
        "takes size, split and data.* alone": ["--make-reference", folder, "--out", tmp_path / "a.npz", "--seed", 3],
        "no such file or folder": ["--make-reference", tmp_path / "no", "--out", tmp_path / "a.npz"],
    }.items():  # fmt: skip
        assert says in refused("evaluate", *words)
    assert not list(tmp_path.glob("*.npz"))


def test_a_codec_is_scored_by_its_reconstructions(ditkit, refused, pictures, tmp_path, monkeypatch):
    rfid = dataclasses.replace(NAMED["rfid-imagenet-val"], n=20, reference_n=(20,))
    monkeypatch.setitem(NAMED, "rfid-imagenet-val", rfid)
    folder, out = pictures(tmp_path / "val", size=(16, 16)), tmp_path / "out"
    asked = ["evaluate", "--reconstruct", "toy", "--data", folder, "--protocol", "rfid-imagenet-val", "--out", out]
    said = ok(ditkit(*asked))
    found = {s.metric: s for space in read_scores(out).spaces.values() for s in space.scores}
    assert set(found) == {"frechet", "psnr", "ssim"} and {s.protocol.name for s in found.values()} == {
        "rfid-imagenet-val"
    }
    assert "never comparable with a gFID" in said and (out / "reconstructions.png").is_file()
    assert "n must be 20, not 10" in refused(*asked, "--n", 10)
    assert "takes images by --data FOLDER" in refused("evaluate", "--reconstruct", "toy")
    assert "give a number of images" in refused(*asked, "n=x")
