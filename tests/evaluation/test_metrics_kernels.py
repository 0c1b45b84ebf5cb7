"""CMMD, MIND and scores of each class, against direct evaluation and recordings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ditkit.evaluation.metrics import (
    by_class,
    cmmd,
    cmmd_terms,
    kernel_by_class,
    kernel_distances,
    kernel_influences,
    mind,
    mind_without_groups,
    mmd2,
    precision_recall,
)
from ditkit.evaluation.metrics.kernel import kernel


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


def test_cmmd_is_the_biased_distance_of_unit_vectors():
    real, fake = normal(0, 70, 12) + 0.5, normal(1, 50, 12)
    unit = [x.double() / x.double().norm(dim=1, keepdim=True) for x in (real, fake)]
    want = 1000 * mmd2(*unit, name="rbf", estimator="biased", sigma=10.0)
    assert cmmd(real, fake) == pytest.approx(want, rel=1e-4)
    assert cmmd(real.double(), fake.double()) == pytest.approx(want, rel=1e-9)
    assert cmmd(real * 7, fake) == pytest.approx(want, rel=1e-4), "length says nothing"


def test_cmmd_properties():
    real, fake = normal(2, 90, 6) + 1, normal(3, 60, 6)
    value, seen = cmmd(real, fake), []
    assert cmmd(real, real) == pytest.approx(0, abs=1e-6)
    assert cmmd(fake, real) == pytest.approx(value, rel=1e-5)
    assert cmmd(real.flip(0), fake, rows=7, progress=lambda *at: seen.append(at)) == pytest.approx(value, rel=1e-5)
    assert seen[-1][0] == seen[-1][1] == len(seen) == 91 + 45 + 13 * 9
    assert cmmd(real.double() + 1e-3, real.double()) < 1e-3 * value


def test_influences_of_cmmd_are_its_derivatives():
    """Against the change when one fake is left out, to first order."""
    real, fake = normal(4, 80, 5).double() + 0.7, normal(5, 400, 5).double()
    value, influence = cmmd_terms(real, fake)
    assert influence.mean().abs() < 1e-9
    for i in (0, 123, 399):
        kept = torch.cat([fake[:i], fake[i + 1 :]])
        assert (value - cmmd(real, kept)) * 399 == pytest.approx(influence[i].item(), rel=0.02, abs=0.02 * value)


def test_mind_recorded():
    """torch-fidelity's rule (its master branch of 2026-05) on these draws, run once in float32."""
    a, b, c = normal(0, 120, 8), normal(1, 120, 8) * 1.5 + 0.3, normal(2, 90, 8)
    assert mind(a, b) == pytest.approx(9.336989879608154, rel=1e-6)
    assert mind(a, b, projections=7) == pytest.approx(10.534309387207031, rel=1e-6)
    assert mind(a, c) == pytest.approx(1.3873165547847748, rel=1e-6)
    assert mind(c, a) == pytest.approx(1.3873165547847748, rel=1e-6)


def test_mind_properties():
    a, b = normal(6, 200, 16), normal(7, 200, 16)
    shift = torch.zeros(16)
    shift[3] = 2.0
    seen = []
    assert mind(a, a) == 0
    assert mind(a, b) == pytest.approx(mind(b, a)) == pytest.approx(mind(a.flip(0), b, block=5))
    # along a unit vector u the sets are u.shift apart, whose mean square is |shift|^2 / D
    assert mind(a, a + shift, 4000, progress=lambda *at: seen.append(at)) == pytest.approx(3 * 4.0, rel=0.05)
    assert seen[-1] == (63, 63)
    assert mind(a, b + shift) > mind(a, b)


def test_mind_without_a_group_is_mind_of_the_rest():
    """With one direction the sets may be deleted by hand."""
    a, b = normal(8, 60, 1), normal(9, 60, 1) + 1
    draws = torch.Generator().manual_seed(2020)
    torch.randn(1, 1, generator=draws)
    first, second = (torch.randperm(60, generator=draws) % 4 for _ in range(2))
    want = [mind(a[first != g], b[second != g], projections=1) for g in range(4)]
    assert mind_without_groups(a, b, groups=4, projections=1) == pytest.approx(want, rel=1e-6)


