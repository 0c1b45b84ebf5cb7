"""Scores against recordings of the published evaluators, and against what the mathematics says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ditkit.evaluation.metrics import (
    FrechetTo,
    agreement,
    agreement_by_class,
    density_coverage,
    frechet_distance,
    inception_score,
    inception_scores,
    kernel_distance,
    kernel_distances,
    mmd2,
    precision_recall,
)
from ditkit.evaluation.metrics.frechet import _root, _trace_of_root
from ditkit.evaluation.metrics.kernel import kernel, subset_indices
from ditkit.evaluation.metrics.precision_recall import Distances, radii


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def moments(x):
    return x.mean(0), torch.from_numpy(np.cov(x.numpy(), rowvar=False))


# ---- recordings -------------------------------------------------------------------------------------------------


def _statistics(data, case, side):
    name = case[side]
    if case["kind"] == "stats":
        return data.inputs[f"{name}.mu"], data.inputs[f"{name}.sigma"]
    return moments(data.inputs[name].double())


@pytest.mark.parametrize(
    "name",
    [
        *("a_b", "a_c", "a_a", "low_low2", "low_b"),
        *("s1_s2", "s1_zero", "s1_rank1", "s2_near_singular", "near_singular_near_singular"),
    ],
)
def test_frechet_recorded(reference, name):
    data = reference("metrics_evaluator")
    case = data.meta["fid"][name]
    first, second = _statistics(data, case, "a"), _statistics(data, case, "b")
    data.close(f"fid.{name}", frechet_distance(*first, *second))
    data.close(f"fid.{name}.swapped", frechet_distance(*second, *first))
    if case["kind"] == "acts":
        data.close(f"torch_fidelity.fid.{name}", frechet_distance(*first, *second))


@pytest.mark.parametrize("size", [5000, 50, 37])
def test_inception_score_recorded(reference, size):
    data = reference("metrics_evaluator")
    data.close(f"is.split{size}", inception_score(data.inputs["softmax"], split_size=size))


def test_inception_score_of_torch_fidelity(reference):
    data = reference("metrics_kid")
    scores = inception_scores(data.inputs["logits"].double().softmax(1), splits=data.meta["isc_splits"])
    data.close("isc.mean", scores.mean())
    data.close("isc.std", scores.std(correction=0))


def test_precision_recall_recorded_in_float32(reference):
    data = reference("metrics_evaluator")
    scale = data.meta["pr"]["fp32"]["scale"]
    real, fake = data.inputs["ref"] * scale, data.inputs["smp"] * scale
    got = precision_recall(real, fake, k=3)
    data.close("pr.fp32.precision", [got.precision])
    data.close("pr.fp32.recall", [got.recall])
    data.close("pr.fp32.radii_ref", radii(real)[:, None])
    data.close("pr.fp32.radii_sample", radii(fake)[:, None])


@pytest.mark.parametrize("rows", [1024, 64])
@pytest.mark.parametrize(
    ("name", "k"), [("default", 3), ("fp32", 3), ("nhood_1_5", 1), ("nhood_1_5", 5), ("a_b", 3), ("batched", 3)]
)
def test_the_evaluators_rule_gives_the_evaluators_shares(reference, name, k, rows):
    data = reference("metrics_evaluator")
    case = data.meta["pr"][name]
    real, fake = (data.inputs[case[side]] * case.get("scale", 1.0) for side in ("ref", "sample"))
    at = case.get("nhood", [k]).index(k)
    got = precision_recall(real, fake, k=k, rows=rows, rule="adm")
    assert got.precision == data.outputs[f"pr.{name}.precision"][at].item()
    assert got.recall == data.outputs[f"pr.{name}.recall"][at].item()
    for side, values in (("ref", real), ("sample", fake)):  # float16 has 11 bits, and three roundings
        want = data.outputs[f"pr.{name}.radii_{side}"][:, at]
        assert (radii(values, k, rule="adm") - want).abs().max() <= 2**-9 * values.square().sum(1).max()


def test_the_evaluators_rule_is_another_rule(reference):
    """The recorded sets tell the two apart: 4 of 300 real samples."""
    data = reference("metrics_evaluator")
    real, fake = data.inputs["ref"], data.inputs["smp"]
    exact, halves = precision_recall(real, fake), precision_recall(real, fake, rule="adm")
    assert round(300 * (halves.recall - exact.recall)) == 4
    assert precision_recall(real, fake, rule="float32") == exact


def test_the_evaluators_precision_is_chosen_for_all_of_its_block():
    """One real sample beyond float16: all of the 10,000 x 10,000 is in float32, not its own rows alone."""
    real, fake = normal(20, 1500, 64).float() * 0.3 + 2, normal(21, 1500, 64).float() * 0.3 + 2.02
    real[0] *= 30
    whole, cut = (precision_recall(real, fake, rows=rows, rule="adm") for rows in (10_000, 1024))
    assert cut == whole
    torch.testing.assert_close(radii(real, rule="adm"), radii(real, rule="float32"), rtol=1e-3, atol=0)
    assert (radii(real[1:], rule="adm") / radii(real[1:], rule="float32") - 1).abs().max() > 0.01, "halves without it"


def test_sums_beyond_float16_are_found_where_norms_fit():
    """u . v < 0 between rows of norm 40,000: 160,000 is no float16."""
    real, fake = normal(22, 40, 16).float(), normal(23, 30, 16).float()
    real[7], fake[20] = 50.0, -50.0
    blocks = [Distances(real, fake, rows, "adm") for rows in (1000, 8)]
    want = (real[:, None] - fake[None]).square().sum(2)
    for distances in blocks:
        got = torch.zeros(40, 30)
        for left, right, block in distances:
            got[left, right] = block
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-2)
    assert [len(d) for d in blocks] == [1, 20]
    near = Distances(real[8:], fake[:20], 1000, "adm")
    halves = next(iter(near))[2]
    assert torch.equal(halves, halves.half().float()), "what fits stays in float16"


def test_precision_recall_of_torch_fidelity(reference):
    """torch-fidelity names the roles the other way round (its input 1 is the generated set)."""
    data = reference("metrics_kid")
    got = precision_recall(data.inputs["ref"], data.inputs["smp"])
    data.close("prc.precision", got.recall)
    data.close("prc.recall", got.precision)


@pytest.mark.parametrize("name", ["a_b", "a_c", "a_a", "rbf"])
def test_kernel_distance_recorded(reference, name):
    data = reference("metrics_kid")
    case = data.meta["cases"][name]
    settings = case["kw"]
    a, b = data.inputs[case["a"]], data.inputs[case["b"]]
    subsets, size = settings["kid_subsets"], settings["kid_subset_size"]
    draws = subset_indices(len(a), len(b), subsets, size, settings["rng_seed"])
    data.close(f"{name}.idx_a", torch.from_numpy(np.stack([i for i, _ in draws])))
    data.close(f"{name}.idx_b", torch.from_numpy(np.stack([j for _, j in draws])))
    which = "rbf" if settings["kid_kernel"] == "rbf" else "polynomial"
    values = kernel_distances(a, b, subsets, size, settings["rng_seed"], which, settings.get("kid_kernel_rbf_sigma", 1))
    data.close(f"{name}.mean", values.mean())
    data.close(f"{name}.std", values.std(correction=0))


@pytest.mark.parametrize("estimator", ["unbiased", "biased", "u_statistic"])
def test_mmd_recorded(reference, estimator):
    data = reference("metrics_kid")
    n = data.meta["full_n"]
    a, b = data.inputs["a"][:n], data.inputs["b"][:n]
    data.close(f"mmd2.{estimator.replace('_', '-')}", mmd2(a, b, estimator=estimator))
    data.close("kernel_row", kernel(a.double(), b.double())[0])


# ---- properties -------------------------------------------------------------------------------------------------


def test_frechet_of_diagonal_gaussians_is_the_closed_form():
    mu1, mu2 = normal(0, 9), normal(1, 9)
    s, t = normal(2, 9).square() + 0.1, normal(3, 9).square() + 0.1
    want = (mu1 - mu2).square().sum() + (s.sqrt() - t.sqrt()).square().sum()
    assert frechet_distance(mu1, s.diag(), mu2, t.diag()) == pytest.approx(want.item(), rel=1e-12)


def test_frechet_of_commuting_covariances_is_rotation_invariant():
    q = torch.linalg.qr(normal(4, 6, 6)).Q
    s, t = torch.arange(1.0, 7.0).double(), torch.arange(6.0, 0.0, -1).double()
    want = (s.sqrt() - t.sqrt()).square().sum().item()
    zero = torch.zeros(6)
    assert frechet_distance(zero, q * s @ q.T, zero, q * t @ q.T) == pytest.approx(want, rel=1e-11)


@pytest.mark.parametrize("n", [3, 8, 9, 200])
def test_frechet_identical_is_zero_symmetric_and_finite_at_any_rank(n):
    """3 and 8 samples of 8 features have singular covariances, where sqrtm fails or turns complex."""
    a, b = moments(normal(5, n, 8) * 3 + 1), moments(normal(6, n, 8))
    assert 0 <= frechet_distance(*a, *a) < 1e-11
    forth, back = frechet_distance(*a, *b), frechet_distance(*b, *a)
    assert math.isfinite(forth) and forth > 0
    assert forth == pytest.approx(back, rel=1e-12)


def test_frechet_never_negative_and_zero_matrices_work():
    zero = torch.zeros(5, 5)
    assert frechet_distance(torch.zeros(5), zero, torch.ones(5), zero) == pytest.approx(5.0)
    for seed in range(20):
        x = normal(seed, 4, 6)
        a, b = moments(x), moments(x + 1e-9 * normal(seed + 100, 4, 6))
        assert frechet_distance(*a, *b) >= 0


def test_the_way_for_many_dimensions_agrees():
    for n in (10, 300):  # singular, and not
        a, b = moments(normal(14, n, 40))[1], moments(normal(15, n, 40) * 2)[1]
        assert _trace_of_root(_root(a), b, exact=0) == pytest.approx(_trace_of_root(_root(a), b, exact=40), rel=1e-6)


@pytest.mark.parametrize("n", [300, 2000])
def test_frechet_beyond_the_exact_dimensions(n, monkeypatch):
    """600 features: singular from 300 samples, decomposed by Cholesky from 2,000; the root serves several distances."""
    a, b = moments(normal(16, n, 600)), moments(normal(17, n, 600) * 1.5 + 0.1)
    prepared = FrechetTo(*a)
    assert prepared.root.shape[1] == min(n - 1, 600)
    fast = [frechet_distance(*a, *b), prepared(*a), prepared(*b)]
    assert fast[0] == fast[2] and 0 <= fast[1] < 1e-5 * fast[0]
    monkeypatch.setattr("ditkit.evaluation.metrics.frechet.EXACT", 600)
    assert fast[0] == pytest.approx(frechet_distance(*b, *a), rel=1e-9)


def test_frechet_refuses_nonsense():
    with pytest.raises(ValueError, match="do not fit"):
        frechet_distance(torch.zeros(3), torch.eye(3), torch.zeros(4), torch.eye(4))
    with pytest.raises(ValueError, match="cov2: holds NaN"):
        frechet_distance(torch.zeros(2), torch.eye(2), torch.zeros(2), torch.full((2, 2), math.nan))


def test_inception_score_at_its_ends():
    assert inception_score(torch.full((40, 5), 0.2), splits=4) == pytest.approx(1.0)
    assert inception_score(torch.eye(5).repeat(8, 1), splits=2) == pytest.approx(5.0)
    with pytest.raises(ValueError, match="probabilities"):
        inception_score(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match="cannot be cut"):
        inception_score(torch.full((3, 2), 0.5), splits=10)


def test_precision_recall_argument_order():
    """Fakes that are few copies of one mode are precise and recall little."""
    real = torch.cat([normal(7, 50, 4), normal(8, 50, 4) + 40])
    collapsed = normal(9, 60, 4) * 0.05
    got = precision_recall(real, collapsed)
    assert got.precision == 1.0 and got.recall < 0.1
    swapped = precision_recall(collapsed, real)
    assert (swapped.precision, swapped.recall) == (got.recall, got.precision)
    assert precision_recall(real, real) == (1.0, 1.0)
    with pytest.raises(ValueError, match="no 3-th nearest"):
        precision_recall(real[:3], collapsed)


def test_precision_recall_does_not_depend_on_the_block_size():
    real, fake = normal(10, 90, 5), normal(11, 70, 5) * 1.3
    for rule in ("float64", "float32", "adm"):
        assert precision_recall(real, fake, rows=7, rule=rule) == precision_recall(real, fake, rule=rule)
        shuffled = precision_recall(real.flip(0), fake.roll(29, 0), rule=rule)
        assert shuffled == precision_recall(real, fake, rule=rule)


def test_single_precision_far_from_zero():
    """Without taking the mean off, |u|^2 of 1e8 would leave nothing of a distance of 1."""
    real, fake = normal(10, 90, 5), normal(11, 70, 5) * 1.3
    far = precision_recall((real + 3000).float(), (fake + 3000).float(), rule="float32")
    near = precision_recall((real + 3000).float(), (fake + 3000).float())
    assert far == near and 0 < far.recall < 1


def test_progress_of_precision_recall_ends_at_its_total():
    seen = []
    precision_recall(normal(10, 90, 5), normal(11, 70, 5), rows=20, progress=lambda *at: seen.append(at))
    total = 15 + 10 + 5 * 4  # the upper halves of 5 x 5 and 4 x 4 blocks, and all that lie across
    assert seen == [(i + 1, total) for i in range(total)]


def test_unknown_rules_and_counts_are_refused():
    x = normal(0, 9, 2)
    with pytest.raises(ValueError, match="unknown rule 'half': choose from float64, float32, adm"):
        precision_recall(x, x, rule="half")
    with pytest.raises(ValueError, match="k is 0"):
        precision_recall(x, x, k=0)


def test_density_and_coverage():
    """Fakes that are one mode: dense, and half of the real balls are empty; one stray fake changes little."""
    real = torch.cat([normal(7, 60, 4), normal(8, 60, 4) + 40])
    mode = normal(9, 80, 4) * 0.5
    got = density_coverage(real, mode)
    assert got.density > 1 and 0.2 < got.coverage <= 0.5
    same = density_coverage(real, real)
    assert same.coverage == 1.0 and same.density == pytest.approx(1 + 1 / 5, abs=0.25)
    stray = density_coverage(real, torch.cat([mode, torch.full((1, 4), 20.0)]))
    assert stray.coverage == got.coverage and stray.density == pytest.approx(got.density * 80 / 81)
    assert density_coverage(real, mode, rows=13) == got


def test_kernel_distance_properties():
    a, b = normal(12, 60, 6), normal(13, 80, 6) + 0.7
    assert kernel_distance(a, b) == pytest.approx(mmd2(a, b)), "sets smaller than one subset are compared whole"
    assert kernel_distance(a, b) == pytest.approx(kernel_distance(b, a))
    assert kernel_distance(a, a + 0) < 0.05 < kernel_distance(a, b)
    assert kernel_distance(a, b, subsets=3, subset_size=20) != kernel_distance(a, b, 3, 20, seed=1)
    with pytest.raises(ValueError, match="6 features a sample and fake has 5"):
        kernel_distance(a, b[:, :5])


def test_agreement():
    probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    labels = torch.tensor([0, 1, 1, 1])
    assert agreement(probs, labels) == 0.75
    assert agreement_by_class(probs, labels) == {0: 1.0, 1: pytest.approx(2 / 3)}
    with pytest.raises(ValueError, match="labels of shape"):
        agreement(probs, labels[:2])
