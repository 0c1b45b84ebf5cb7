"""Batches: each image once per pass, equal for any ranks, workers and resume; unusable images replaced and listed."""

import itertools
import json
import logging
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from ditkit.data import DataError, Digits, Folder, Loader, Order, Rejects, Subset, read_rejects
from ditkit.data.order import flips


def take(loader, steps):
    return list(itertools.islice(loader, steps))


def equal(a, b):
    return (
        torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and a.captions == b.captions
        and torch.equal(a.indices, b.indices)
        and a.positions == b.positions
    )


@pytest.fixture(scope="module")
def digits():
    return Subset(Digits("test"), np.arange(40))


def test_a_batch(digits):
    batch = take(Loader(digits, 12, seed=1), 1)[0]
    assert batch.images.shape == (12, 1, 8, 8) and batch.images.dtype == torch.uint8
    assert batch.labels.dtype == batch.indices.dtype == torch.int64
    assert batch.positions == range(12) and batch.captions == ("",) * 12
    for row, index in enumerate(batch.indices.tolist()):
        assert torch.equal(batch.images[row], digits[index].image) and batch.labels[row] == digits[index].label


def test_each_image_once_per_pass(digits):
    indices = torch.cat([b.indices for b in take(Loader(digits, 12, seed=1), 10)])  # 120 = 3 passes, cut anywhere
    for start in (0, 40, 80):
        assert sorted(indices[start : start + 40].tolist()) == list(range(40))
    assert indices.tolist() == Order(40, 1).indices(0, 120).tolist()


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_equal_for_any_ranks_and_workers(digits, world, workers):
    whole = take(Loader(digits, 12, seed=1, flip=True), 5)
    ranks = [take(Loader(digits, 12, seed=1, flip=True, rank=r, world=world, workers=workers), 5) for r in range(world)]
    for step, shares in enumerate(zip(*ranks, strict=True)):
        assert torch.equal(torch.cat([s.images for s in shares]), whole[step].images)
        assert torch.equal(torch.cat([s.labels for s in shares]), whole[step].labels)
        assert [p for s in shares for p in s.positions] == list(whole[step].positions)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_is_skipping(digits, workers):
    whole = take(Loader(digits, 12, seed=1, flip=True), 9)
    resumed = take(Loader(digits, 12, seed=1, flip=True, start_step=6, workers=workers), 3)
    assert all(equal(a, b) for a, b in zip(whole[6:], resumed, strict=True))
    assert equal(take(replace(Loader(digits, 12, seed=1, flip=True), start_step=8), 1)[0], whole[8])


def test_resume_far_away_reads_one_batch():
    reads = []

    class Counting(Digits):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    take(Loader(Counting("test"), 4, seed=0, start_step=10**9), 1)
    assert len(reads) == 4


def test_flips_follow_the_position(digits):
    plain, mirrored = (take(Loader(digits, 20, seed=5, flip=flip), 4) for flip in (False, True))
    for a, b in zip(plain, mirrored, strict=True):
        coins = flips(5, a.positions.start, a.positions.stop)
        assert 0 < coins.sum() < 20
        for row, coin in enumerate(coins):
            assert torch.equal(b.images[row], a.images[row].flip(-1) if coin else a.images[row])


