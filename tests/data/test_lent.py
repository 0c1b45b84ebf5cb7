"""Results of worker processes through shared memory: the same as through the pipe, and writable."""

import itertools
import multiprocessing

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from ditkit.data import BucketSettings, DataSettings, Loader, open_source
from ditkit.data.lent import Lent
from ditkit.data.loader import read_ahead


class Arrays(Dataset):
    """step -> arrays of several kinds and sizes, other things between them."""

    def __getitem__(self, step):
        rng = np.random.default_rng(step)
        image = rng.integers(0, 256, (step % 7 + 1, 3, 20, 20), dtype=np.uint8)
        return (image, rng.normal(size=5), ("text", step), np.zeros(0)), [step], {"a": rng.integers(0, 9, (2, 3))}


def same(a, b):
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("room", [0, 3000, 100_000])
def test_results_are_those_of_the_reader(workers, room):
    """With room for all, for the smaller ones, for none; a consumer that is slow, and one that keeps all it gets."""
    reader, kept = Arrays(), []
    for step, result in zip(range(40), read_ahead(reader, itertools.count(), workers, room), strict=False):
        assert same(result, reader[step])
        kept.append(result)
        if step == 20:
            torch.zeros(1000, 1000).sort()
    assert all(same(result, reader[step]) for step, result in enumerate(kept)), "no slot is written under a result"
    kept[0][0][0][:] = 7


def test_another_way_of_starting_processes_takes_the_pipe(monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    lent = Lent(Arrays(), 2, 100_000)
    assert not lent.slots and same(lent.take(lent[3]), Arrays()[3])


def test_buckets_and_greyscale_batches_are_the_same(save, tmp_path):
    for i in range(12):
        save(tmp_path / f"{i}.png", i, (30, 20) if i % 2 else (20, 30))
    for settings in ({"buckets": BucketSettings(side=16, multiple=4)}, {"size": (9, 7), "channels": 1}):
        source = open_source(DataSettings(source=str(tmp_path), cache=False, **settings))
        loaders = [iter(Loader(source, 4, 1, workers=workers, flip=True)) for workers in (0, 2)]
        for _ in range(9):
            alone, helped = map(next, loaders)
            assert torch.equal(alone.images, helped.images) and torch.equal(alone.indices, helped.indices)
        for loader in loaders:
            loader.close()
