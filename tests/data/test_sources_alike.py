"""The same pictures give the same items from a folder, a zip, a tar, parquet files and a hub's data set."""

import io
import json
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from ditkit.data import DataSettings, Loader, open_source, scan
from ditkit.data.rejects import read_rejects

NAMES = ("cat", "dog", "ünï cödé 猫")


def picture(seed, ending):
    """Encoded bytes of a picture of its own size."""
    shape = (10 + seed % 3, 12 + seed % 4, 3)
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))
    content = io.BytesIO()
    image.save(content, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[ending])
    return content.getvalue()


@pytest.fixture(scope="module")
def samples():
    """(class, file name, bytes, caption) of thirteen pictures, one of which is none."""
    found = []
    for i in range(13):
        ending = ("jpg", "png", "webp")[i % 3]
        data = b"junk" if i == 7 else picture(i, ending)
        found.append((NAMES[i % 3], f"{i:03d}.{ending}", data, f"a caption, number {i}: ü"))
    return sorted(found)


def as_folder(root, samples):
    for name, file, data, text in samples:
        (root / "pets" / name).mkdir(parents=True, exist_ok=True)
        (root / "pets" / name / file).write_bytes(data)
        (root / "pets" / name / f"{file[:3]}.txt").write_text(text + "\n", "utf-8")
    return root / "pets"


def as_zip(root, samples, kind=zipfile.ZIP_DEFLATED, top=""):
    with zipfile.ZipFile(root / "pets.zip", "w", kind) as archive:
        for name, file, data, text in samples:
            archive.writestr(f"{top}{name}/{file}", data)
            archive.writestr(f"{top}{name}/{file[:3]}.txt", text)
    return root / "pets.zip"


def as_stored_zip(root, samples):
    return as_zip(root, samples, zipfile.ZIP_STORED, "pets/")


def add(archive, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def as_tar(root, samples):
    """One shard with .cls and .txt."""
    with tarfile.open(root / "pets.tar", "w") as archive:
        for name, file, data, text in samples:
            for ending, content in ((file[4:], data), ("cls", name.encode()), ("txt", text.encode())):
                add(archive, f"{file[:3]}.{ending}", content)
    return root / "pets.tar"


def as_shards(root, samples):
    """Three shards with all in .json, of the two other tar formats."""
    for shard in range(3):
        kind = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)[shard % 2]
        with tarfile.open(root / f"pets-{shard:03d}.tar", "w", format=kind) as archive:
            for name, file, data, text in samples[shard * 5 : shard * 5 + 5]:
                long = "x" * 120 + "/" + file  # a name that asks for a header of its own
                add(archive, long, data)
                add(archive, long[:-4].rstrip(".") + ".json", json.dumps({"label": name, "caption": text}).encode())
    return root / "pets-{000..002}.tar"


def as_packed_folder(root, samples):
    folder = as_folder(root / "unpacked", samples)
    with tarfile.open(root / "all.tar", "w") as archive:
        archive.add(folder, "pets", filter=lambda info: info)
    return root / "all.tar"


def as_parquet(root, samples):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names, _, data, texts = zip(*samples, strict=True)
    pq.write_table(pa.table({"image": data, "label": names, "text": texts}), root / "pets.parquet", row_group_size=4)
    return root / "pets.parquet"


def data_set(samples):
    datasets = pytest.importorskip("datasets")
    names, files, data, texts = zip(*samples, strict=True)
    features = datasets.Features(
        {"img": datasets.Image(), "fine": datasets.ClassLabel(names=list(NAMES)), "text": datasets.Value("string")}
    )
    images = [{"bytes": content, "path": file} for content, file in zip(data, files, strict=True)]
    return datasets.Dataset.from_dict({"img": images, "fine": list(names), "text": list(texts)}, features)


def as_saved(root, samples):
    pytest.importorskip("datasets").DatasetDict(train=data_set(samples)).save_to_disk(root / "saved")
    return root / "saved"


def as_snapshot(root, samples):
    """A hub's repository: data/train-00000-of-00002.parquet, ..."""
    (root / "snapshot" / "data").mkdir(parents=True)
    for part in range(2):
        rows = data_set(samples[part * 7 : part * 7 + 7])
        rows.to_parquet(root / "snapshot" / "data" / f"train-{part:05d}-of-00002.parquet")
    data_set(samples[:2]).to_parquet(root / "snapshot" / "data" / "test-00000-of-00001.parquet")
    return root / "snapshot"


