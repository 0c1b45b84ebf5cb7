"""Linear classifiers: they find what is there, nothing where nothing is, and the paper's one follows its protocol."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import RidgeClassifier

from ditkit.analysis import linear
from ditkit.analysis.linear import PaperProbe, predict_logistic, predict_paper, predict_ridge, standardised


def blobs(n: int, width: int, seed: int, spread: float = 1.0):
    """Features of 4 classes, which 3 of their columns tell apart; each column has its own scale and shift."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (n,), generator=generator)
    features = torch.randn(n, width, generator=generator)
    corners = torch.tensor([[0.0, 0, 0], [4, 4, 0], [4, 0, 4], [0, 4, 4]])
    features[:, :3] = spread * corners[labels] + features[:, :3]
    return features * torch.linspace(0.01, 100, width) + 7, labels


PROBES = {
    "logistic": predict_logistic,
    "ridge": lambda *part: predict_ridge(*part)[0],
    "paper": lambda *part: predict_paper(*part, settings=PaperProbe(batch=64, lr=5e-3)),
}


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_finds_classes_and_only_those(name):
    train, labels = blobs(240, 8, seed=0)
    test, truth = blobs(400, 8, seed=1)
    predicted = PROBES[name](train, labels, test, 4)
    assert (predicted == truth).double().mean() > 0.96
    assert torch.equal(PROBES[name](train, labels, test, 4), predicted)
    shuffled = labels[torch.randperm(240, generator=torch.Generator().manual_seed(2))]
    assert (PROBES[name](train, shuffled, test, 4) == truth).double().mean() < 0.45


@pytest.mark.parametrize("width", [6, 300])
def test_ridge_is_the_closed_form_for_narrow_and_wide_features(width):
    (train, labels), (test, _) = blobs(150, width, seed=0, spread=0.4), blobs(200, width, seed=1, spread=0.4)
    x, z = standardised(train, test)
    for penalty in (0.01, 1.0):
        predicted, chosen = predict_ridge(train, labels, test, 4, penalties=(penalty,))
        oracle = RidgeClassifier(alpha=150 * penalty).fit(x.numpy(), labels.numpy()).predict(z.numpy())
        assert chosen == penalty and (predicted.numpy() == oracle).mean() > 0.995


def test_ridge_chooses_the_penalty_that_wide_noise_needs():
    (train, labels), (test, truth) = blobs(120, 110, seed=0, spread=0.5), blobs(600, 110, seed=1, spread=0.5)
    predicted, chosen = predict_ridge(train, labels, test, 4)
    least = predict_ridge(train, labels, test, 4, penalties=linear.PENALTIES[:1])[0]
    assert chosen > linear.PENALTIES[0] and (predicted == truth).double().mean() > (least == truth).double().mean()


def test_the_paper_protocol_counts_its_steps(monkeypatch):
    assert PaperProbe() == PaperProbe(epochs=90, batch=16384, lr=1e-3)
    rates = []

    class Watched(torch.optim.Adam):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "Adam", Watched)
    train, labels = blobs(100, 5, seed=0)
    settings = PaperProbe(epochs=4, batch=33)
    predict_paper(train, labels, train, 4, settings=settings)
    assert settings.parts(100) == 4 and len(rates) == 16
    cosine = [1e-3 * (1 + torch.cos(torch.tensor(torch.pi * i / 16)).item()) / 2 for i in range(16)]
    assert rates == pytest.approx(cosine, rel=1e-5)


def test_an_unseen_class_is_an_error_and_no_crash():
    train, labels = blobs(50, 5, seed=0)
    for probe in PROBES.values():
        assert probe(train, labels, train, 9).max() < 4
