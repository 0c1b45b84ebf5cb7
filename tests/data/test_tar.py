"""Webdataset's tar shards: the scan, its index file, random access, and what is damaged."""

import io
import json
import os
import tarfile
import time

import numpy as np
import pytest
import torch
from PIL import Image

from ditkit.data import Columns, DataError, DataSettings, Folder, Loader, Tar, open_source, scan
from ditkit.data.tar import expand_braces
from ditkit.data.tar_index import index_path, read_shard, scan_tar, split_name
from ditkit.protocols import BadImage


def png(seed=0, size=(12, 10)):
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def write(path, members, kind=tarfile.GNU_FORMAT):
    """A tar of (name, bytes)."""
    with tarfile.open(path, "w", format=kind) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def shard(tmp_path):
    """Ten samples with .cls, .txt and .json."""
    members = []
    for i in range(10):
        about = {"aesthetic": i / 2, "url": "x"}
        texts = {"cls": str(i % 3), "txt": f"picture {i}\n", "json": json.dumps(about)}
        members.append((f"{i:04d}.png", png(i)))
        members += [(f"{i:04d}.{end}", text.encode()) for end, text in texts.items()]
    return write(tmp_path / "a.tar", members)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_the_scan_finds_what_tarfile_finds(kind, tmp_path):
    folder = "d" * 60
    members = [("a.jpg", b"x"), (f"{folder}/{folder}.jpg", b"y" * 700), ("empty.txt", b""), ("z.bin", b"z" * 512)]
    if kind != tarfile.USTAR_FORMAT:
        members += [(f"{folder}/{folder}/{folder}/ü猫.jpg", b"w" * 1025), ("after.jpg", b"v")]
    path = write(tmp_path / "a.tar", members, kind)
    with tarfile.open(path, "a", format=kind) as archive:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
        archive.addfile(link)
        folder_entry = tarfile.TarInfo("folder")
        folder_entry.type = tarfile.DIRTYPE
        archive.addfile(folder_entry)
    with tarfile.open(path) as archive:
        wanted = [(m.name, m.offset_data, m.size) for m in archive if m.isreg()]
    assert [tuple(member[:3]) for member in scan_tar(path) if not member.link] == wanted and len(wanted) == len(members)


def test_sizes_in_base_256_are_read(tmp_path):
    path = write(tmp_path / "a.tar", [("a.jpg", b"x" * 600), ("b.jpg", b"y")])
    data = bytearray(path.read_bytes())
    data[124:136] = b"\x80" + (600).to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    assert [(m.name, m.size) for m in scan_tar(path)] == [("a.jpg", 600), ("b.jpg", 1)]


def test_samples(shard):
    source = Tar(shard)
    assert len(source) == 10 and source.classes == ("0", "1", "2") and source.size == (10, 12)
    for i in (9, 0, 4):
        item = source[i]
        assert item.label == i % 3 and item.caption == f"picture {i}" and item.path == f"{shard}/{i:04d}.png"
        wanted = np.array(Image.open(io.BytesIO(png(i))))
        assert np.array_equal(item.image.permute(1, 2, 0).numpy(), wanted)
    assert source.key(3) == "a.tar/0003.png" and source.column("aesthetic")[:3] == [0, 0.5, 1.0]
    with pytest.raises(DataError, match=r"no column 'esthetic'; did you mean 'aesthetic'\?"):
        source.column("esthetic")


def test_names_are_grouped_as_webdataset_does():
    assert split_name("a/b.c.PNG") == ("a/b", ".c.png") and split_name("a.b/c") == ("a.b/c", "")


def test_webdataset_reads_the_same_samples(shard):
    webdataset = pytest.importorskip("webdataset")
    theirs = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    ours = Tar(shard, 8)
    assert len(theirs) == len(ours)
    for i, sample in enumerate(theirs):
        assert ours.names[i] == sample["__key__"] + ".png" and ours._part(i, 0) == sample["png"]
        assert ours.classes[ours.labels[i]] == sample["cls"].decode() and ours.captions(i).original == (
            sample["txt"].decode().strip(),
        )


