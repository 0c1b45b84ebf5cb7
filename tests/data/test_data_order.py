"""The order of the data: a permutation per pass, a function of (seed, position)."""

import numpy as np
import pytest

from ditkit.data import Order
from ditkit.data.order import flips, permutation


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 97, 1000])
def test_each_pass_is_a_permutation(n):
    order = Order(n, seed=3)
    for epoch in range(3):
        assert sorted(order.indices(epoch * n, (epoch + 1) * n)) == list(range(n))


def test_passes_and_seeds_differ():
    orders = [tuple(permutation(50, seed, epoch)) for seed in (0, 1, 2**32, -1) for epoch in (0, 1, 7)]
    assert len(set(orders)) == len(orders)  # 2**32: a 32-bit seed would collide with 0
    assert tuple(range(50)) not in orders


def test_recorded_order():
    """Golden: a change here would break the resuming of every run."""
    assert permutation(10, seed=0, epoch=0).tolist() == [7, 1, 5, 3, 9, 6, 0, 4, 2, 8]
    assert permutation(10, seed=5, epoch=3).tolist() == [4, 9, 3, 1, 5, 7, 8, 2, 6, 0]


def test_any_cut_gives_the_same_order():
    whole = Order(13, seed=1).indices(0, 100)
    assert whole.dtype == np.int64
    pieces = Order(13, seed=1)
    for start in (90, 0, 40, 12, 13):  # out of order: nothing is carried over
        assert pieces.indices(start, start + 7).tolist() == whole[start : start + 7].tolist()
    assert [pieces.index(p) for p in (99, 0, 13, 26, 50)] == whole[[99, 0, 13, 26, 50]].tolist()
    assert pieces.indices(5, 5).size == 0
    assert (pieces.epoch(12), pieces.epoch(13)) == (0, 1)


def test_far_position_costs_one_pass_only():
    order = Order(10, seed=0)
    order.index(10**15)
    assert len(order._recent) == 1
    assert order.index(10**15) == int(permutation(10, 0, 10**14)[0])


def test_places_are_uniform():
    """Over many passes each image stands at each place equally often (chi-square, 35 cells, 1e-4 point: 72)."""
    passes = 3000
    table = np.zeros((6, 6))
    for epoch in range(passes):
        table[np.arange(6), permutation(6, 11, epoch)] += 1
    assert ((table - passes / 6) ** 2 / (passes / 6)).sum() < 72


def test_no_images_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        Order(0, 0)


def test_flips_follow_the_position():
    whole = flips(seed=4, start=0, stop=4000)
    assert flips(4, 1234, 1300).tolist() == whole[1234:1300].tolist()
    assert abs(whole.mean() - 0.5) < 0.04  # 5 standard errors
    assert whole.tolist() != flips(5, 0, 4000).tolist()