def as_hub(root, samples, monkeypatch=None):
    """hub:ID with the id of a folder that the package loads as it would a repository."""
    return f"hub:{as_snapshot(root, samples)}"


FORMS = (
    as_folder,
    as_zip,
    as_stored_zip,
    as_tar,
    as_shards,
    as_packed_folder,
    as_parquet,
    as_saved,
    as_snapshot,
    as_hub,
)


@pytest.fixture(params=FORMS, ids=lambda form: form.__name__)
def place(request, samples, tmp_path, monkeypatch):
    if request.param is as_hub:
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return str(request.param(tmp_path, samples))


def test_items_are_equal(place, samples):
    source = open_source(DataSettings(source=place, size=(9, 11)))
    assert len(source) == 13 and source.classes == NAMES
    wanted = {text: (name, data) for name, _, data, text in samples}
    seen = set()
    for i in range(13):
        (text,) = source.captions(i).original
        name, data = wanted[text]
        assert source.classes[source.labels[i]] == name
        seen.add(text)
        if data == b"junk":
            continue
        from ditkit.data import adm_crop, to_uint8

        image = Image.open(io.BytesIO(data)).convert("RGB")
        assert torch.equal(source[i].image, to_uint8(adm_crop(image, (9, 11)), 3))
        assert source[i].caption == text and source[i].label == source.labels[i]
        assert source.shape(i) == (image.height, image.width) and source[i].path == source.name(i)
    assert len(seen) == 13
    assert len({source.key(i) for i in range(13)}) == len({source.name(i) for i in range(13)}) == 13


def test_scan_rejects_and_stratified_parts(place):
    source = open_source(DataSettings(source=place, size=8))
    found = scan(source)
    assert (found.images, found.usable, found.captions) == (13, 12, 12)
    (path,) = found.rejects
    assert found.rejects[path] == "not a picture in a known format" and path in [source.name(i) for i in range(13)]
    parts = [open_source(DataSettings(source=place, size=8, split=split)) for split in ("train", "test")]
    assert sum(map(len, parts)) == 13


def test_batches_do_not_depend_on_workers_and_sources_pickle(place, tmp_path):
    source = open_source(DataSettings(source=place, size=8, cache=False))
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint == source.fingerprint
    assert torch.equal(copy[2].image, source[2].image)
    streams = []
    for workers in (0, 2):
        batches = iter(Loader(source, 5, 3, workers=workers, rejects=tmp_path / f"{workers}.jsonl"))
        streams.append([next(batches) for _ in range(4)])
        batches.close()
    for alone, helped in zip(*streams, strict=True):
        assert torch.equal(alone.images, helped.images) and torch.equal(alone.labels, helped.labels)
        assert alone.captions == helped.captions and torch.equal(alone.indices, helped.indices)
    assert read_rejects(tmp_path / "0.jsonl").keys() == read_rejects(tmp_path / "2.jsonl").keys() != set()


def test_fingerprint_and_identity_know_the_pictures(place, samples, tmp_path):
    from ditkit.data import identity_of

    source = open_source(DataSettings(source=place, size=8))
    again, larger = open_source(DataSettings(source=place, size=8)), open_source(DataSettings(source=place, size=9))
    assert source.fingerprint == again.fingerprint != larger.fingerprint
    assert identity_of(source) == identity_of(again) == identity_of(larger)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_one_picture_more_is_another_identity(form, samples, tmp_path, monkeypatch):
    from ditkit.data import identity_of

    if form is as_hub:
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    both = []
    for number, some in enumerate((samples, samples[:-1])):
        (tmp_path / str(number)).mkdir()
        both.append(identity_of(open_source(DataSettings(source=str(form(tmp_path / str(number), some)), size=8))))
    assert both[0] != both[1]


def test_buckets_read_sizes(place):
    from ditkit.data import BucketSettings

    source = open_source(DataSettings(source=place, buckets=BucketSettings(side=16, multiple=4)))
    assert len(source.buckets.bad) == 1 and (source.buckets.of >= 0).sum() == 12


def test_many_processes_may_open_one_tar(samples, tmp_path):
    place = as_tar(tmp_path, samples)
    kept = tmp_path / ".pets.tar.index.npz"
    first = open_source(DataSettings(source=str(place), size=8))
    written = kept.read_bytes()
    os.utime(place, ns=(1, 1))  # another file, for all that anyone can tell
    second = open_source(DataSettings(source=str(place), size=8))
    assert first.fingerprint == second.fingerprint and kept.read_bytes() != written