def test_webdatasets_writer_is_read(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "w.tar")) as writer:
        for i in range(4):
            writer.write({"__key__": f"s{i}", "png": png(i), "cls": i, "json": {"caption": [f"c{i}", "d"]}})
    source = open_source(str(tmp_path / "w.tar"))
    assert source.classes == ("0", "1", "2", "3") and source[2].captions.original == ("c2", "d")


def test_second_pictures_and_dotted_names(tmp_path):
    both = [("0.jpg", png(0)), ("0.mask.png", png(1)), ("0.png", png(2)), ("0.cls", b"a")]
    dotted = [("IMG.1.5.png", png(3)), ("IMG.1.5.cls", b"b"), ("IMG.1.6.png", png(4)), ("IMG.1.6.cls", b"c")]
    source = Tar(write(tmp_path / "a.tar", both + dotted))
    assert source.names == ["0.jpg", "IMG.1.5.png", "IMG.1.6.png"] and source.classes == ("a", "b", "c")
    assert any("1 .mask.png, 1 .png" in note for note in source.notes)


def test_labels_from_json_folders_or_none(tmp_path):
    def about(**keys):
        return json.dumps(keys).encode()

    members = [(f"{i}.{end}", data) for i in range(3) for end, data in (("png", png(i)), ("json", about(cls=7 - i)))]
    assert Tar(write(tmp_path / "a.tar", members)).classes == ("5", "6", "7")
    members = [(f"{i}.{end}", data) for i in range(3) for end, data in (("png", png(i)), ("json", about(kind=f"k{i}")))]
    path = write(tmp_path / "b.tar", members)
    assert Tar(path, columns=Columns(label="kind")).classes == ("k0", "k1", "k2")
    with pytest.raises(DataError, match=r"no column 'kin'; did you mean 'kind'"):
        Tar(path, columns=Columns(label="kin"))
    unlabelled = Tar(path)
    assert unlabelled.classes == () and any("unlabelled: neither .cls" in note for note in unlabelled.notes)
    path = write(tmp_path / "c.tar", [(f"./top/{name}/{i}.png", png(i)) for i, name in enumerate(("10", "9", "x"))])
    assert Tar(path).classes == ("10", "9", "x") and any("folders in the tar" in note for note in Tar(path).notes)
    path = write(tmp_path / "d.tar", [("0.png", png()), ("0.cls", b"1"), ("1.png", png())])
    with pytest.raises(DataError, match=r"1 of 2 rows have no label, the first is 1\.png"):
        Tar(path)


def test_captions_of_every_kind(tmp_path):
    about = json.dumps({"caption": "from json", "alt": "other", "synthetic": ["s1", "s2"]}).encode()
    members = [("0.png", png()), ("0.txt", b"one\n\n two \n"), ("1.png", png()), ("1.json", about), ("2.png", png())]
    members += [("2.synthetic.txt", b"made"), ("3.png", png()), ("3.txt", b"\xff\xfe")]
    path = write(tmp_path / "a.tar", members)
    source = Tar(path, 8)
    assert [source.captions(i) for i in range(3)] == [
        (("one", "two"), ()), (("from json",), ("s1", "s2")), ((), ("made",)),
    ]  # fmt: skip
    with pytest.raises(BadImage, match=r"its \.txt is not UTF-8 text"):
        source[3]
    assert Tar(path, 8, columns=Columns(text="alt"))[1].captions.original == ("other",)
    (tmp_path / "a.synthetic.jsonl").write_text('{"file_name": "a.tar/0.png", "synthetic": "beside"}\n')
    assert Tar(path, 8).captions(0) == (("one", "two"), ("beside",)) and Tar(path, 8).fingerprint != source.fingerprint


