"""Reference files: ADM's, those of FID tools, and our own, which others read too."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
import torch

from ditkit.data import open_source
from ditkit.evaluation import Moments, extract, make_reference, read_images
from ditkit.evaluation.named import NAMED
from ditkit.evaluation.protocols import Rules
from ditkit.evaluation.reference import images_fingerprint
from ditkit.evaluation.reference_files import BadReference, open_reference, write_reference
from ditkit.evaluation.samples import NpzImages, given_protocol
from ditkit.evaluation.score import score_images
from ditkit.pretrained.toy import ToyExtractor
from tests.evaluation.scenery import Eye, write_adm

pytestmark = pytest.mark.filterwarnings("ignore::ditkit.evaluation.FewSamples")


@pytest.fixture(scope="module")
def digits():
    return read_images(open_source("digits"), 300)


def test_adms_file_gives_its_own_moments_and_features_of_its_images(tmp_path):
    file = open_reference(write_adm(tmp_path / "ref.npz", n=40))
    assert file.parts == ("arr_0", "mu", "sigma", "mu_s", "sigma_s") and file.extractor == ""
    assert file.fingerprint == hashlib.sha256((tmp_path / "ref.npz").read_bytes()).hexdigest()[:16]
    found = file.seen_by(Eye())
    with np.load(tmp_path / "ref.npz") as data:
        assert np.array_equal(found.moments.mean, data["mu"]) and np.array_equal(found.spatial.mean, data["mu_s"])
        images = torch.from_numpy(data["arr_0"]).permute(0, 3, 1, 2)
    assert torch.equal(found.features, extract(Eye(), images)), "precision and recall see arr_0"
    assert not torch.allclose(found.moments.mean, Moments.of(found.features).mean), "which FID does not"
    assert (found.fingerprint, found.moments.count, found.notes) == (file.fingerprint, 0, ())


def test_statistics_alone_serve_distances_and_say_what_they_cannot(tmp_path):
    write_adm(tmp_path / "ref.npz", n=40)
    with np.load(tmp_path / "ref.npz") as data:
        np.savez(tmp_path / "stats.npz", mu=data["mu"], sigma=data["sigma"])
    found = open_reference(tmp_path / "stats.npz").seen_by(Eye())
    assert not len(found.features) and found.floor() == {} and "no ADM number" in found.notes[0]
    images = torch.randint(0, 255, (30, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    protocol = given_protocol(30, found)
    assert "real images of an untold number" in protocol.sentence()
    scores = {s.metric: s.value for s in score_images(images, None, Eye(), found, protocol)}
    assert set(scores) == {"frechet", "inception_score"}
    whole = open_reference(tmp_path / "ref.npz").seen_by(Eye())
    assert scores["frechet"] == score_images(images, None, Eye(), whole, given_protocol(30, whole))[0].value
    for metric, says in {"recall": "statistics and no images", "spatial_frechet": "no spatial moments"}.items():
        with pytest.raises(ValueError, match=says):
            score_images(images, None, Eye(), found, protocol, metrics=[metric])
    with pytest.raises(BadReference, match=r"holds no images, so toy-extractor.* cannot use it"):
        open_reference(tmp_path / "stats.npz").seen_by(ToyExtractor())


def test_another_extractor_looks_at_the_images_and_says_so(tmp_path):
    file = open_reference(write_adm(tmp_path / "ref.npz", n=40))
    found = file.seen_by(ToyExtractor())
    made = make_reference(ToyExtractor(), file.images)
    assert torch.equal(found.features, made.features) and torch.equal(found.moments.mean, made.moments.mean)
    assert found.moments.count == 40 and "moments of the 40 images in ref.npz" in found.notes[0]


def test_ones_own_reference_is_what_its_images_give(tmp_path, digits):
    source = open_source("digits")
    seen: list[tuple[int, int]] = []
    file, bad = write_reference(source, Eye(), tmp_path / "mine.npz", progress=lambda *at: seen.append(at))
    images, _ = read_images(source)
    direct = make_reference(Eye(), images)
    back = file.seen_by(Eye())
    assert bad == [] and seen[-1] == (1797, 1797) and back.fingerprint == direct.fingerprint
    assert torch.equal(back.features, direct.features) and back.moments.count == 1797
    for name in ("moments", "spatial"):
        mine, theirs = getattr(back, name), getattr(direct, name)
        assert torch.allclose(mine.mean, theirs.mean, rtol=1e-12, atol=1e-12)
        assert torch.allclose(mine.covariance, theirs.covariance, rtol=1e-9, atol=1e-12)
    again, _ = write_reference(source, Eye(), tmp_path / "again.npz")
    assert again.path.read_bytes() == file.path.read_bytes(), "the same images make the same bytes"


def test_moments_are_of_all_images_though_only_some_are_kept(tmp_path):
    source = open_source("digits")
    file, _ = write_reference(source, Eye(), tmp_path / "some.npz", most=100)
    images, _ = read_images(source)
    kept, _ = read_images(source, 100)
    assert torch.equal(file.images[:], kept), "spread evenly, as a limit on real images does"
    found = file.seen_by(Eye())
    assert len(found.features) == 100 and found.moments.count == 1797
    assert found.fingerprint == images_fingerprint(images)
    assert torch.allclose(found.moments.mean, Moments.of(extract(Eye(), images)).mean, atol=1e-12)


def test_a_floor_is_by_the_rules_and_never_of_other_moments(tmp_path, digits):
    """Half of 10,000 images against the other half is no floor of a distance to the moments of 1,281,167."""
    whole = make_reference(Eye(), digits[0])
    assert set(whole.floor()) == {"frechet", "kernel", "mind", "precision", "recall"}
    for file in (
        open_reference(write_adm(tmp_path / "ref.npz", n=40)),
        write_reference(open_source("digits"), Eye(), tmp_path / "some.npz", most=100)[0],
    ):
        assert set(file.seen_by(Eye()).floor()) == {"kernel", "mind", "precision", "recall"}
    far = whole.floor(rules=Rules(neighbours=1, subsets=3, subset_size=50))
    assert far["recall"] < whole.floor()["recall"] and far["kernel"] != whole.floor()["kernel"]


def test_adms_evaluator_can_read_ours(tmp_path):
    """Names, types and shapes that it asks for: arr_0 uint8 NHWC, moments in float64."""
    write_reference(open_source("digits"), Eye(), tmp_path / "mine.npz", most=50)
    with np.load(tmp_path / "mine.npz", allow_pickle=False) as data:
        assert data["arr_0"].dtype == np.uint8 and data["arr_0"].shape == (50, 8, 8, 1)
        for mean, covariance, width in (("mu", "sigma", Eye.width), ("mu_s", "sigma_s", 6)):
            assert data[mean].shape == (width,) and data[covariance].shape == (width, width)
            assert data[mean].dtype == data[covariance].dtype == np.float64


def test_a_name_demands_the_published_file(tmp_path):
    adm = NAMED["adm-imagenet256-50k"]
    with pytest.raises(BadReference, match=r"its images are 8x8: its reference is VIRTUAL_imagenet256_labeled\.npz"):
        open_reference(write_adm(tmp_path / "ref.npz", n=40)).check(adm)
    small, file = dataclasses.replace(adm, size=(8, 8)), write_adm(tmp_path / adm.reference, n=40)
    (tmp_path / "VIRTUAL_lsun_bedroom.npz").write_bytes(file.read_bytes())
    with pytest.raises(BadReference, match="not the file of protocol adm-imagenet256-50k by its name; if it is"):
        open_reference(tmp_path / "VIRTUAL_lsun_bedroom.npz").check(small)
    for lengths, says in {(): "arr_0 has 40 rows, not 10,000", ("arr_0",): "mu has 5 rows, not 2,048"}.items():
        left = {part: n for part, n in adm.lengths.items() if part not in lengths}
        with pytest.raises(BadReference, match=says):
            open_reference(file).check(dataclasses.replace(small, lengths=left))
    open_reference(file).check(dataclasses.replace(small, lengths={"arr_0": 40, "mu": 5, "mu_s": 6}))
    told = open_reference(file).unverified(adm)
    assert open_reference(file).fingerprint in told and "which is not verified" in told and adm.origin in told
    np.savez(tmp_path / "stats.npz", mu=np.zeros(4), sigma=np.eye(4))
    with pytest.raises(
        BadReference, match=r"needs mu_s, sigma_s, arr_0 too: its reference is VIRTUAL.*, from https://"
    ):
        open_reference(tmp_path / "stats.npz").check(adm)
    own, _ = write_reference(open_source("digits"), Eye(), tmp_path / "mine.npz", most=20)
    with pytest.raises(BadReference, match="made by ditkit, protocol adm-imagenet256-50k is another"):
        own.check(adm)


def test_nonsense_is_one_line(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "array.npz", np.zeros(3))
    (tmp_path / "array.npz.npy").rename(tmp_path / "array.npz")
    np.savez(tmp_path / "empty.npz", x=np.zeros(3))
    np.savez(tmp_path / "nan.npz", mu=np.full(3, np.nan), sigma=np.eye(3))
    np.savez(tmp_path / "objects.npz", mu=np.array([{}]), sigma=np.eye(3))
    np.savez(tmp_path / "float.npz", arr_0=np.zeros((2, 4, 4, 3)))
    np.savez(tmp_path / "odd.npz", mu=np.zeros(3), sigma=np.eye(4))
    for name, says in {
        "gone.npz": "no such file",
        "text.npz": "not an .npz of reference.*no archive of arrays at all",
        "nan.npz": "mu or sigma holds NaN",
        "objects.npz": "not an .npz of reference.*holds Python objects, which are never loaded",
        "float.npz": "^[^ ]*float.npz: arr_0 is float64",
        "array.npz": "not an .npz of reference",
        "empty.npz": "neither images",
        "odd.npz": r"mu has shape \(3,\) and sigma \(4, 4\), which do not fit",
    }.items():
        with pytest.raises(BadReference, match=says) as raised:
            open_reference(tmp_path / name)
        assert "\n" not in str(raised.value) and "pickle" not in str(raised.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_of_an_npz_are_cut_like_a_tensor(tmp_path, save):
    array = np.random.default_rng(0).integers(0, 255, (7, 4, 6, 3), dtype=np.uint8)
    save(tmp_path / "x.npz", first=np.zeros(5), arr_0=array)
    images = NpzImages(tmp_path / "x.npz")
    assert len(images) == 7 and isinstance(images.array, np.memmap) == (save is np.savez), "stored: stays on disk"
    for rows in (slice(2, 5), slice(None), slice(5, 99)):
        assert torch.equal(images[rows], torch.from_numpy(array[rows]).permute(0, 3, 1, 2))