def test_global_random_state_is_left_alone(digits):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    take(Loader(digits, 4, seed=0, flip=True, workers=1), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_more_than_one_pass_in_a_batch():
    tiny = Subset(Digits("test"), np.arange(3))
    indices = take(Loader(tiny, 8, seed=0), 3)
    assert sorted(torch.cat([b.indices for b in indices])[:9].tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("arguments", [{"batch": 0}, {"batch": 5, "world": 2}, {"batch": 4, "rank": 2, "world": 2}])
def test_impossible_cuts(digits, arguments):
    with pytest.raises(DataError, match="multiple of the number of processes"):
        Loader(digits, seed=0, **arguments)


# unusable images


@pytest.fixture
def damaged(pets):
    (pets / "cat" / "1.png").write_bytes((pets / "cat" / "1.png").read_bytes()[:60])
    (pets / "dog" / "small" / "er" / "b.png").write_bytes(b"")  # the last of all: its substitute is the first
    return Folder(pets, 8)


@pytest.mark.parametrize("workers", [0, 2])
def test_unusable_images_are_replaced_and_listed_once(damaged, tmp_path, workers, caplog):
    rejects = tmp_path / "lists" / "rejects.jsonl"
    loader = Loader(damaged, 6, seed=0, workers=workers, rejects=rejects)
    with caplog.at_level(logging.WARNING, "ditkit.data"):
        batches = take(loader, 8)  # 4 passes
    used = torch.cat([b.indices for b in batches]).reshape(4, 12)
    wanted = torch.from_numpy(Order(12, 0).indices(0, 48)).reshape(4, 12)
    assert torch.equal(used, torch.where(wanted == 1, 2, torch.where(wanted == 11, 0, wanted)))
    for batch in batches:
        assert batch.labels.tolist() == [int(damaged.labels[i]) for i in batch.indices]
    rows = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert sorted(row["path"] for row in rows) == [damaged.name(1), damaged.name(11)]
    assert {row["path"]: row["reason"] for row in rows} == read_rejects(rejects) == loader.rejected
    assert "0 bytes" in loader.rejected[damaged.name(11)] and "cannot be decoded" in loader.rejected[damaged.name(1)]
    assert len(caplog.records) == 2 and damaged.name(11) in caplog.text


def test_substitution_is_the_same_on_resume_and_in_workers(damaged):
    whole = take(Loader(damaged, 6, seed=0), 6)
    resumed = take(Loader(damaged, 6, seed=0, start_step=4, workers=2), 2)
    assert all(equal(a, b) for a, b in zip(whole[4:], resumed, strict=True))


def test_cached_sources_remember_what_is_unusable(damaged):
    plain = take(Loader(damaged, 6, seed=0), 4)
    damaged.keep_in_memory()
    loader = Loader(damaged, 6, seed=0)
    cached = take(loader, 4)
    assert all(equal(a, b) for a, b in zip(plain, cached, strict=True)) and len(loader.rejected) == 2


def test_continued_list_is_not_repeated(damaged, tmp_path):
    rejects = tmp_path / "rejects.jsonl"
    for rank in (0, 1, 0):
        take(Loader(damaged, 6, seed=0, rank=rank, world=2, rejects=rejects), 20)
    assert len(rejects.read_text().splitlines()) == 2


def test_two_writers_of_one_list(tmp_path):
    first, second = (Rejects(tmp_path / "r.jsonl") for _ in range(2))
    first.add("ünï/a.png", "bad")
    second.add("ünï/a.png", "bad")
    second.add("b.png", "worse")
    assert read_rejects(tmp_path / "r.jsonl") == {"ünï/a.png": "bad", "b.png": "worse"}
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 2


def test_names_that_are_no_text(tmp_path, save, caplog):
    save(tmp_path / "data" / "a.png")
    (tmp_path / "data" / os.fsdecode(b"caf\xe9.png")).touch()
    source = Folder(tmp_path / "data", 8)
    assert len(source.fingerprint) == 16
    take(Loader(source, 2, seed=0, workers=1, rejects=tmp_path / "r.jsonl"), 1)
    assert list(read_rejects(tmp_path / "r.jsonl")) == [source.name(1)] and "caf\\udce9.png" in caplog.text


def test_torn_list_is_readable(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"path": "a", "reason": "b"}\n{"path": "c", "rea')
    assert read_rejects(tmp_path / "r.jsonl") == {"a": "b"} and read_rejects(tmp_path / "none") == {}


@pytest.mark.parametrize("workers", [0, 2])
def test_all_unusable_is_one_clear_error(pets, tmp_path, workers):
    for file in pets.rglob("*.[pP][nN][gG]"):
        file.write_bytes(b"")
    rejects = tmp_path / "rejects.jsonl"
    with pytest.raises(DataError, match=r"none of the 12 images can be used; .*\.png: .*0 bytes") as caught:
        take(Loader(Folder(pets, 8), 4, seed=0, workers=workers, rejects=rejects), 1)
    assert "\n" not in str(caught.value) and len(read_rejects(rejects)) == 12