def test_folders_and_patterns_of_shards(tmp_path):
    for shard in (8, 9, 10):
        write(tmp_path / f"s-{shard:02d}.tar", [(f"{i}.png", png(10 * shard + i)) for i in range(shard - 7)])
    by_folder, by_pattern = open_source(str(tmp_path)), open_source(str(tmp_path / "s-{08..10}.tar"))
    assert isinstance(by_folder, Tar) and len(by_folder) == len(by_pattern) == 6
    assert by_folder.fingerprint == by_pattern.fingerprint
    assert [by_folder.key(i) for i in (0, 1, 5)] == ["s-08.tar/0.png", "s-09.tar/0.png", "s-10.tar/2.png"]
    with pytest.raises(DataError, match=r"s-11\.tar: no such file \(2 of 5 shards of .* are missing\)"):
        open_source(str(tmp_path / "s-{08..12}.tar"))
    assert expand_braces("{a,b}-{1..2}") == ["a-1", "a-2", "b-1", "b-2"] and expand_braces("x") == ["x"]
    (tmp_path / "one.png").write_bytes(png())
    assert isinstance(open_source(str(tmp_path)), Folder), "a folder of images with a tar among them"


def test_the_index_is_kept_and_checked(shard, monkeypatch):
    kept = index_path(shard)
    first = read_shard(shard)
    assert kept.is_file() and not list(shard.parent.glob("*.part"))
    monkeypatch.setattr("ditkit.data.tar_index.scan_tar", lambda path: pytest.fail("scanned again"))
    again = read_shard(shard)
    assert again.names == first.names and np.array_equal(again.where, first.where)
    assert (again.labels, again.others, again.damage) == (first.labels, first.others, first.damage)
    assert np.array_equal(again.captioned, first.captioned)
    monkeypatch.undo()
    for data in (b"", b"junk", kept.read_bytes()[:-50]):
        kept.write_bytes(data)
        assert read_shard(shard).names == first.names
    write(shard, [("only.png", png())])
    assert read_shard(shard).names == ("only.png",), "another file under the same name"


def test_a_moved_shard_and_a_single_unlabelled_one(tmp_path):
    path = write(tmp_path / "a.tar", [("0.png", png())])
    read_shard(path)
    assert read_shard(path).labels == ("",) and len(Tar(path)) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(shard):
    shard.parent.chmod(0o500)
    try:
        assert len(Tar(shard)) == 10 and not index_path(shard).exists()
    finally:
        shard.parent.chmod(0o700)


def test_a_disk_that_takes_no_index(shard, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    assert len(Tar(shard)) == 10 and not index_path(shard).exists()


@pytest.mark.parametrize(("left", "whole", "cut"), [(-40, 3, 1), (-512, 3, 0), (-800, 3, 0), (-1100, 2, 1), (5, 4, 0)])
def test_a_cut_off_shard(left, whole, cut, tmp_path):
    """Whole samples stay, one that is cut within its picture is a reject, and a note says so."""
    path = write(tmp_path / "a.tar", [(f"{i}.png", png(i)) for i in range(4)])
    with tarfile.open(path) as archive:
        last = archive.getmember("3.png")
    assert last.size < 512, "each sample takes two blocks of 512 bytes"
    path.write_bytes(path.read_bytes()[: last.offset_data + last.size + left])
    source = Tar(path, 8)
    assert any("cut off after" in note and str(path) in note for note in source.notes)
    found = scan(source)
    assert (found.usable, len(found.rejects)) == (whole, cut)
    assert all("cut off: the archive ends after" in reason for reason in found.rejects.values())


def test_a_damaged_header_ends_what_is_read(tmp_path):
    path = write(tmp_path / "a.tar", [(f"{i}.png", png(i)) for i in range(4)])
    with tarfile.open(path) as archive:
        place = archive.getmember("2.png").offset
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)
    source = Tar(path, 8)
    assert source.names == ["0.png", "1.png"] and any(f"damaged at byte {place}" in note for note in source.notes)


