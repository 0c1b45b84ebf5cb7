"""Aspect-ratio buckets: the sizes, whose they are, and batches of one bucket each that leave no image out."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ditkit.data import BucketOrder, BucketSettings, DataError, DataSettings, Digits, Loader, adm_crop, open_source
from ditkit.data.buckets import bucket_sizes, nearest, sort_shapes
from ditkit.data.order import Order
from ditkit.data.transforms import to_uint8

# the portrait half of SDXL's list (arXiv 2307.01952, appendix I), as (short side, long side)
SDXL = """512x2048 512x1984 512x1920 512x1856 576x1792 576x1728 576x1664 640x1600 640x1536 704x1472 704x1408 704x1344
768x1344 768x1280 832x1216 832x1152 896x1152 896x1088 960x1088 960x1024 1024x1024"""
SMALL = BucketSettings(side=16, multiple=4, max_ratio=2.5)


def test_sdxls_sizes():
    published = {tuple(map(int, size.split("x"))) for size in SDXL.split()}
    sizes = set(bucket_sizes(BucketSettings(side=1024, multiple=64, max_ratio=4)))
    assert sizes == published | {(long, short) for short, long in published}


@pytest.mark.parametrize(
    "settings", [SMALL, BucketSettings(side=512), BucketSettings(side=96, multiple=16, max_ratio=3)]
)
def test_sizes_are_of_one_area(settings):
    sizes = bucket_sizes(settings)
    assert (settings.side, settings.side) in sizes and len(sizes) > 1
    assert set(sizes) == {size[::-1] for size in sizes}
    for h, w in sizes:
        assert h % settings.multiple == w % settings.multiple == 0
        assert 0.9 <= h * w / settings.side**2 <= 1 and max(h, w) <= settings.max_ratio * min(h, w)


def test_ratio_one_is_the_square_alone():
    assert bucket_sizes(BucketSettings(max_ratio=1)) == ((256, 256),)


def test_nearest_in_aspect_ratio():
    sizes = ((8, 32), (12, 20), (16, 16), (20, 12), (32, 8))
    shapes = np.array([(100, 100), (100, 165), (300, 180), (1, 50), (50, 1), (20, 15), (24, 15)])
    chosen = nearest(shapes, sizes)
    assert [sizes[i] for i in chosen] == [(16, 16), (12, 20), (20, 12), (8, 32), (32, 8), (20, 12), (20, 12)]
    assert nearest(np.array([(10, 10)]), ((8, 8), (9, 9))).tolist() == [1]  # the larger of equal ratios


def test_small_buckets_join_their_nearest_neighbour():
    shapes = np.array([(16, 16)] * 8 + [(24, 10)] * 3 + [(20, 12)] * 5 + [(0, 0)] + [(10, 24)])
    whole, notes = sort_shapes(shapes, SMALL)
    assert whole.sizes == ((12, 20), (16, 16), (20, 12)) and len(notes) == 1
    assert Counter(whole.of.tolist()) == {0: 1, 1: 8, 2: 8, -1: 1}
    merged, notes = sort_shapes(shapes, SMALL, fewest=4)
    assert Counter(merged.of.tolist()) == {-1: 1, 0: 9, 1: 8}
    assert merged.sizes == ((16, 16), (20, 12)) and merged.of[16] == -1
    assert any("1 images are in the next bucket: their own had fewer than 4 images" in note for note in notes)
    one, _ = sort_shapes(shapes, SMALL, fewest=100)
    assert one.sizes == ((16, 16),) and (one.of[shapes[:, 0] > 0] == 0).all()


# the order


def check_passes(order, of, epochs):
    """After each epoch every bucket is less than a batch behind, and no image is ahead of another by two visits."""
    counts = np.zeros(len(of), dtype=int)
    for epoch in range(epochs):
        for step in order.steps(epoch):
            indices = order.indices(step * order.batch, (step + 1) * order.batch)
            assert len(set(of[indices].tolist())) == 1
            np.add.at(counts, indices, 1)
        for b in range(of.max() + 1):
            mine = counts[of == b]
            assert mine.sum() == (epoch + 1) * len(mine) // order.batch * order.batch
            assert mine.max() - mine.min() <= 1
        assert (counts[of < 0] == 0).all()
    return counts


@pytest.mark.parametrize("sizes,batch", [((40, 23, 9), 4), ((5, 1), 4), ((3, 2), 16), ((64, 32), 8), ((7,), 3)])
def test_no_image_is_left_out_and_leftovers_come_first_in_the_next_pass(sizes, batch):
    of = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    of = np.concatenate([of, [-1]])
    order = BucketOrder(of, batch, seed=1)
    counts = check_passes(order, of, 2 * batch)
    assert (counts[of >= 0] == 2 * batch).all(), "after a multiple of `batch` epochs all leftovers are used up"
    steps = [order.steps(epoch) for epoch in range(2 * batch)]
    assert all(a.stop == b.start for a, b in itertools.pairwise(steps)) and steps[-1].stop == 2 * sum(sizes)


def test_buckets_that_batches_divide_are_seen_exactly_once_an_epoch():
    of = np.repeat([0, 1, 2], [24, 8, 16])
    order = BucketOrder(of, 8, seed=0)
    for epoch in range(3):
        seen = np.concatenate([order.indices(8 * step, 8 * step + 8) for step in order.steps(epoch)])
        assert sorted(seen.tolist()) == list(range(48))


def test_the_order_is_a_function_of_seed_and_step():
    of = np.random.default_rng(1).integers(0, 5, 200)
    order = BucketOrder(of, 8, seed=2)
    whole = [order.indices(8 * step, 8 * step + 8) for step in range(120)]
    for step in (119, 3, 60, 61):
        fresh = BucketOrder(of, 8, seed=2)
        parts = [fresh.indices(8 * step + r, 8 * step + r + 2) for r in range(0, 8, 2)]
        assert np.array_equal(np.concatenate(parts), whole[step])
    other = BucketOrder(of, 8, seed=3)
    assert any(not np.array_equal(other.indices(8 * s, 8 * s + 8), whole[s]) for s in range(3))
    buckets = [order.bucket(step)[0] for step in range(120)]
    assert len(set(buckets[:25])) == 5 and buckets != sorted(buckets), "buckets alternate"
    assert BucketOrder(of, 8, 2).bucket(10**9) is not None
    with pytest.raises(ValueError, match="several batches"):
        order.indices(4, 12)


def test_one_bucket_repeats_as_order_does():
    order = BucketOrder(np.zeros(6, dtype=int), 4, seed=0)
    seen = np.concatenate([order.indices(4 * step, 4 * step + 4) for step in range(6)]).reshape(4, 6)
    assert (np.sort(seen) == np.arange(6)).all()
    assert seen.ravel().tolist() == Order(6, 0, "order of bucket 0").indices(0, 24).tolist()


# the loader

SHAPES = [(30, 30)] * 6 + [(20, 44)] * 5 + [(40, 26)] * 3  # (W, H)


@pytest.fixture
def mixed(tmp_path, save):
    """14 pictures of three shapes and one whose header is damaged."""
    root = tmp_path / "data"
    for i, size in enumerate(SHAPES):
        save(root / f"{i:02d}.png", i, size)
    (root / "99.png").write_bytes(b"junk")
    return root


def take(loader, n):
    return list(itertools.islice(loader, n))


def test_batches_of_one_bucket_each(mixed, tmp_path):
    source = open_source(DataSettings(source=str(mixed), buckets=SMALL))
    assert source.size == (16, 16) and source.buckets.sizes == ((12, 20), (16, 16), (20, 12))
    loader = Loader(source, 4, seed=0, flip=True, rejects=tmp_path / "r.jsonl")
    seen = Counter()
    for batch in take(loader, 28):  # 8 passes of 14 images
        assert tuple(batch.images.shape) == (4, 3, *source.size_of(int(batch.indices[0])))
        seen.update(batch.indices.tolist())
    assert seen == {i: 8 for i in range(14)}
    assert list(loader.rejected) == [source.name(14)] and len(seen) + len(loader.rejected) == len(source)
    assert any(note.startswith("images that cannot be opened: 1; they go to the reject list") for note in source.notes)
    assert any(note.startswith("buckets of about 16x16 pixels (height x width: images)") for note in source.notes)


def test_pictures_are_resized_and_cropped_to_their_bucket(mixed):
    source = open_source(DataSettings(source=str(mixed), buckets=SMALL))
    for i, (width, height) in enumerate(SHAPES):
        h, w = source.size_of(i)
        assert abs(np.log(h / w) - np.log(height / width)) <= abs(np.log(height / width)) + 1e-9
        with Image.open(source.name(i)) as stored:
            assert torch.equal(source[i].image, to_uint8(adm_crop(stored, (h, w)), 3))
    assert {source.size_of(i) for i in range(6)} == {(16, 16)}
    assert {source.size_of(i)[0] > source.size_of(i)[1] for i in range(6, 11)} == {True}


@pytest.mark.parametrize("settings", [{"workers": 2}, {"start_step": 4}, {"start_step": 4, "workers": 1}])
def test_resume_and_workers(mixed, settings):
    loader = Loader(open_source(DataSettings(source=str(mixed), buckets=SMALL)), 4, seed=5)
    whole, start = take(loader, 8), settings.get("start_step", 0)
    for a, b in zip(whole[start:], take(replace(loader, **settings), 8 - start), strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.indices, b.indices) and a.positions == b.positions


def test_world_size_does_not_count(mixed):
    loader = Loader(open_source(DataSettings(source=str(mixed), buckets=SMALL)), 4, seed=5)
    ranks = [take(replace(loader, rank=rank, world=2), 6) for rank in range(2)]
    for step, whole in enumerate(take(loader, 6)):
        assert torch.equal(torch.cat([part[step].images for part in ranks]), whole.images)


def test_a_bad_picture_is_replaced_within_its_bucket(mixed):
    data = (mixed / "07.png").read_bytes()
    (mixed / "07.png").write_bytes(data[: len(data) // 2])  # the header is whole
    source = open_source(DataSettings(source=str(mixed), buckets=SMALL))
    loader = Loader(source, 4, seed=0)
    seen = Counter(i for batch in take(loader, 28) for i in batch.indices.tolist())
    assert seen[7] == 0 and seen[8] == 16 and set(loader.rejected) == {source.name(7), source.name(14)}


def test_a_bucket_of_bad_pictures_is_one_clear_line(mixed):
    for i in range(11, 14):
        data = (mixed / f"{i}.png").read_bytes()
        (mixed / f"{i}.png").write_bytes(data[: len(data) // 2])
    source = open_source(DataSettings(source=str(mixed), buckets=SMALL))
    with pytest.raises(DataError, match=r"none of the 3 images of a bucket can be used; .*11\.png"):
        take(Loader(source, 2, seed=0), 20)


def test_buckets_with_fewer_images_than_a_batch_join(mixed):
    settings = DataSettings(source=str(mixed), buckets=SMALL)
    source = open_source(settings, batch=4)
    assert sorted(Counter(source.buckets.of.tolist()).values()) == [1, 5, 9]
    assert source.fingerprint != open_source(settings).fingerprint
    assert source.fingerprint == open_source(settings, batch=4).fingerprint


def test_splits_and_classes(mixed, pets):
    part = open_source(DataSettings(source=str(mixed), split="train", buckets=SMALL))
    whole = open_source(DataSettings(source=str(mixed), buckets=SMALL))
    assert len(part.buckets.of) == len(part) == 12
    assert [part.size_of(i) for i in range(12)] == [whole.size_of(int(row)) for row in part.rows]
    assert open_source(DataSettings(source=str(pets), buckets=SMALL)).classes == ("cat", "dog")


def test_settings_that_cannot_be(mixed):
    with pytest.raises(ValueError, match=r"buckets\.side 100 must be a multiple of buckets\.multiple 64"):
        BucketSettings(side=100)
    with pytest.raises(ValueError, match="leave one out"):
        DataSettings(size=32, buckets=SMALL)
    assert DataSettings(size=16, buckets=SMALL).buckets == SMALL
    with pytest.raises(DataError, match=r"buckets\.multiple 4 must be a multiple of 16"):
        open_source(DataSettings(source=str(mixed), buckets=SMALL), multiple=16)
    for file in mixed.glob("*.png"):
        file.write_bytes(b"junk")
    with pytest.raises(DataError, match="none of the 15 images can be read"):
        open_source(DataSettings(source=str(mixed), buckets=SMALL))


def test_the_usual_order_is_what_it_was():
    digits = Digits("test")
    assert next(iter(Loader(digits, 6, seed=0))).indices.tolist() == Order(360, 0).indices(0, 6).tolist()
    assert Order(360, 0).indices(0, 4).tolist() == [122, 286, 344, 118]
