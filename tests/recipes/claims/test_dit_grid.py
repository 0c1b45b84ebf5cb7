"""The claims on DiT's grid of twelve: its shapes, and the rules of Gflops, training and sampling compute."""

from __future__ import annotations

import numpy as np
import pytest

from ditkit.config import diff
from ditkit.data import DataError
from ditkit.recipes.claims.dit_compute import at, compared
from ditkit.recipes.claims.dit_gflops import THEIRS
from ditkit.recipes.claims.dit_grid import correlation, fitting, grid, neighbours, patches, shapes
from ditkit.recipes.claims.dit_sampling import MORE, middle
from ditkit.recipes.reproduce.claim import FAILS, HOLDS, UNDECIDED
from tests.recipes.claims.scored import quality
from tests.recipes.claims.tables import made_up, opened

CLAIMS = ("dit-gflops", "dit-compute", "dit-sampling")


@pytest.fixture(scope="module")
def studies():
    return {name: opened(name) for name in CLAIMS}


def costs(study):
    return {point.name: point.gflops for point in grid(study.bed)}


def judged(study, distance, lost=()):
    """distance: (Gflops, measure, seed) -> the distance."""
    gflops = costs(study)
    found = made_up(study, lambda trial, m, seed: quality(distance(gflops[trial], m, seed)), lost=lost)
    return study.judge(found)


def test_shapes_lie_between_small_and_medium():
    assert shapes((32, 3, 2), (64, 4, 4)) == {"S": (24, 2, 2), "B": (32, 3, 2), "L": (48, 4, 3), "XL": (64, 4, 4)}
    gpu = shapes((384, 12, 6), (768, 12, 12))
    assert gpu == {"S": (288, 9, 6), "B": (384, 12, 6), "L": (576, 12, 9), "XL": (768, 12, 12)}
    assert all(width % (4 * heads) == 0 for width, _, heads in gpu.values())
    assert fitting(5, 2) == 8, "never nothing"


def test_patches_leave_neither_too_many_nor_too_few_tokens():
    assert patches((8, 8)) == (1, 2, 4)
    assert patches((32, 32)) == (2, 4, 8)
    assert patches((28, 28)) == (2, 4, 7)
    with pytest.raises(DataError, match="no three sizes of token"):
        patches((7, 7))


def test_the_twelve_differ_in_shape_and_token_alone(studies):
    points = grid(studies["dit-gflops"].bed)
    assert len(points) == 12 == len({point.name for point in points})
    shape = {"model.width", "model.depth", "model.heads", "model.patch"}
    for point in points[1:]:
        assert {d.key for d in diff(point.recipe, points[0].recipe)} <= shape
    pairs = neighbours(points)
    assert len(pairs) == 9
    assert all(a.patch == b.patch and a.gflops < b.gflops for a, b in pairs)
    by = {(p.size, p.patch): p.gflops for p in points}
    assert all(by[size, 1] > by[size, 2] > by[size, 4] for size in "SBL")


def test_the_claims_share_their_runs(studies):
    files = {name: {arm.file for arm in study.arms} for name, study in studies.items()}
    assert files["dit-gflops"] == files["dit-compute"] and len(files["dit-gflops"]) == 36
    assert files["dit-sampling"] < files["dit-gflops"]
    assert {p.patch for p in middle(studies["dit-sampling"].bed)} == {2}


def test_correlation_is_of_logarithms():
    x = np.array([1.0, 10.0, 100.0])
    assert correlation(x, x**-0.5) == pytest.approx(-1)
    assert correlation(x, x**2) == pytest.approx(1)
    assert np.isnan(correlation(x, np.array([1.0, np.inf, 2.0])))
    assert pytest.approx(-0.936, abs=0.001) == THEIRS, "Table 4 of the paper"


def test_gflops(studies):
    study = studies["dit-gflops"]
    found = judged(study, lambda g, m, seed: g**-0.3 * (1 + seed / 10))
    assert found.verdict == HOLDS and found.ours["correlation"] == pytest.approx([-1, -1, -1])
    assert judged(study, lambda g, m, seed: g**0.3).verdict == FAILS
    assert judged(study, lambda g, m, seed: g ** (0.3 if seed else -0.3)).verdict == UNDECIDED
    first = study.trials[0].name
    lost = judged(study, lambda g, m, seed: g**-0.3, lost=[(first, 1)])
    assert lost.verdict == UNDECIDED and "diverged" in lost.number


def test_a_curve_is_read_between_checkpoints():
    curve = np.array([8.0, 2.0])
    assert at([100, 400], curve, 200) == pytest.approx(4)
    assert at([100, 400], np.array([np.inf, 2.0]), 400) == np.inf


@pytest.mark.parametrize(("power", "verdict"), [(1.0, HOLDS), (0.3, FAILS), (0.5, UNDECIDED)])
def test_training_compute(studies, power, verdict):
    """distance = Gflops^-p steps^-1/2: at equal compute it goes with Gflops^(1/2 - p). Seeds have different p."""
    study = studies["dit-compute"]
    powers = [power - 0.05, power, power + 0.05]
    found = judged(study, lambda g, m, seed: g ** -powers[seed] * m.step**-0.5)
    assert found.verdict == verdict
    gflops = costs(study)
    for pair, ratios in found.ours["ratio"].items():
        large, small = pair.split(" over ")
        assert ratios == pytest.approx([(gflops[large] / gflops[small]) ** (0.5 - p) for p in powers])


def test_training_compute_with_lost_runs(studies):
    study = studies["dit-compute"]
    points, steps = grid(study.bed), [100, 400]
    curves = {p.name: np.full((3, 2), 1.0) for p in points}
    every = compared(points, steps, curves)
    assert len(every) == 9
    largest = points[-1].name
    curves[largest] = np.full((3, 2), np.inf)
    lost = compared(points, steps, curves)
    assert len(lost) == 9, "a diverged run stays in the comparison"
    assert next(ratio for pair, ratio in lost.items() if pair.startswith(largest)).tolist() == [np.inf] * 3
    assert compared(points, [399, 400], curves) == {}, "no larger model was scored early enough"
    gone = judged(study, lambda g, m, seed: 1.0, lost=[(largest, seed) for seed in range(3)])
    assert gone.verdict == FAILS


@pytest.mark.parametrize(("gain", "verdict"), [(0.1, HOLDS), (0.9, FAILS)])
def test_sampling_compute(studies, gain, verdict):
    """More sampling steps divide the distance by steps^gain; a larger model by Gflops^0.5."""
    study = studies["dit-sampling"]
    usual = study.bed.budget.sampler_steps
    found = judged(study, lambda g, m, seed: g**-0.5 * (m.sampler_steps or usual) ** -gain * (1 + seed / 100))
    assert found.verdict == verdict
    assert found.ours["sampling steps"] == [usual // 2, usual, 2 * usual, MORE * usual]
    assert len(found.ours["ratio"]) == 3
    lost = judged(study, lambda g, m, seed: g**-0.5, lost=[(study.trials[0].name, 0), (study.trials[1].name, 0)])
    assert lost.verdict == UNDECIDED, "of two lost runs nothing can be said"
