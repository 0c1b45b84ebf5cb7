"""Scores of how alike representations are: the reference's numbers, the properties they claim, and clear refusals."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from ditkit.analysis import similarity
from ditkit.analysis.similarity import (
    cka,
    cknna,
    clamp_outliers,
    cycle_knn,
    hsic_biased,
    hsic_unbiased,
    lcs_knn,
    mutual_knn,
    nearest,
    normalised,
    platonic,
)

KNN = {"mutual_knn": mutual_knn, "cycle_knn": cycle_knn, "lcs_knn": lcs_knn}
HSIC = {"hsic_unbiased": hsic_unbiased, "hsic_biased": hsic_biased}
NOISY = "AnBn.cka.rbf.unbiased1"  # recorded in float32, where rounding moves it by more than the tolerance


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def recorded(reference):
    """The recording and its pairs of features by name."""
    found = reference("metrics_alignment")
    a, b, c = (found.inputs[name] for name in "ABC")
    return found, {"AB": (a, b), "AC": (a, c), "AA": (a, a), "AnBn": (normalize(a, dim=1), normalize(b, dim=1))}


def score(a, b, metric, *words):
    """The number that a recording names METRIC.WORD.WORD..."""
    if metric in KNN:
        return KNN[metric](a, b, int(words[0][1:]))
    if metric == "cknna":
        return cknna(a, b, int(words[0][1:]), unbiased=words[1] == "unbiased1")
    if metric == "cka":
        return cka(a, b, unbiased=words[1] == "unbiased1", kernel=words[0], sigma=5.0)
    if metric == "unbiased_cka":
        return cka(a, b, unbiased=True)
    kernels = (x.double() @ x.double().T for x in (a, b))
    return HSIC[metric](*kernels)


@pytest.mark.parametrize("pair", ["AB", "AC", "AA", "AnBn"])
def test_every_recorded_score(recorded, pair):
    found, pairs = recorded
    names = [name for name in found.outputs if name.startswith(f"{pair}.") and name != NOISY]
    assert len(names) >= 29
    for name in names:
        found.close(name, torch.tensor(score(*pairs[pair], *name.split(".")[1:]), dtype=torch.float64))


def dense_rbf(a, b, sigma=5.0):
    """Unbiased RBF CKA by the reference's formula, in the dtype of the features."""
    n = len(a)
    kernels = [torch.exp(torch.cdist(x, x) ** 2 / (-2 * sigma**2)).fill_diagonal_(0) for x in (a, b)]

    def hsic(k, l):
        return ((k * l.T).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * (k @ l).sum() / (n - 2)) / (n * (n - 3))

    k, l = kernels
    return hsic(k, l) / (torch.sqrt(hsic(k, k) * hsic(l, l)) + 1e-6)


def test_the_score_that_float32_disturbs(recorded):
    found, pairs = recorded
    a, b = pairs["AnBn"]
    found.close(NOISY, dense_rbf(a, b).double())  # the formula is the recorded one ...
    exact = dense_rbf(a.double(), b.double()).item()  # ... and without its rounding it is ours
    assert cka(a, b, unbiased=True, kernel="rbf", sigma=5.0) == pytest.approx(exact, abs=1e-9)
    assert exact == pytest.approx(found.outputs[NOISY].item(), abs=3e-4)


def test_neighbours_and_outliers_as_recorded(recorded):
    found, pairs = recorded
    a = pairs["AB"][0]
    found.close("knn.A.k5", nearest(a, 5).index)
    found.close("remove_outliers", clamp_outliers(a).float())
    found.close("remove_outliers.exact", clamp_outliers(a, 0.9, exact=True).float())


def test_golden_numbers():
    g, h = (torch.arange(40 * d, dtype=torch.float64).view(40, d) for d in (8, 6))
    wave = 0.5 * torch.cos(0.2 * torch.arange(40, dtype=torch.float64))[:, None]
    a, b = torch.sin(0.37 * g**1.1) + wave, torch.cos(0.53 * h**1.05) + wave
    a, b = (normalize(x, dim=1).float() for x in (a, b))
    found = [cknna(a, b), cknna(a, b, unbiased=False), cknna(a, b, 39), cka(a, b, unbiased=True), cka(a, b)]
    assert found == pytest.approx([0.331092, 0.477656, 0.012773, 0.012773, 0.076495], abs=5e-6)
    assert mutual_knn(a, b, 10) == pytest.approx(0.2525)


