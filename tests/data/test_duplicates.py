"""Near-duplicates: the hash, exact search against brute force, groups, clusters of a planted folder."""

import io
import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from ditkit.config import SettingsError, read_settings
from ditkit.data import DataSettings, open_source, read_index
from ditkit.data.duplicate_clusters import DuplicateSettings, montage, near_hashes
from ditkit.data.duplicates import Groups, cosine_pairs, differing, hamming_pairs, mirrored, picture_hash, stars
from ditkit.pretrained import ToyExtractor
from ditkit.recipes.curate import find_duplicates


def photo(seed, size=(128, 96)):
    """A picture with the spectrum of a photograph: random phases, amplitude 1/f, colours that go together."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(size[1])[:, None], np.fft.rfftfreq(size[0])[None])
    amplitude = 1 / np.maximum(frequency, 1 / max(size))
    waves = [amplitude * (rng.normal(size=amplitude.shape) + 1j * rng.normal(size=amplitude.shape)) for _ in range(4)]
    grey, *colours = (np.fft.irfft2(wave, size[::-1]) for wave in waves)
    pixels = np.stack([0.7 * grey + 0.4 * colour for colour in colours], -1)
    return Image.fromarray((127 + 45 * (pixels - pixels.mean()) / pixels.std()).clip(0, 255).astype(np.uint8))


def jpeg(picture, quality):
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=quality)
    return Image.open(content)


CHANGES = {
    "half": lambda p: p.resize((64, 48)),
    "a third": lambda p: p.resize((43, 32), Image.Resampling.BILINEAR),
    "double": lambda p: p.resize((256, 192)),
    "jpeg 15": lambda p: jpeg(p, 15),
    "half, jpeg 40": lambda p: jpeg(p.resize((64, 48)), 40),
    "darker": lambda p: ImageEnhance.Brightness(p).enhance(0.7),
    "less contrast": lambda p: ImageEnhance.Contrast(p).enhance(0.6),
    "grey": lambda p: p.convert("L"),
}


def distance(a, b):
    return int(differing(picture_hash(a)[None], picture_hash(b)[None])[0])


@pytest.mark.parametrize("change", CHANGES)
def test_changed_pictures_stay_near(change):
    photos = [photo(seed) for seed in range(25)]
    distances = [distance(p, CHANGES[change](p)) for p in photos]
    assert np.percentile(distances, 90) <= 15 and max(distances) <= 24


def test_distinct_pictures_are_far_apart():
    hashes = np.array([picture_hash(photo(seed)) for seed in range(60)])
    distances = [differing(a[None], b[None])[0] for a, b in itertools.combinations(hashes, 2)]
    assert min(distances) > 80 and 120 < np.mean(distances) < 136


def test_mirrored_hashes_are_those_of_mirrored_pictures():
    for seed in range(10):
        turned = photo(seed).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        near = differing(mirrored(picture_hash(photo(seed))[None]), picture_hash(turned)[None])[0]
        assert near <= 2 and distance(photo(seed), turned) > 80


def test_pictures_without_detail_differ_by_brightness():
    flat = [Image.new("RGB", (40, 30), (level,) * 3) for level in (0, 3, 128, 255)]
    assert [distance(flat[0], other) for other in flat] == [0, 3, 128, 255]
    assert distance(flat[2], photo(0)) > 60


@pytest.mark.parametrize(
    ("count", "bits", "radius"), [(300, 256, 15), (300, 256, 40), (400, 64, 9), (200, 32, 5), (1, 64, 3)]
)
def test_search_equals_brute_force(count, bits, radius):
    rng = np.random.default_rng(count + bits + radius)
    hashes = rng.integers(0, 256, (count, bits // 8), dtype=np.uint8)
    for row in range(count // 3):  # neighbours at all distances about the radius
        other = hashes[rng.integers(count)].copy()
        for bit in rng.choice(bits, rng.integers(0, 2 * radius), replace=False):
            other[bit // 8] ^= 1 << (bit % 8)
        hashes[row] = other
    found = {tuple(pair) for block in hamming_pairs(hashes, radius) for pair in block.tolist()}
    bitwise = np.unpackbits(hashes, axis=1)
    apart = (bitwise[:, None] != bitwise[None]).sum(-1)
    wanted = {(i, j) for i, j in zip(*np.nonzero(apart <= radius), strict=True) if i < j}
    assert found == wanted and (count < 2 or len(wanted) > 5)


def test_search_against_others_and_in_small_pieces(monkeypatch):
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 256, (200, 32), dtype=np.uint8)
    hashes[:40] = mirrored(hashes[100:140])
    hashes[:40, 3] ^= 5
    monkeypatch.setattr("ditkit.data.duplicates.PIECES", 7)
    found = {tuple(p) for block in hamming_pairs(hashes, 3, mirrored(hashes)) for p in block.tolist()}
    assert found == {(i, 100 + i) for i in range(40)}


def test_bits_are_counted_without_numpy_2(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 50, 32), dtype=np.uint8)
    wanted = np.unpackbits(a ^ b, axis=1).sum(1)
    assert np.array_equal(differing(a, b), wanted)
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert np.array_equal(differing(a, b), wanted)


def test_cosines_equal_brute_force(monkeypatch):
    monkeypatch.setattr("ditkit.data.duplicates.BLOCK", 17)
    vectors = np.random.default_rng(0).normal(size=(100, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    told = []
    found = [
        tuple(p) for block in cosine_pairs(vectors, 0.8, progress=lambda *x: told.append(x)) for p in block.tolist()
    ]
    wanted = {(i, j) for i, j in zip(*np.nonzero(vectors @ vectors.T >= 0.8), strict=True) if i < j}
    assert set(found) == wanted and len(found) == len(wanted) > 20 and told[-1] == (21, 21)


def test_equal_rows_in_half_precision_have_a_cosine_of_one():
    vectors = np.random.default_rng(0).normal(size=(200, 768))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    twice = np.concatenate([vectors, vectors, np.zeros((2, 768), dtype=np.float16)])
    found = np.concatenate(list(cosine_pairs(twice, 1.0)))
    assert found.tolist() == [[i, i + 200] for i in range(200)]


def test_groups_follow_chains_and_stars_do_not():
    pairs = np.array([[0, 1], [1, 2], [2, 3], [5, 6]])
    groups = Groups(8)
    groups.link(pairs[::-1])
    assert groups.roots().tolist() == [0, 0, 0, 0, 4, 5, 5, 7]
    assert stars(8, pairs, np.arange(8)).tolist() == [0, 0, 2, 2, 4, 5, 5, 7]
    assert stars(8, pairs, np.array([1, 6, 0, 2, 3, 4, 5, 7])).tolist() == [1, 1, 1, 3, 4, 6, 6, 7]


def test_stars_keep_no_neighbours_and_lose_none_without_one():
    rng = np.random.default_rng(1)
    pairs = np.array(sorted({tuple(sorted(p)) for p in rng.integers(0, 80, (150, 2)).tolist() if p[0] != p[1]}))
    stands = stars(80, pairs, rng.permutation(80))
    near = {tuple(p) for p in pairs.tolist()} | {tuple(p[::-1]) for p in pairs.tolist()}
    kept = [row for row in range(80) if stands[row] == row]
    assert not any((a, b) in near for a in kept for b in kept)
    assert all((row, stands[row]) in near for row in range(80) if stands[row] != row)


@pytest.fixture
def planted(tmp_path):
    """Twelve photographs, the first four with copies: smaller, packed harder, darker, larger; one mirrored; junk."""
    root = tmp_path / "planted"
    root.mkdir()
    for seed in range(12):
        photo(seed).save(root / f"{seed:02d}.png")
    for seed in range(4):
        jpeg(photo(seed).resize((64, 48)), 50).save(root / f"{seed:02d}-small.png")
        CHANGES["darker"](photo(seed)).save(root / f"{seed:02d}-dark.png")
    photo(2).resize((256, 192)).save(root / "02-large.png")
    photo(7).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / "07-mirrored.png")
    (root / "junk.png").write_bytes(b"junk")
    return root


def lines(folder):
    return [json.loads(line) for line in (folder / "clusters.jsonl").read_text("utf-8").splitlines()]


def members(folder):
    return [sorted(member["key"] for member in line["members"]) for line in lines(folder)]


WANTED = [["02-dark.png", "02-large.png", "02-small.png", "02.png"]] + [
    [f"{i:02d}-dark.png", f"{i:02d}-small.png", f"{i:02d}.png"] for i in (0, 1, 3)
]


def test_planted_duplicates_are_found_and_nothing_else(planted, tmp_path):
    told = []
    out = tmp_path / "out"
    found = find_duplicates(DataSettings(source=str(planted)), out, DuplicateSettings(), told=lambda *x: told.append(x))
    assert sorted(members(out)) == sorted(WANTED) and members(out)[0] == WANTED[0], "the largest first"
    assert (found.images, found.clusters, found.members, found.kept) == (23, 4, 13, 13)
    assert list(found.rejects) == [str(planted / "junk.png")] and told[0] == ("hashes", 23, 23)
    for line in lines(out):
        kept = [m for m in line["members"] if m["kept"]]
        assert [m["key"] for m in kept] == [line["kept"]] and kept[0]["distance"] == 0
        assert all(0 <= m["distance"] <= 15 and m["path"].endswith(m["key"]) for m in line["members"])
    by_number = {line["kept"][:2]: line["kept"] for line in lines(out)}
    assert by_number == {"00": "00-dark.png", "01": "01-dark.png", "02": "02-large.png", "03": "03-dark.png"}
    index = read_index(out / "index.json")
    assert len(index.kept) == 13 and [rule.rule for rule in index.rules] == [
        "cannot be read", "near-duplicates: 15 bits of 256",
    ]  # fmt: skip
    assert json.loads((out / "images.rejects.jsonl").read_text())["path"] == str(planted / "junk.png")
    assert Image.open(out / "clusters.png").size[1] > 300 and len(list(planted.iterdir())) == 23
    with pytest.raises(FileExistsError, match="exists already"):
        find_duplicates(DataSettings(source=str(planted)), out, DuplicateSettings())


def test_training_sees_what_is_kept(planted, tmp_path):
    find_duplicates(DataSettings(source=str(planted)), tmp_path / "out", DuplicateSettings(mirrored=True))
    assert ["07-mirrored.png", "07.png"] in members(tmp_path / "out")
    source = open_source(DataSettings(source=str(planted), size=8, index=str(tmp_path / "out" / "index.json")))
    assert len(source) == 12 and len({source.key(i)[:2] for i in range(12)}) == 12
    assert any("12 of 23 images are used" in note for note in source.notes)


def test_zero_radius_finds_equal_pictures(planted, tmp_path):
    (planted / "twin.png").write_bytes((planted / "05.png").read_bytes())
    find_duplicates(DataSettings(source=str(planted)), tmp_path / "out", DuplicateSettings(radius=0))
    assert ["05.png", "twin.png"] in members(tmp_path / "out")
    kept = {line["kept"] for line in lines(tmp_path / "out")}
    assert "05.png" in kept and "twin.png" not in kept, "of equal size the first by key"


@pytest.mark.parametrize("change", [{}, {"linked": "star"}, {"partitions": 3}])
def test_by_meaning(change, planted, tmp_path):
    """The toy extractor sees the mean colours of 4 x 4 cells: copies of a picture are nearest to each other."""
    out, settings = tmp_path / "out", DuplicateSettings(cosine=0.985, **change)
    found = find_duplicates(DataSettings(source=str(planted), size=96), out, settings, ToyExtractor())
    vectors = np.load(out / "embeddings.npy").astype(np.float32)
    assert vectors.shape == (23, 16) and np.allclose(np.linalg.norm(vectors[:-1], axis=1), 1, atol=1e-3)
    assert list(found.rejects) == [str(planted / "junk.png")] and not vectors[-1].any()
    keys = open_source(str(planted)).files
    near = {(i, j) for i, j in zip(*np.nonzero(vectors @ vectors.T >= 0.985), strict=True) if i != j}
    for line in lines(out):
        first, *rest = (member["index"] for member in line["members"])
        for member in line["members"][1:]:
            cosine = float(vectors[first] @ vectors[member["index"]])
            assert member["distance"] == pytest.approx(1 - cosine, abs=2e-3)
        if change.get("linked") == "star":
            assert all((first, row) in near for row in rest)
    together = [set(group) for group in members(out)]
    pairs = {(f"{i:02d}.png", f"{i:02d}-small.png") for i in range(4)}
    linked = {(keys[i], keys[j]) for i, j in near}
    assert pairs <= linked or change, "an extractor that sees colours sees that these are one picture"
    if not change:
        assert all(any({a, b} <= group for group in together) for a, b in pairs)
        assert all(any({a, b} <= group for group in together) for a, b in linked)


def test_many_equal_hashes_are_compared_once(tmp_path):
    """Thousands of blank pictures must not be compared pair by pair."""
    from ditkit.data.duplicate_clusters import Looks

    class Named:
        def __len__(self):
            return 20_000

        def key(self, row):
            return f"{row:06d}"

    hashes = np.zeros((20_000, 32), dtype=np.uint8)
    hashes[:5] = np.random.default_rng(0).integers(0, 256, (5, 32))
    looks = Looks(hashes, np.ones((20_000, 2), dtype=np.int32), {})
    found = near_hashes(Named(), looks, DuplicateSettings(), lambda *x: None)
    assert [len(group) for group in found.groups] == [19_995] and len(found.kept) == 6


def test_no_duplicates_no_picture_and_nothing_readable(tmp_path):
    for seed in range(3):
        (tmp_path / "a").mkdir(exist_ok=True)
        photo(seed).save(tmp_path / "a" / f"{seed}.png")
    found = find_duplicates(DataSettings(source=str(tmp_path / "a")), tmp_path / "out", DuplicateSettings())
    assert found.clusters == 0 and found.kept == 3 and not (tmp_path / "out" / "clusters.png").exists()
    for file in (tmp_path / "a").iterdir():
        file.write_bytes(b"junk")
    with pytest.raises(ValueError, match="none of the 3 images"):
        find_duplicates(DataSettings(source=str(tmp_path / "a"), size=8), tmp_path / "no", DuplicateSettings())
    assert not (tmp_path / "no").exists() and not list(tmp_path.glob(".no*"))


def test_montage_shows_what_is_there(planted, tmp_path):
    from ditkit.data.duplicate_clusters import hash_all

    source = open_source(str(planted))
    looks = hash_all(source, lambda *x: None)
    clusters = near_hashes(source, looks, DuplicateSettings(), lambda *x: None)
    for file in planted.glob("00*"):
        file.unlink()
    page = montage(source, clusters, rows=2, columns=3, side=40)
    assert page.size == (4 * 48 + 8, 2 * 76 + 8)
    tile = torch.from_numpy(np.array(page))[26:66, 10:46].float()
    assert tile.std() > 10, "a photograph stands there"


@pytest.mark.parametrize("bad", [{"radius": 200}, {"cosine": 0}, {"linked": "chains"}, {"partitions": 0}])
def test_bad_settings(bad):
    with pytest.raises(SettingsError):
        read_settings(DuplicateSettings, bad)