def test_kernel_distances_report_progress_and_copy_only_subsets():
    a, b = normal(10, 300, 6), normal(11, 300, 6)
    seen = []
    values = kernel_distances(a, b, 5, 100, progress=lambda *at: seen.append(at))
    assert seen == [(i + 1, 5) for i in range(5)] and len(values) == 5
    torch.testing.assert_close(values, kernel_distances(a.double(), b.double(), 5, 100))


@pytest.mark.parametrize("name", ["polynomial", "rbf"])
def test_influences_of_the_kernel_distance_are_its_derivatives(name):
    """By their definition on whole matrices; and M times the change when one fake is left out, to first order."""
    real, fake = normal(16, 30, 4).double() * 0.5, normal(17, 80, 4).double() + 0.4
    influence, seen = kernel_influences(real, fake, name, 2.0), []
    own, across = kernel(fake, fake, name, 2.0), kernel(fake, real, name, 2.0)
    want = 2 * ((own.sum(1) - own.diagonal()) / 79 - across.mean(1))
    torch.testing.assert_close(influence, want - want.mean())
    left_out = [mmd2(real, torch.cat([fake[:i], fake[i + 1 :]]), name, sigma=2.0) for i in range(80)]
    change = 80 * (mmd2(real, fake, name, sigma=2.0) - torch.tensor(left_out).double())
    torch.testing.assert_close(change, influence, rtol=0.1, atol=0.1 * influence.std().item())
    blocks = kernel_influences(real, fake, name, 2.0, rows=7, progress=lambda *at: seen.append(at))
    torch.testing.assert_close(blocks, influence)
    assert seen[-1] == (78 + 12 * 5, 78 + 12 * 5)
    with pytest.raises(ValueError, match="at least two fakes"):
        kernel_influences(real, fake[:1])


@pytest.mark.parametrize("name", ["polynomial", "rbf"])
def test_kernel_matrices_are_never_whole(monkeypatch, name):
    a, b = normal(18, 90, 5), normal(19, 90, 5) + 0.3
    whole = [mmd2(a, b, name, estimator) for estimator in ("unbiased", "biased", "u_statistic")]
    sizes = []

    def watched(u, v, *how):
        sizes.append(max(len(u), len(v)))
        return kernel(u, v, *how)

    monkeypatch.setattr("ditkit.evaluation.metrics.kernel.kernel", watched)
    cut = [mmd2(a, b, name, estimator, rows=20) for estimator in ("unbiased", "biased", "u_statistic")]
    assert cut == pytest.approx(whole, rel=1e-6) and max(sizes) == 20


def test_a_class_of_thousands_takes_a_block_at_a_time(monkeypatch):
    sizes = []

    def watched(u, v, *how):
        sizes.append(len(u) * len(v))
        return kernel(u, v, *how)

    monkeypatch.setattr("ditkit.evaluation.metrics.kernel.kernel", watched)
    labels = torch.zeros(2500).long()
    kernel_by_class(normal(20, 2500, 2), labels, normal(21, 2500, 2), labels)
    assert max(sizes) <= 1024**2


def test_scores_by_class_find_the_bad_class():
    labels = torch.arange(240) % 4
    real, fake = normal(12, 240, 5), normal(13, 240, 5)
    fake[labels == 2] += 2
    scores = kernel_by_class(real, labels, fake, labels)
    assert max(scores, key=scores.get) == 2 and abs(scores[0]) < 0.2 * scores[2]
    assert scores[1] == mmd2(real[labels == 1], fake[labels == 1])
    shares = by_class(precision_recall, real, labels, fake, labels, least=4)
    assert shares[3] == precision_recall(real[labels == 3], fake[labels == 3])
    assert min(shares, key=lambda k: shares[k].precision) == 2


def test_classes_without_enough_samples_are_left_out():
    real, fake = normal(14, 7, 3), normal(15, 6, 3)
    real_labels, fake_labels = torch.tensor([0, 0, 0, 1, 1, 5, 5]), torch.tensor([0, 0, 1, 5, 5, 5])
    assert list(kernel_by_class(real, real_labels, fake, fake_labels)) == [0, 5]
    seen = []
    by_class(mmd2, real, real_labels, fake, fake_labels, progress=lambda *at: seen.append(at))
    assert seen == [(1, 2), (2, 2)]
    with pytest.raises(ValueError, match="7 real and 6 fake samples with labels"):
        kernel_by_class(real, real_labels[:3], fake, fake_labels)