def test_a_damaged_picture_is_one_reject(shard, tmp_path):
    with tarfile.open(shard) as archive:
        place = archive.getmember("0004.png").offset_data
    data = bytearray(shard.read_bytes())
    data[place : place + 8] = b"\0" * 8
    shard.write_bytes(data)
    loader = Loader(open_source(DataSettings(source=str(shard), size=8)), 10, 0, rejects=tmp_path / "r.jsonl")
    batch = next(iter(loader))
    assert list(loader.rejected) == [f"{shard}/0004.png"] and 4 not in batch.indices.tolist()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"an empty file \(0 bytes\)"),
        (b"\x1f\x8b" + b"\0" * 2000, "it is compressed, which allows no random access"),
        (b"junk" * 500, r"not a tar archive \(no header\)"),
        (b"\0" * 10240, r"no images in it \(found nothing\)"),
    ],
)
def test_what_is_no_shard_is_one_line(data, message, tmp_path):
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        open_source(str(tmp_path / "a.tar"))
    assert "a.tar" in str(caught.value) and "\n" not in str(caught.value)


def test_strange_members(tmp_path):
    members = [("0.npy", b"1"), ("readme", b"2"), (".hidden.png", b"junk"), ("a/._1.png", b"junk")]
    with pytest.raises(DataError, match=r"no images in it \(found 1 \.npy, 1 no ending\)"):
        Tar(write(tmp_path / "a.tar", members))
    members += [("0.png", png(0)), ("0.png", png(1)), ("0.json", b"[1, 2]")]
    source = Tar(write(tmp_path / "a.tar", members))
    assert len(source) == 1 and source._part(0, 0) == png(1) and source[0].caption == ""
    assert any("1 members stand in it twice" in note for note in source.notes)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_links_stand_for_the_files_they_lead_to(kind, tmp_path):
    """Hard ones from the top of the archive, symbolic ones from their folder; long names, chains, lost ones."""
    long = "a/" + "l" * 80 + "/" + "p" * (5 if kind == tarfile.USTAR_FORMAT else 60) + ".png"
    path = write(tmp_path / "a.tar", [("a/0.png", png(0)), (long, png(1))], kind)
    links = [
        ("b/1.png", tarfile.LNKTYPE, "a/0.png"), ("b/2.png", tarfile.SYMTYPE, "../a/0.png"),
        ("b/3.png", tarfile.LNKTYPE, long), ("b/4.png", tarfile.SYMTYPE, "2.png"), ("b/5.png", tarfile.SYMTYPE, "no"),
        ("b/6.png", tarfile.SYMTYPE, "6.png"),
    ]  # fmt: skip
    with tarfile.open(path, "a", format=kind) as archive:
        for name, type_, to in links:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = type_, to
            archive.addfile(link)
    source = Tar(path)
    found = {name: source._part(i, 0) for i, name in enumerate(source.names)}
    wanted = {"a/0.png": 0, long: 1, "b/1.png": 0, "b/2.png": 0, "b/3.png": 1, "b/4.png": 0}
    assert found == {name: png(seed) for name, seed in wanted.items()}
    assert any("2 links lead to no file in it" in note for note in source.notes)


def test_an_empty_cls_is_named_with_its_shard(tmp_path, monkeypatch):
    write(tmp_path / "a.tar", [("0.png", png()), ("0.cls", b""), ("1.png", png()), ("1.cls", b"3")])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^a\.tar \(\.cls, \.json\): 1 of 2 rows have no label, the first is 0\.png"):
        Tar("a.tar")


def test_order_is_that_of_any_source(shard):
    source = Tar(shard, 8)
    batches = [batch for batch, _ in zip(Loader(source, 4, 7), range(6), strict=False)]
    resumed = next(iter(Loader(source, 4, 7, start_step=5)))
    assert torch.equal(resumed.images, batches[5].images) and resumed.captions == batches[5].captions


def test_a_large_shard_is_scanned_at_once(tmp_path):
    """2,000 samples of three members: seconds, where a start must not take minutes."""
    picture = png()
    parts = (("png", picture), ("cls", b"1"), ("txt", b"x"))
    members = [(f"{i:05d}.{end}", data) for i in range(2000) for end, data in parts]
    path = write(tmp_path / "a.tar", members)
    start = time.process_time()
    assert len(read_shard(path).names) == 2000
    assert time.process_time() - start < 3
    start = time.process_time()
    assert len(read_shard(path).names) == 2000
    assert time.process_time() - start < 0.5
