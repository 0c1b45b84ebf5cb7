"""Non-dominated sorting: hand-made fronts, ties, what is not finite, the paper's own table; rank correlation."""

import math

import numpy as np
import pytest

from ditkit.analysis.ranking import average_ranks, front_ranks, places, spearman
from ditkit.diffusion.formulations import TABLE2

CLIP_FID = ("higher", "lower")


def beats(a, b):
    """Nowhere worse, somewhere better."""
    return all(x >= y for x, y in zip(a, b, strict=True)) and a != b


def peel(rows, better):
    """The definition, one candidate at a time."""
    sign = [1 if word == "higher" else -1 for word in better]
    gains = {i: [s * v for s, v in zip(sign, row, strict=True)] for i, row in enumerate(rows)}
    ranks, front = [0] * len(rows), 0
    while gains:
        front += 1
        best = [i for i, mine in gains.items() if not any(beats(other, mine) for other in gains.values())]
        for i in best:
            ranks[i] = front
            del gains[i]
    return ranks


def test_hand_made_fronts():
    rows = [(3, 1), (1, 3), (2, 2), (1, 1), (2, 1), (0, 0)]
    assert front_ranks(rows, ("higher", "higher")).tolist() == [1, 1, 1, 3, 2, 4]
    assert front_ranks(rows, ("lower", "lower")).tolist() == [4, 3, 4, 2, 3, 1]
    assert front_ranks(rows, ("higher", "lower")).tolist() == [1, 4, 3, 3, 2, 1]


def test_one_score_ranks_by_its_size():
    assert front_ranks([[0.3], [0.1], [0.2], [0.1]], ("lower",)).tolist() == [3, 1, 2, 1]


@pytest.mark.parametrize("better", [("higher", "lower", "lower"), ("higher", "higher", "lower")])
def test_any_number_of_scores_by_the_definition(better):
    rows = np.random.default_rng(0).integers(0, 5, (60, 3)).astype(float)  # with many ties
    assert front_ranks(rows, better).tolist() == peel([list(r) for r in rows], better)


def test_equal_candidates_share_a_front_and_ties_in_one_score_are_decided_by_the_other():
    assert front_ranks([(1, 5), (1, 5), (1, 4)], CLIP_FID).tolist() == [2, 2, 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_comes_last(bad):
    rows = [(bad, 0.0), (0.1, 9.0), (0.2, 1.0), (9.0, bad)]
    assert front_ranks(rows, CLIP_FID).tolist() == [3, 2, 1, 3]
    assert front_ranks([(bad, bad)], CLIP_FID).tolist() == [1]


def test_the_papers_table_2():
    """ImageNet's two columns at 25 steps: what stands on each front can be read off the table."""
    ranks = dict(zip((r.name for r in TABLE2), front_ranks([r[1:3] for r in TABLE2], CLIP_FID).tolist(), strict=True))
    first = {"rf/lognorm(0.50,0.60)", "rf/mode(1.75)"}  # best CLIP score, best FID
    assert {name for name, rank in ranks.items() if rank == 1} == first
    assert ranks["edm(-1.20,1.20)"] == max(ranks.values()) and ranks["rf/lognorm(0.00,1.00)"] == 2 < ranks["rf"]
    assert list(ranks.values()) == peel([list(r[1:3]) for r in TABLE2], CLIP_FID)
    both = average_ranks([[r[1:3] for r in TABLE2], [r[3:5] for r in TABLE2]], CLIP_FID)
    assert both[TABLE2.index(next(r for r in TABLE2 if r.name == "rf"))] > both[-1], "logit-normal before uniform"


def test_average_over_settings():
    a, b = [(1, 1), (2, 2)], [(2, 1), (1, 2)]
    assert average_ranks([a, b], ("higher", "higher")).tolist() == [1.5, 1.0]
    with pytest.raises(ValueError, match="no settings"):
        average_ranks([], CLIP_FID)


def test_shapes_and_words_that_do_not_fit():
    with pytest.raises(ValueError, match=r"scores \(2, 3\) for 2 directions"):
        front_ranks([(1, 2, 3), (1, 2, 3)], CLIP_FID)
    with pytest.raises(ValueError, match="not 'max'"):
        front_ranks([(1, 2)], ("max", "lower"))


def test_places_share_ties():
    assert places([10, 30, 20, 20]).tolist() == [1, 4, 2.5, 2.5]


def test_spearman_against_scipy():
    from scipy import stats

    rng = np.random.default_rng(1)
    for n in (7, 16, 30):
        a = rng.normal(size=n)
        b = np.round(a + rng.normal(size=n), 1)
        rho, p = spearman(a, b)
        want = stats.spearmanr(a, b)
        assert rho == pytest.approx(want.statistic, abs=1e-12)
        assert p == pytest.approx(want.pvalue, abs=0.02)


def test_spearman_is_exact_for_few_pairs():
    assert spearman([1, 2, 3, 4], [2, 4, 6, 8]) == (1.0, 2 / 24)
    assert spearman([1, 2, 3, 4], [8, 6, 4, 2]) == (-1.0, 2 / 24)
    rho, p = spearman(range(16), range(16))
    assert rho == 1 and 0 < p < 1e-4
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3])[0])
    with pytest.raises(ValueError, match="3 finite numbers"):
        spearman([1, 2, math.nan], [1, 2, 3])
