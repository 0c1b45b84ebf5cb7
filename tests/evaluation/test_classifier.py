"""The small classifier: good on digits, quick, deterministic, for other shapes too."""

from __future__ import annotations

import time

import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from ditkit.evaluation.classifier import ClassifierSettings, _augment, read_classifier, split, train_classifier
from ditkit.evaluation.features import extract
from ditkit.evaluation.metrics import agreement, inception_score
from ditkit.evaluation.score import ClassifyingExtractor
from ditkit.protocols import Extractor


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    images = torch.from_numpy((data.images * (255 / 16)).round()).to(torch.uint8)[:, None]
    return images, torch.from_numpy(data.target)


@pytest.fixture(scope="module")
def trained(digits):
    start = time.process_time()
    classifier = train_classifier(*digits, [str(i) for i in range(10)], seed=0)
    return classifier, time.process_time() - start


def test_it_names_held_out_digits_and_is_quick(trained, digits):
    classifier, seconds = trained
    assert classifier.accuracy > 0.97
    assert seconds < 30, "of processor time; about 2 on an idle core"
    probs = classifier.probabilities(digits[0])
    assert probs.shape == (1797, 10) and probs.dtype == torch.float64
    assert agreement(probs, digits[1]) > 0.98
    assert 8 < inception_score(probs, 1) <= 10


def test_it_is_an_extractor_and_a_classifying_one(trained, digits):
    classifier, _ = trained
    assert isinstance(classifier, Extractor) and isinstance(classifier, ClassifyingExtractor)
    features = classifier(digits[0][:7])
    assert features.pooled.shape == (7, classifier.width)
    assert features.tokens.shape == (7, features.grid[0] * features.grid[1], classifier.width)
    torch.testing.assert_close(features.tokens.mean(1), features.pooled)
    assert extract(classifier, digits[0][:9], batch=4).shape == (9, classifier.width)
    assert not any(p.requires_grad for p in classifier.network.parameters()) and not classifier.network.training


def test_probabilities_do_not_depend_on_the_batch(trained, digits):
    classifier, _ = trained
    whole = classifier.probabilities(digits[0][:50])
    torch.testing.assert_close(classifier.probabilities(digits[0][:50], batch=7), whole, rtol=0, atol=1e-6)


QUICK = ClassifierSettings(steps=20, width=8)


def test_same_seed_same_classifier_and_global_state_untouched(digits):
    images, labels = digits[0][:200], digits[1][:200]
    names = [str(i) for i in range(10)]
    state = torch.get_rng_state()
    a, b = (train_classifier(images, labels, names, QUICK, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert a.id == b.id and torch.equal(a.probabilities(images), b.probabilities(images))
    c = train_classifier(images, labels, names, QUICK, seed=2)
    assert c.id != a.id and not torch.equal(c.probabilities(images), a.probabilities(images))
    assert train_classifier(images.flip(0), labels, names, QUICK, seed=1).id != a.id, "other data, other id"


def test_the_thread_count_changes_nothing(digits):
    images, labels = digits[0][:300], digits[1][:300]
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(train_classifier(images, labels, [str(i) for i in range(10)], QUICK).network.state_dict())
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 24, 40), (1, 4, 4), (3, 17, 5), (3, 64, 64)])
def test_any_shape(channels, height, width):
    """Two classes that differ in brightness."""
    labels = torch.arange(60) % 2
    noise = torch.randint(0, 60, (60, channels, height, width), generator=torch.Generator().manual_seed(0))
    images = (noise + 150 * labels[:, None, None, None]).to(torch.uint8)
    classifier = train_classifier(images, labels, ["dark", "bright"], QUICK)
    features = classifier(images[:2])
    assert max(features.grid) <= 4 and features.pooled.shape == (2, classifier.width)
    assert classifier.accuracy == 1.0


def test_a_saved_classifier_is_the_same(digits, tmp_path):
    images, labels = digits
    classifier = train_classifier(images, labels, [str(i) for i in range(10)], QUICK)
    classifier.save(tmp_path / "judge.safetensors")
    again = read_classifier(tmp_path / "judge.safetensors")
    assert torch.equal(again.probabilities(images[:50]), classifier.probabilities(images[:50]))
    assert torch.equal(again(images[:50]).pooled, classifier(images[:50]).pooled)
    assert (again.id, again.classes, again.width) == (classifier.id, classifier.classes, classifier.width)
    assert again.accuracy == classifier.accuracy
    before = torch.get_rng_state()
    read_classifier(tmp_path / "judge.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "judge.safetensors").read_bytes()[:100])
    for name in ("other", "cut"):
        with pytest.raises(ValueError, match=f"{name}.safetensors holds no classifier"):
            read_classifier(tmp_path / f"{name}.safetensors")


def test_bad_labels_are_said(digits):
    images, labels = digits
    with pytest.raises(ValueError, match=r"1 classes and labels 0\.\.9"):
        train_classifier(images, labels, ["only"], QUICK)
    with pytest.raises(ValueError, match=r"labels -1\.\.-1"):
        train_classifier(images, torch.full_like(labels, -1), ["a", "b"], QUICK)


def test_augmentation_shifts_and_nothing_else():
    images = torch.zeros(64, 1, 9, 9)
    images[:, 0, 4, 4] = 1
    moved = _augment(images, 2, torch.Generator().manual_seed(0))
    where = moved.flatten(1).argmax(1)
    assert (moved.sum((1, 2, 3)) == 1).all()
    assert set((where // 9).tolist()) == {2, 3, 4, 5, 6} == set((where % 9).tolist())
    assert _augment(images, 0, torch.Generator()) is images


def test_split_is_a_fixed_partition():
    train, test = split(101, seed=3)
    assert len(test) == 20 and sorted([*train.tolist(), *test.tolist()]) == list(range(101))
    assert torch.equal(split(101, seed=3)[1], test) and not torch.equal(split(101, seed=4)[1], test)