SCORES = {
    "cknna": cknna,
    "cknna biased": lambda a, b: cknna(a, b, unbiased=False),
    "cka": cka,
    "cka unbiased": lambda a, b: cka(a, b, unbiased=True),
    "mutual_knn": mutual_knn,
}


@pytest.mark.parametrize("name", SCORES)
def test_identity_rotation_scale_order_and_symmetry(name):
    measure = SCORES[name]
    a = draw(60, 12)
    b = a[:, :7] + 0.5 * draw(60, 7, seed=1)
    rotation = torch.linalg.qr(draw(7, 7, seed=2))[0]
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    value = measure(a, b)
    assert measure(a, a) == pytest.approx(1, abs=1e-12) and 0.1 < value < 0.99
    for scale in (1e-4, 1e5):
        assert measure(a, scale * b @ rotation) == pytest.approx(value, abs=1e-9)
        assert measure(scale * a, scale * a) == pytest.approx(1, abs=1e-12)
    assert measure(b, a) == pytest.approx(value, abs=0.01 if name == "cknna" else 1e-12)  # its masks are not symmetric
    assert measure(a[order], b[order]) == pytest.approx(value, abs=1e-12)
    assert measure(a, b[order]) < value - 0.1
    assert measure(a.numpy(), b.float()) == pytest.approx(value, abs=1e-5)


def test_unrelated_features_score_nothing_where_the_score_is_unbiased():
    a, b = draw(400, 32), draw(400, 48, seed=1)
    assert abs(cknna(a, b)) < 0.03 and abs(cka(a, b, unbiased=True)) < 0.03
    assert cka(a, b) > 0.08  # the biased one is far from 0 although nothing is shared
    assert mutual_knn(a, b) == pytest.approx(10 / 399, abs=0.01)


def test_all_neighbours_make_cknna_the_unbiased_cka():
    a, b = draw(30, 5), draw(30, 4, seed=1)
    assert cknna(a, b, 29) == pytest.approx(cka(a, b, unbiased=True), abs=1e-12)


def test_blocks_of_rows_change_nothing(monkeypatch):
    a, b = draw(50, 6), draw(50, 9, seed=1)

    def all_scores():
        return [cknna(a, b, 5), cka(a, b), cka(a, b, True, "rbf", 3.0), mutual_knn(a, b, 5)]

    whole = all_scores()
    monkeypatch.setattr(similarity, "BLOCK", 350)  # 7 rows of a kernel
    assert all_scores() == pytest.approx(whole, abs=1e-12)


def test_preparations():
    a = draw(20, 8)
    a[0, 0] = 100.0
    assert torch.allclose(platonic(a).norm(dim=1), torch.ones(20, dtype=torch.float64))
    assert torch.equal(platonic(a), normalised(clamp_outliers(a, 0.95)))
    assert clamp_outliers(a).max() < 10 and normalised(a)[0, 0] > 0.99 > platonic(a)[0, 0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda a: cknna(a, a[:-1]), "20 rows and b has 19"),
        (lambda a: cknna(a, a, 20), "k is 20, and 20 images allow 2 to 19"),
        (lambda a: cknna(a, a, 1), "k is 1, and 20 images allow 2 to 19"),
        (lambda a: mutual_knn(a, a, 0), "mutual_knn: k is 0"),
        (lambda a: mutual_knn(a, a, 20), "allow 1 to 19"),
        (lambda a: cka(a[:3], a[:3]), "too few"),
        (lambda a: cka(a, torch.full_like(a, 2.0)), "b has no structure"),
        (lambda a: cknna(a[None], a), "expected features"),
        (lambda a: cka(a, a / 0), "NaN or infinite"),
        (lambda a: hsic_biased(a, a), "kernels must be"),
    ],
)
def test_refusals_are_one_clear_line(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call(draw(20, 5))
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
def test_a_gpu_gives_the_same():
    a, b = draw(300, 20), draw(300, 30, seed=1)
    on_gpu = a.to("cuda"), b.to("cuda")
    assert cknna(*on_gpu) == pytest.approx(cknna(a, b), abs=1e-9)
    assert cka(*on_gpu) == pytest.approx(cka(a, b), abs=1e-9)
