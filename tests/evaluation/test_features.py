"""Streaming moments, features of images, reading sources."""

from __future__ import annotations

import warnings
import weakref

import numpy as np
import pytest
import torch

from ditkit.evaluation.features import (
    FewSamples,
    Moments,
    extract,
    frechet,
    read_images,
    views,
)
from ditkit.evaluation.pixels import Pixels
from ditkit.evaluation.reference import make_reference
from ditkit.pretrained.toy import ToyExtractor
from ditkit.protocols import BadImage, Features, Item, Views


def features(seed: int, n: int, d: int = 6, offset: float = 100.0) -> torch.Tensor:
    """Far from zero, so that sums of squares would lose digits."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d))) + offset


def pictures(n: int, channels: int = 3, size: int = 8) -> torch.Tensor:
    shape = (n, channels, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def assert_same(a: Moments, b: Moments) -> None:
    assert a.count == b.count
    torch.testing.assert_close(a.mean, b.mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(a.covariance, b.covariance, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sizes", [[1] * 40, [40], [39, 1], [7, 0, 13, 20], [2, 38]])
def test_streaming_equals_one_shot_for_any_cut(sizes):
    x = features(0, 40)
    total = Moments()
    for part in x.split(sizes):
        total = total.add(part)
    assert_same(total, Moments.of(x))
    torch.testing.assert_close(total.covariance, torch.from_numpy(np.cov(x.numpy(), rowvar=False)), rtol=1e-10, atol=0)


@pytest.mark.parametrize("seed", range(8))
def test_merging_in_any_order_and_shape(seed):
    rng = np.random.default_rng(seed)
    x = features(seed, 60)
    cuts = sorted(rng.integers(0, 61, 5).tolist())
    parts = [Moments.of(p) if len(p) else Moments() for p in torch.tensor_split(x, cuts)]
    while len(parts) > 1:  # a random tree
        i, j = rng.choice(len(parts), 2, replace=False)
        merged = parts[i].merge(parts[j])
        parts = [p for k, p in enumerate(parts) if k not in (i, j)] + [merged]
    assert_same(parts[0], Moments.of(x))


def test_merge_changes_neither_side():
    a, b = Moments.of(features(1, 5)), Moments.of(features(2, 7))
    before = a.mean.clone(), b.scatter.clone()
    a.merge(b), a.merge(Moments()).mean.add_(1)
    assert torch.equal(a.mean, before[0]) and torch.equal(b.scatter, before[1])
    with pytest.raises(ValueError, match="cannot be merged"):
        a.merge(Moments.of(features(3, 5, d=4)))
    with pytest.raises(ValueError, match="at least 2 samples"):
        _ = Moments.of(features(4, 1)).covariance


def test_frechet_warns_below_full_rank_only():
    few, many = Moments.of(features(5, 6)), Moments.of(features(6, 60))
    with pytest.warns(FewSamples, match="6 samples of 6 features"):
        assert np.isfinite(frechet(few, many))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet(Moments.of(features(7, 7)), many)


def test_fingerprint_follows_the_data():
    x = features(8, 30)
    assert Moments.of(x).fingerprint == Moments.of(x[:11]).add(x[11:]).fingerprint
    assert Moments.of(x).fingerprint != Moments.of(x + 1e-3).fingerprint


@pytest.mark.parametrize("batch", [1, 5, 23, 100])
def test_extraction_does_not_depend_on_the_batch(batch):
    extractor, images = ToyExtractor(), pictures(23)
    whole = extract(extractor, images)
    assert whole.shape == (23, extractor.width) and whole.dtype == torch.float32
    torch.testing.assert_close(extract(extractor, images, batch=batch), whole, rtol=0, atol=1e-6)
    seen = []
    extract(extractor, images, batch=batch, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (23, 23) and len(seen) == -(-23 // batch)


def test_extraction_refuses_nan_and_nothing():
    class Broken:
        id, width = "broken", 2

        def __call__(self, images):
            pooled = torch.full((len(images), 2), float("nan"))
            return Features(pooled[:, None], pooled, (1, 1))

    with pytest.raises(ValueError, match=r"extractor broken: NaN or infinite features for images 0\.\.3"):
        extract(Broken(), pictures(4))
    with pytest.raises(ValueError, match="no images"):
        extract(Broken(), pictures(4)[:0])


class Source:
    classes, channels, size, fingerprint = ("a", "b"), 3, (8, 8), "toy"

    def __init__(self, n: int, bad: tuple[int, ...] = ()):
        self.images, self.bad = pictures(n), bad

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index in self.bad:
            raise BadImage(f"{index}.png", "truncated")
        return Item(self.images[index], index % 2, "", f"{index}.png")


def test_reading_a_source():
    images, labels = read_images(Source(9, bad=(2, 5)))
    kept = [0, 1, 3, 4, 6, 7, 8]
    assert torch.equal(images, Source(9).images[kept]) and labels.tolist() == [i % 2 for i in kept]
    images, _ = read_images(Source(10), limit=5)
    assert torch.equal(images, Source(10).images[::2]), "spread over the source, not its first class"
    with pytest.raises(ValueError, match="none of the 2"):
        read_images(Source(2, bad=(0, 1)))


def test_each_image_is_in_memory_once():
    alive: set[int] = set()
    most = []

    class Watched(Source):
        def __getitem__(self, index):
            image = self.images[index].clone()
            alive.add(index)
            weakref.finalize(image, alive.discard, index)
            most.append(len(alive))
            return Item(image, index % 2, "", f"{index}.png")

    images, labels = read_images(Watched(20))
    assert torch.equal(images, Source(20).images) and len(labels) == 20
    assert max(most) <= 2, "the one that is read and the one before"


def test_images_of_several_sizes_are_refused():
    class Uneven(Source):
        def __getitem__(self, index):
            return Item(self.images[index][:, : 8 - index // 3], 0, "", f"{index}.png")

    with pytest.raises(ValueError, match=r"3\.png has another size than the first image \(3x8x8 and 3x7x8\)"):
        read_images(Uneven(5))


def test_a_reference_is_known_by_its_images_not_by_rounding():
    """Another device or thread count gives other last digits: no reason to refuse a comparison."""
    images = pictures(40)

    class Rounded(ToyExtractor):
        def __call__(self, images):
            features = super().__call__(images)
            return features._replace(pooled=features.pooled * (1 + 1e-6))

    one, other = make_reference(ToyExtractor(), images), make_reference(Rounded(), images)
    assert one.moments.fingerprint != other.moments.fingerprint and one.fingerprint == other.fingerprint
    changed = images.clone()
    changed[3, 0, 1, 1] ^= 1
    assert make_reference(ToyExtractor(), changed).fingerprint != one.fingerprint
    assert make_reference(ToyExtractor(), images[:39]).fingerprint != one.fingerprint


def test_floor_is_half_against_half_and_fixed():
    reference = make_reference(ToyExtractor(), pictures(80))
    a, b = reference.halves()
    assert len(a) == len(b) == 40
    assert sorted(map(tuple, torch.cat([a, b]).tolist())) == sorted(map(tuple, reference.features.tolist()))
    floor = reference.floor()
    assert floor == reference.floor() and floor["frechet"] == frechet(Moments.of(a), Moments.of(b)) > 0


def test_pixels_are_a_feature_space():
    tiny, large = pictures(5, 1, 8), pictures(5, 3, 40)
    space = Pixels(1, (8, 8))
    assert space.width == 64 == space(tiny).pooled.shape[1]
    torch.testing.assert_close(space(tiny).pooled, tiny.flatten(1) / 127.5 - 1)
    averaged = Pixels(3, (40, 40))
    assert averaged(large).grid == (16, 16) and averaged(large).pooled.shape == (5, averaged.width)
    assert averaged.id != space.id


@pytest.mark.parametrize("sizes", [[5, 35], [39, 1], [13, 14, 13], [40, 0]])
def test_taking_a_part_out_leaves_the_rest(sizes):
    parts = features(9, 40).split(sizes)
    assert_same(Moments.of(features(9, 40)).without(Moments.of(parts[-1]) if len(parts[-1]) else Moments()),
                Moments.of(torch.cat(parts[:-1])))  # fmt: skip
    with pytest.raises(ValueError, match="of 40 samples cannot be taken out of those of 40"):
        Moments.of(features(9, 40)).without(Moments.of(features(9, 40)))


def test_moments_of_many_rows_are_those_of_all(monkeypatch):
    x = features(10, 40)
    whole = Moments.of(x)
    monkeypatch.setattr("ditkit.evaluation.features.AT_ONCE", 7)
    assert_same(Moments.of(x), whole)


class Seeing:
    """Pooled, spatial and class views in one look; counts its looks."""

    id, width, looks = "seeing", 3, 0

    def __call__(self, images):
        pooled = images.float().mean((2, 3))
        return Features(pooled[:, None], pooled, (1, 1))

    def views(self, images):
        self.looks += len(images)
        pooled = images.float().mean((2, 3))
        return Views(pooled, images.float().flatten(1)[:, :5], pooled.softmax(1))


@pytest.mark.parametrize("batch", [1, 5, 23, 100])
def test_all_views_in_one_pass(batch):
    images, seeing, seen = pictures(23), Seeing(), []
    got = views(seeing, images, batch, progress=lambda *at: seen.append(at))
    assert seeing.looks == 23 and seen[-1] == (23, 23)
    want = Seeing().views(images)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(extract(seeing, images, batch), got.pooled)


def test_views_of_a_plain_extractor_and_of_a_classifier():
    got = views(ToyExtractor(), pictures(4))
    assert got.spatial is None and got.probabilities is None
    assert torch.equal(got.pooled, extract(ToyExtractor(), pictures(4)))

    class Naming(ToyExtractor):
        def probabilities(self, images, batch=128):
            return torch.full((len(images), 2), 0.5)

    assert torch.equal(views(Naming(), pictures(4), batch=3).probabilities, torch.full((4, 2), 0.5))
    with pytest.raises(ValueError, match="no images"):
        views(Naming(), pictures(4)[:0])


def test_a_broken_spatial_view_is_refused():
    class Broken(Seeing):
        def views(self, images):
            seen = super().views(images)
            return seen._replace(spatial=seen.spatial / 0)

    with pytest.raises(ValueError, match=r"extractor seeing: NaN or infinite features for images 0\.\.3"):
        views(Broken(), pictures(4))
