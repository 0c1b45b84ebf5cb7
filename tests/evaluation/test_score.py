"""Scores of images with protocol, interval and floor."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ditkit.evaluation.features import Moments, frechet
from ditkit.evaluation.metrics import kernel_distance, precision_recall
from ditkit.evaluation.reference import make_reference
from ditkit.evaluation.samples import given_protocol
from ditkit.evaluation.score import CLASS_METRICS, FEATURE_METRICS, score_images
from ditkit.evaluation.uncertainty import jackknife_error, jackknife_interval, share_interval
from ditkit.pretrained.toy import ToyExtractor
from ditkit.protocols import Features


class Judge:
    """Names the brighter half; features are four corner pixels."""

    id, width = "judge", 4

    def __call__(self, images):
        pooled = torch.stack([images[:, 0, i, j] for i in (0, 1) for j in (0, 1)], 1).float() / 64
        return Features(pooled[:, None], pooled, (1, 1))

    def probabilities(self, images, batch=128):
        p = images.double().mean((1, 2, 3)) / 255
        return torch.stack([1 - p, p], 1)


def pictures(n: int, seed: int, high: int = 256) -> torch.Tensor:
    return torch.randint(0, high, (n, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def reference():
    return make_reference(Judge(), pictures(300, 0))


def test_all_scores_of_a_classifier(reference):
    images = pictures(200, 1, high=200)
    labels = (images.double().mean((1, 2, 3)) > 100).long()
    protocol = given_protocol(200, reference)
    scores = {s.metric: s for s in score_images(images, labels, Judge(), reference, protocol)}
    assert list(scores) == [*FEATURE_METRICS, *CLASS_METRICS]
    features = Judge()(images).pooled
    assert scores["frechet"].value == frechet(Moments.of(features), reference.moments)
    assert scores["kernel"].value == kernel_distance(reference.features, features)
    assert (scores["precision"].value, scores["recall"].value) == precision_recall(reference.features, features)
    right = ((images.double().mean((1, 2, 3)) > 127.5).long() == labels).double().mean().item()
    assert scores["agreement"].value == right < 1
    for s in scores.values():
        assert s.protocol == protocol and s.interval is not None
        assert s.interval[0] <= s.value <= s.interval[1] and s.interval[0] < s.interval[1]


def test_only_what_is_possible_is_computed(reference):
    images = pictures(50, 1)
    metrics = [s.metric for s in score_images(images, None, Judge(), reference, given_protocol(50, reference))]
    assert "agreement" not in metrics and "inception_score" in metrics
    toy = ToyExtractor()
    other = make_reference(toy, pictures(60, 2))
    scores = score_images(images, None, toy, other, given_protocol(50, other))
    assert [s.metric for s in scores] == ["frechet", "kernel", "mind", "precision", "recall"]
    assert scores[0].interval is None, "too few samples for an interval"
    with pytest.raises(ValueError, match="names no classes"):
        score_images(images, None, toy, other, given_protocol(50, other), metrics=["inception_score"])
    with pytest.raises(ValueError, match="needs the labels"):
        score_images(images, None, Judge(), reference, given_protocol(50, reference), metrics=["agreement"])
    with pytest.raises(ValueError, match="unknown metric 'fid'"):
        score_images(images, None, toy, other, given_protocol(50, other), metrics=["fid"])


def test_a_number_may_not_lie_about_its_making(reference):
    images = pictures(50, 1)
    protocol = given_protocol(50, reference)
    for wrong in ({"n": 49}, {"reference": "other"}, {"extractor": "other"}):
        with pytest.raises(ValueError, match="the protocol states"):
            score_images(images, None, Judge(), reference, protocol.model_copy(update=wrong))
    other = make_reference(ToyExtractor(), pictures(60, 2))
    with pytest.raises(ValueError, match="reference was made by toy-extractor"):
        score_images(images, None, Judge(), other, protocol.model_copy(update={"reference": other.fingerprint}))


def test_real_images_score_about_their_floor(reference):
    """Fresh draws of the same kind are as near as one half is to the other; darker ones are farther."""
    floor = reference.floor()["frechet"]
    same, darker = (
        score_images(pictures(150, 5, high), None, Judge(), reference, given_protocol(150, reference))[0].value
        for high in (256, 150)
    )
    assert same < 3 * floor and darker > 10 * floor


def test_jackknife_of_a_mean_is_its_standard_error():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=2000))
    want = x.std().item() / math.sqrt(2000)
    errors = [jackknife_error(lambda rows: x[rows].mean().item(), 2000, seed) for seed in range(20)]
    assert np.mean(errors) == pytest.approx(want, rel=0.15)


def test_frechet_intervals_match_the_spread_of_fresh_samples():
    real = Moments.of(torch.from_numpy(np.random.default_rng(99).normal(size=(4000, 6))))
    values, errors = [], []
    for seed in range(40):
        fake = torch.from_numpy(np.random.default_rng(seed).normal(size=(400, 6)) * 1.1 + 0.1)
        values.append(frechet(Moments.of(fake), real))
        errors.append(jackknife_error(lambda rows, fake=fake: frechet(Moments.of(fake[rows]), real), len(fake)))
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.35)


def test_intervals_keep_to_what_the_metric_can_be():
    low, high = jackknife_interval(0.01, lambda rows: float(rows[0] % 2), 200, low=0.0, high=1.0)
    assert (low, high) == (0.0, 1.0)
    assert jackknife_interval(1.0, lambda rows: float(rows[0] % 2), 99) is None
    assert jackknife_interval(0.0, lambda rows: 0.0, 100) is None, "no spread seen is no certainty"


def test_share_interval_at_the_ends():
    """Wilson's limits for 0, 10 and 20 of 20 (published tables: 0 to .161, .299 to .701)."""
    assert share_interval(0.0, 20) == (0.0, pytest.approx(0.161, abs=1e-3))
    assert share_interval(0.5, 20) == (pytest.approx(0.299, abs=1e-3), pytest.approx(0.701, abs=1e-3))
    assert share_interval(1.0, 20) == (pytest.approx(0.839, abs=1e-3), 1.0)
