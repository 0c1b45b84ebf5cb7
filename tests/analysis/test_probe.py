"""Probes against scikit-learn and by construction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from ditkit.analysis.probe import (
    draw_rows,
    gains,
    gather,
    knn_accuracy,
    linear_probe,
    mean_and_error,
    probe_features,
    probe_report,
    spread,
    standardised,
    thumbnail,
)
from ditkit.data.digits import Digits
from ditkit.pretrained import ToyExtractor


def blobs(count=60, classes=3, spread=1.0, seed=0, width=5):
    """Gaussian clouds around random centres (the same centres for every seed)."""
    centres = 2 * torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return centres[labels] + spread * torch.randn(count, width, generator=generator), labels


def test_standardised_uses_the_training_part_only():
    train, test = torch.randn(50, 3) * 4 + 2, torch.randn(20, 3)
    train[:, 2] = 5.0  # a constant column must not divide by zero
    a, b = standardised(train, test)
    assert a[:, :2].mean(0).abs().max() < 1e-6 and (a[:, :2].std(0, correction=0) - 1).abs().max() < 1e-6
    expected = (test[:, 0].double() - train[:, 0].double().mean()) / train[:, 0].double().std(correction=0)
    torch.testing.assert_close(b[:, 0], expected)
    assert a.isfinite().all() and b.isfinite().all()


def test_probes_separate_what_can_be_separated_and_nothing_else():
    train, test = blobs(spread=0.2), blobs(seed=1, spread=0.2)
    noise = torch.randn(300, 5, generator=torch.Generator().manual_seed(3))
    for probe in (knn_accuracy, linear_probe):
        assert probe(*train, *test) == 1.0
        assert probe(noise[:150], torch.arange(150) % 3, noise[150:], torch.arange(150) % 3) < 0.5


def test_knn_votes_of_near_neighbours_count_more():
    """Two far neighbours of class 1 do not outvote one that is almost equal."""
    train = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.85], [-1.0, 0.0], [-0.6, -0.8], [-0.6, -0.85]])
    labels = torch.tensor([0, 1, 1, 2, 2, 2])
    assert knn_accuracy(train, labels, torch.tensor([[1.0, 0.01]]), torch.tensor([0]), k=3) == 1.0


def test_knn_is_invariant_to_rotation_free_scaling():
    train, test = blobs(), blobs(seed=1)
    scale = torch.tensor([1.0, 100.0, 0.01, 3.0, 7.0])
    assert knn_accuracy(*train, *test) == knn_accuracy(train[0] * scale + 5, train[1], test[0] * scale + 5, test[1])


@pytest.mark.parametrize("penalty", [0.1, 1.0, 10.0])
def test_linear_probe_equals_scikit_learn(penalty):
    (train, labels), (test, test_labels) = blobs(90, spread=2.5), blobs(900, spread=2.5, seed=1)
    a, b = standardised(train, test)
    wanted = LogisticRegression(C=1 / penalty, max_iter=5000, tol=1e-10).fit(a.numpy(), labels.numpy())
    ours = linear_probe(train, labels, test, test_labels, penalty=penalty)
    assert 0.6 < ours < 0.99
    assert ours == pytest.approx(float(np.mean(wanted.predict(b.numpy()) == test_labels.numpy())), abs=2.5 / 900)


def test_label_draws():
    labels = torch.tensor([0] * 30 + [1] * 20 + [2] * 4)
    generator = torch.Generator().manual_seed(0)
    ten = draw_rows(labels, 10, 1.0, generator)
    assert [int((labels[ten] == c).sum()) for c in range(3)] == [10, 10, 4] and len(ten.unique()) == 24
    most = draw_rows(labels, None, 0.9, generator)
    assert [int((labels[most] == c).sum()) for c in range(3)] == [27, 18, 4]
    assert not torch.equal(ten, draw_rows(labels, 10, 1.0, generator))


def test_mean_error_and_gain():
    numbers = mean_and_error([0.1, 0.2, 0.3])
    assert numbers["mean"] == pytest.approx(0.2) and numbers["error"] == pytest.approx(0.1 / 3**0.5)
    table = gains({"knn": {"a": [0.5, 0.7, 0.6], "b": [0.4, 0.5, 0.5]}}, "a", "b")["knn"]
    assert table["mean"] == pytest.approx(0.4 / 3)
    assert table["standard_errors"] == pytest.approx(table["mean"] / table["error"])


def test_the_same_seed_gives_the_same_numbers():
    (train, labels), (test, test_labels) = blobs(90), blobs(60, seed=1)
    parts = ({"x": train}, labels, {"x": test}, test_labels)
    one = probe_features(*parts, draws=2, seed=1)
    assert one == probe_features(*parts, draws=2, seed=1) != probe_features(*parts, draws=2, seed=2)
    assert set(one["scores"]) == {"knn", "linear", "knn_10", "linear_10"}


def test_report_of_a_teacher_equal_to_its_baseline_shows_no_gain():
    """Teacher, baseline and pixels are kept apart, and the protocol says what was measured."""
    test = Digits("test")
    report = probe_report(ToyExtractor(), ToyExtractor(), test, test, draws=2)
    for name in ("knn", "linear", "knn_10", "linear_10"):
        scores = report["scores"][name]
        assert scores["teacher"] == scores["random_init"] != scores["pixels"]
        assert report["gains"][name]["mean"] == 0
    assert report["protocol"]["test"] == 360 and report["protocol"]["classes"] == 10
    assert report["scores"]["knn"]["pixels"]["mean"] > 0.9


def test_thumbnails_and_limits_bound_the_cost():
    """Large images are averaged to cells, large sets are thinned evenly, unlabelled items are left out."""
    ramp = torch.arange(64.0).view(1, 1, 1, 64).expand(2, 3, 64, 64)
    assert torch.equal(thumbnail(ramp).view(2, 3, 16, 16)[0, 0, 0], torch.arange(16.0) * 4 + 1.5)
    assert torch.equal(thumbnail(ramp[..., :8, :8]), ramp[..., :8, :8].flatten(1))
    assert spread(5, 10) == [0, 1, 2, 3, 4] and spread(101, 3) == [0, 50, 100]
    source = Digits("test")
    source.labels[::2] = -1
    labels, found = gather(source, range(10), {"x": thumbnail})
    assert labels.tolist() == source.labels[1:10:2].tolist() and found["x"].shape == (5, 64)


def test_unlabelled_images_are_refused():
    source = Digits("test")
    source.classes = ()
    with pytest.raises(ValueError, match="one folder a class"):
        probe_report(ToyExtractor(), ToyExtractor(), source, source)
