"""The embedded default: scikit-learn's digits, and the fixed split of any labelled source."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from ditkit.data import Digits, stratified_split
from ditkit.protocols import Source


def test_all_digits():
    source, raw = Digits(), load_digits()
    assert isinstance(source, Source)
    assert len(source) == 1797 and source.size == (8, 8) and source.channels == 1
    assert source.classes == tuple("0123456789")
    for i in (0, 500, 1796):
        image = source[i].image
        assert image.shape == (1, 8, 8) and image.dtype == torch.uint8 and source[i].label == raw.target[i]
        assert (image[0].numpy() - raw.images[i] * 255 / 16).__abs__().max() <= 0.5
    assert max(source[i].image.max().item() for i in range(20)) == 255  # 16 -> 255


def test_split_is_fixed_stratified_and_complete():
    train, test = Digits("train"), Digits("test")
    assert (len(train), len(test)) == (1437, 360)
    assert sorted([*train.rows, *test.rows]) == list(range(1797))
    expected = np.bincount(Digits().labels) / 5
    assert np.abs(np.bincount(test.labels) - expected).max() < 1
    assert test.rows[:5].tolist() == [1, 8, 19, 23, 27]  # golden: old scores stay comparable


def test_other_sizes_and_channels():
    assert Digits("test", size=16)[0].image.shape == (1, 16, 16)
    assert Digits("test", size=(8, 12))[0].image.shape == (1, 8, 12)
    colour = Digits("test", channels=3)[0].image
    assert torch.equal(colour, Digits("test")[0].image.expand(3, 8, 8))


def test_fingerprints_differ_by_what_differs():
    prints = [Digits(*a).fingerprint for a in (("all",), ("train",), ("test",), ("all", 16), ("all", 8, 3))]
    assert len(set(prints)) == 5 and Digits().fingerprint == prints[0]


@pytest.mark.parametrize("counts", [[3, 3, 4], [1, 1, 1, 1, 1], [100], [7, 50, 2]])
def test_stratified_split_of_anything(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    train, test = stratified_split(labels, "train"), stratified_split(labels, "test")
    assert sorted([*train, *test]) == list(range(len(labels)))
    assert len(test) == -(-len(labels) // 5)
    given = np.bincount(labels[test], minlength=len(counts))
    assert np.abs(given - np.array(counts) * len(test) / len(labels)).max() < 1


def test_unlabelled_split():
    assert len(stratified_split(np.full(11, -1), "test")) == 3
