"""A cache as a source: random access, what is checked, what a damaged shard means; nothing is written by half."""

from __future__ import annotations

import itertools
import json
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ditkit.data import DataError, DataSettings, Loader, open_source
from ditkit.data.cache import Cache
from ditkit.data.cache_batches import Asked
from ditkit.data.cache_format import Stored, read_manifest
from ditkit.data.cache_write import wrong_files
from ditkit.protocols import BadImage
from ditkit.recipes.choose import choose
from ditkit.recipes.encode import encode, open_encoding

CPU = torch.device("cpu")
ITEMS, SHARD = 22, 8


def images(folder: Path, broken: tuple[int, ...] = (5,)) -> Path:
    """Two classes of small pictures, one of them damaged."""
    for i in range(ITEMS):
        path = folder / "ab"[i * 2 // ITEMS] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
        if i in broken:
            path.write_bytes(path.read_bytes()[:60])
    return folder


def write(data: Path, out: Path, changes: tuple[str, ...] = (), mirror: bool = True):
    ours = choose("repa.sit_s_2", list(changes), data=str(data), codec="toy", teachers=["toy"])
    stored = Stored(shard=SHARD, batch=3, mirror=mirror, dtype="fp32", features="fp16")
    return encode(open_encoding(ours, out, CPU, stored))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A cache that is not to be changed."""
    root = tmp_path_factory.mktemp("cache")
    write(images(root / "images"), root / "cache")
    return root / "cache"


@pytest.fixture
def own(made, tmp_path) -> Path:
    """A copy that may be damaged."""
    for path in made.iterdir():
        (tmp_path / "cache").mkdir(exist_ok=True)
        (tmp_path / "cache" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "cache"


def flip_byte(path: Path, name: str, row: int = 0) -> None:
    """Damage one byte of a row of a tensor."""
    data = bytearray(path.read_bytes())
    head = int.from_bytes(data[:8], "little")
    told = json.loads(data[8 : 8 + head])[name]
    start, stop = told["data_offsets"]
    data[8 + head + start + row * (stop - start) // told["shape"][0]] ^= 255
    path.write_bytes(data)


def first(loader: Loader, n: int = 3) -> list:
    return list(itertools.islice(loader, n))


def same(a, b) -> bool:
    features = all(torch.equal(x.tokens, y.tokens) for x, y in zip(a.features, b.features, strict=True))
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) and features


# ------------------------------------------------------------------------------------------------ reading


def test_it_says_what_it_holds_as_a_source_of_images_does(made):
    cache, source = open_source(str(made)), open_source(str(made.parent / "images"))
    assert isinstance(cache, Cache) and len(cache) == len(source) == ITEMS
    assert cache.classes == ("a", "b") and np.array_equal(cache.labels, source.labels)
    assert cache.size == (8, 8) and cache.channels == 3 and cache.fingerprint == source.fingerprint
    assert cache.key(3) == source.key(3) and cache.name(5) == source.name(5)
    assert "a cache of 21 images (1 of 22 rejected) in 3 shards" in cache.notes[0]
    with pytest.raises(BadImage, match=r"005\.png.*cannot be decoded"):
        cache.place(5)
    with pytest.raises(IndexError):
        cache.place(ITEMS)


def test_shards_are_safetensors_that_any_reader_reads(made):
    tensors = load_file(made / "shard-00000.safetensors")
    assert tensors["moments"].shape == tensors["mirrored.moments"].shape == (SHARD, 24, 4, 4)
    assert tensors["features.0"].dtype == torch.float16 and tensors["labels"].tolist() == [0] * SHARD
    assert not tensors["moments"][5].any(), "a row of zeros for the rejected image"
    assert json.loads(tensors["words"].numpy().tobytes().splitlines()[2])["path"].endswith("002.png")
    assert (made / "labels.safetensors").is_file()


def test_batches_are_the_same_for_any_workers_ranks_and_start(made):
    cache = open_source(str(made))
    want = first(Loader(cache, 6, 3, flip=True))
    for workers in (1, 3):
        assert all(map(same, want, first(Loader(cache, 6, 3, flip=True, workers=workers))))
    later = first(Loader(cache, 6, 3, flip=True, start_step=1), 2)
    assert all(map(same, want[1:], later))
    halves = [first(Loader(cache, 6, 3, flip=True, rank=r, world=2), 1)[0] for r in range(2)]
    assert torch.equal(torch.cat([h.images for h in halves]), want[0].images)
    assert torch.equal(torch.cat([h.features[0].tokens for h in halves]), want[0].features[0].tokens)
    again = pickle.loads(pickle.dumps(cache))
    assert all(map(same, want, first(Loader(again, 6, 3, flip=True))))


def test_flips_show_the_mirrored_copy_and_its_features(made):
    cache, codec_turn = open_source(str(made)), load_file(made / "shard-00000.safetensors")
    whole, plain = first(Loader(cache, 44, 0, flip=True), 1)[0], first(Loader(cache, 44, 0), 1)[0]
    seen = [(int(i), torch.equal(a, b)) for i, a, b in zip(whole.indices, whole.images, plain.images, strict=True)]
    assert {same for _, same in seen} == {True, False}
    for row, (index, unchanged) in enumerate(seen):
        if index < SHARD and not unchanged:
            assert torch.equal(whole.images[row], codec_turn["mirrored.moments"][index])
            assert torch.equal(whole.features[0].tokens[row], codec_turn["mirrored.features.0"][index])


def test_only_what_is_asked_for_is_read(made, own):
    for shard in range(3):
        flip_byte(own / f"shard-{shard:05d}.safetensors", "features.0", 0)
    batch = first(Loader(open_source(str(own)), ITEMS, 0, asked=Asked(teachers=())), 1)[0]
    assert batch.features == () and batch.cond is None
    with pytest.raises(DataError, match=r"shard-0000\d\.safetensors: is damaged \(the checksum of row 0 is wrong\)"):
        first(Loader(open_source(str(own)), ITEMS, 0), 1)


def test_few_files_are_open_at_a_time(made, monkeypatch):
    monkeypatch.setattr("ditkit.data.cache_read.OPEN", 1)
    cache = Cache(made)
    assert all(map(same, first(Loader(cache, 7, 0, workers=3)), first(Loader(Cache(made), 7, 0))))
    assert len(cache.shards._files) == 1


def test_a_loader_that_is_closed_leaves_no_thread(made):
    import threading

    batches = iter(Loader(open_source(str(made)), 4, 0, workers=2))
    next(batches)
    assert [t for t in threading.enumerate() if t.name.startswith("cache")]
    batches.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("cache")]


# ------------------------------------------------------------------------------------------------ damage


def test_a_damaged_shard_stops_or_its_images_are_replaced(own, tmp_path):
    flip_byte(own / "shard-00001.safetensors", "moments", 2)
    with pytest.raises(DataError, match=r"shard-00001.safetensors: is damaged .*`ditkit encode` .* just this shard"):
        first(Loader(open_source(str(own)), ITEMS, 0), 1)
    settings = DataSettings(source=str(own), corrupt="skip")
    loader = Loader(open_source(settings), ITEMS, 0, rejects=tmp_path / "rejects.jsonl")
    batch = first(loader, 1)[0]
    used = batch.indices.tolist()
    assert 10 not in used and used.count(11) == 2 and used.count(6) == 2, "the next usable images take their places"
    reasons = dict(json.loads(line).values() for line in (tmp_path / "rejects.jsonl").read_text().splitlines())
    assert len(reasons) == 2
    assert "checksum of row 2 is wrong" in next(why for path, why in reasons.items() if "shard-00001" in path)
    assert same(batch, first(Loader(open_source(settings), ITEMS, 0, workers=2), 1)[0])


@pytest.mark.parametrize("damage", ["short", "gone", "head"])
def test_a_shard_of_another_size_is_seen_when_the_cache_is_opened(own, damage):
    path = own / "shard-00002.safetensors"
    if damage == "short":
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])
    if damage == "head":  # of the right size: seen when it is read
        with pytest.raises(DataError, match="its head is damaged"):
            first(Loader(open_source(str(own)), ITEMS, 0), 1)
    else:
        with pytest.raises(DataError, match=r"shard-00002.safetensors: (is damaged|cannot be read)"):
            open_source(str(own))
    cache = open_source(DataSettings(source=str(own), corrupt="skip"))
    used = first(Loader(cache, ITEMS, 0), 1)[0].indices
    assert used.max() < 2 * SHARD, "images of the first two shards take the places of its images"
    assert sorted({facts.file for facts, _ in wrong_files(own, read_manifest(own))}) == ["shard-00002.safetensors"]


def test_encoding_again_makes_just_the_damaged_shard_again(made, own, tmp_path):
    want = {path.name: path.read_bytes() for path in made.iterdir()}
    flip_byte(own / "shard-00001.safetensors", "moments", 2)
    untouched = (own / "shard-00000.safetensors").stat().st_mtime_ns
    write(made.parent / "images", own)
    assert {path.name: path.read_bytes() for path in own.iterdir()} == want
    assert (own / "shard-00000.safetensors").stat().st_mtime_ns == untouched
    (own / "rejects.jsonl").write_text("nonsense\n")
    (own / "labels.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=r"labels\.safetensors: is damaged"):
        open_source(str(own))
    write(made.parent / "images", own)
    assert {path.name: path.read_bytes() for path in own.iterdir()} == want


def test_a_manifest_that_is_damaged_or_newer_is_refused_in_one_line(own):
    text = (own / "manifest.json").read_text()
    (own / "manifest.json").write_text(text.replace('"version": 1', '"version": 2'))
    with pytest.raises(DataError, match="a cache of version 2, this ditkit reads 1"):
        open_source(str(own))
    (own / "manifest.json").write_text(text.replace('"counts"', '"sums"'))
    with pytest.raises(DataError, match=r"manifest.json: not readable as a cache's") as caught:
        open_source(str(own))
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ full disks


def test_a_full_disk_is_one_line_and_leaves_whole_shards(tmp_path, made):
    """A limit on the size of files, which the system enforces as it does a full disk."""
    data, out = made.parent / "images", tmp_path / "cache"
    largest = max(path.stat().st_size for path in made.glob("shard-*"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 100, before[1]))
    try:
        with pytest.raises(
            DataError, match="the cache cannot be written: File too large; finished shards stay"
        ) as seen:
            write(data, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(seen.value)
    assert sorted(path.name for path in out.iterdir()) == ["plan.json"]
    with pytest.raises(DataError, match="an unfinished cache: shards 0-2 of 3 are missing"):
        open_source(str(out))
    write(data, out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == {p.name: p.read_bytes() for p in made.iterdir()}


def test_rows_of_zeros_for_rejects_have_no_part_in_sums(made):
    manifest = read_manifest(made)
    assert [facts.usable for facts in manifest.contents] == [7, 8, 6]
    assert [facts.numbers for facts in manifest.contents] == [7 * 16, 8 * 16, 6 * 16]
