"""Zip archives, read in place: their forms are those of folders (test_sources_alike); here what is a zip's own."""

import json
import zipfile

import pytest
import torch

from ditkit.data import Columns, DataError, DataSettings, Folder, open_source, scan
from ditkit.protocols import BadImage


@pytest.fixture
def packed(pets, tmp_path):
    """pets.zip of the folder `pets`, as `zip -r pets.zip pets` makes it."""
    with zipfile.ZipFile(tmp_path / "pets.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(pets.rglob("*")):
            archive.write(file, file.relative_to(tmp_path))
        archive.writestr("__MACOSX/pets/cat/._0.png", b"junk")
    return tmp_path / "pets.zip"


def archive_of(path, files, kind=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def test_as_the_folder_that_was_packed(packed, pets):
    inside, outside = Folder(packed), Folder(pets)
    assert inside.files == outside.files and inside.classes == outside.classes == ("cat", "dog")
    assert inside.labels.tolist() == outside.labels.tolist() and inside.size == outside.size
    assert all(torch.equal(inside[i].image, outside[i].image) for i in range(12))
    assert inside.name(0) == f"{packed}/pets/cat/0.png" and inside.key(0) == "cat/0.png" == outside.key(0)
    assert inside.fingerprint == outside.fingerprint, "names, sizes, labels, captions are the same"


def test_table_captions_and_scores_inside(pets, tmp_path):
    image = (pets / "cat" / "0.png").read_bytes()
    table = "file_name,label,text,aesthetic\na.png,sea,wide,4.5\nsub/ö.png,hill,,6\n"
    path = archive_of(tmp_path / "a.zip", {"a.png": image, "sub/ö.png": image, "metadata.csv": table, "x.npy": b"1"})
    source = open_source(str(path))
    assert source.classes == ("hill", "sea") and [source[i].caption for i in range(2)] == ["wide", ""]
    assert source.column("aesthetic") == ["4.5", "6"]
    with pytest.raises(DataError, match=r"no column 'aesthetics'; did you mean 'aesthetic'\?"):
        source.column("aesthetics")
    assert any("not read" in note and "1 .npy" in note for note in source.notes)
    jsonl = json.dumps({"file_name": "a.png", "caption": ["one", "two"]})
    path = archive_of(tmp_path / "b.zip", {"in/a.png": image, "in/data.jsonl": jsonl})
    assert open_source(str(path))[0].captions.original == ("one", "two")
    with pytest.raises(DataError, match="did you mean 'caption'"):
        Folder(path, columns=Columns(text="captions"))


def test_synthetic_captions_beside_the_archive(packed):
    (packed.parent / "pets.synthetic.jsonl").write_text('{"file_name": "dog/3.png", "synthetic": "a dog, it seems"}\n')
    source = Folder(packed)
    assert source.captions(source.files.index("dog/3.png")).synthetic == ("a dog, it seems",)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_ways_of_packing(method, pets, tmp_path):
    files = {f"{i}.png": (pets / "cat" / f"{i}.png").read_bytes() for i in range(3)}
    source = Folder(archive_of(tmp_path / "a.zip", files, method))
    assert [source.place.read(name) for name in source.files] == list(files.values())
    assert source.shape(1) == (10, 12) and source.labels.tolist() == [-1] * 3


def test_a_method_that_is_not_read_is_named(pets, tmp_path):
    path = archive_of(tmp_path / "a.zip", {"0.png": (pets / "cat" / "0.png").read_bytes()}, zipfile.ZIP_LZMA)
    with pytest.raises(BadImage, match=r"packed by a method that is not read here \(lzma\)"):
        Folder(path, 8)[0]


def test_one_damaged_member_is_one_reject(packed):
    data = bytearray(packed.read_bytes())
    with zipfile.ZipFile(packed) as archive:
        info = archive.getinfo("pets/cat/3.png")
    start = info.header_offset + 30 + len(info.filename)
    data[start + 40] ^= 0xFF
    packed.write_bytes(data)
    found = scan(Folder(packed, 8))
    assert found.usable == 11 and list(found.rejects) == [f"{packed}/pets/cat/3.png"]
    (reason,) = found.rejects.values()
    assert "cannot be unpacked" in reason or "checksum" in reason


def test_wrong_checksums_and_moved_headers_are_seen(pets, tmp_path):
    files = {f"{i}.png": (pets / "cat" / f"{i}.png").read_bytes() for i in range(3)}
    path = archive_of(tmp_path / "a.zip", files, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[30 + len("0.png") + len(files["0.png"]) - 1] ^= 1
    data[data.index(b"PK\3\4", 10)] ^= 1
    path.write_bytes(data)
    source = Folder(path, 8)
    assert source[2].image.shape == (3, 8, 8)
    for index, reason in ((0, "its checksum is not the one"), (1, "its header is not where")):
        with pytest.raises(BadImage, match=reason):
            source[index]


@pytest.mark.parametrize("keep", [0, 10, 200, 0.5, 0.99])
def test_cut_off_archives_are_one_line(keep, packed):
    data = packed.read_bytes()
    packed.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(DataError, match=r"pets\.zip: not a readable zip archive \([^\n]+\)$"):
        open_source(str(packed))


def test_empty_encrypted_and_imageless(tmp_path, packed):
    with pytest.raises(DataError, match=r"no images in this archive \(it is empty\)"):
        open_source(str(archive_of(tmp_path / "a.zip", {})))
    with pytest.raises(DataError, match=r"no images in this archive \(found 1 \.txt, 1 \.npy\)"):
        open_source(str(archive_of(tmp_path / "a.zip", {"a.npy": b"", "b/c.txt": b""})))
    data = bytearray(packed.read_bytes())
    place = data.index(b"PK\1\2")
    while place >= 0:  # the flag of encryption in every entry of the directory
        data[place + 8] |= 1
        place = data.find(b"PK\1\2", place + 4)
    packed.write_bytes(data)
    with pytest.raises(DataError, match=r"encrypted \(pets/cat/0\.png\); unpack it with its password"):
        open_source(str(packed))


def test_a_name_that_stands_twice_counts_as_when_unpacked(pets, tmp_path):
    images = [(pets / "cat" / f"{i}.png").read_bytes() for i in range(2)]
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        for image in images:
            archive.writestr("a.png", image)
    source = Folder(tmp_path / "a.zip")
    assert len(source) == 1 and source.place.read("a.png") == images[1]


def test_split_and_class_mixing_are_refused_as_in_a_folder(pets, tmp_path):
    image = (pets / "cat" / "0.png").read_bytes()
    with pytest.raises(DataError, match="class folders mixed with 1 loose"):
        open_source(str(archive_of(tmp_path / "a.zip", {"a/1.png": image, "b/1.png": image, "1.png": image})))
    with pytest.raises(DataError, match="its folders are splits"):
        open_source(str(archive_of(tmp_path / "a.zip", {"x/train/1.png": image, "x/test/1.png": image})))


def test_names_that_lead_out_of_the_archive(pets, tmp_path):
    image = (pets / "cat" / "0.png").read_bytes()
    files = {"/cat/x.png": image, "dog/y.png": image, "../../evil.png": image}
    source = Folder(archive_of(tmp_path / "a.zip", files))
    assert source.classes == ("cat", "dog") and source.files == ["cat/x.png", "dog/y.png"] and scan(source).usable == 2
    assert "not read, they lead out of the archive: 1 (../../evil.png, ...)" in source.notes[0]


def test_backslashes_and_settings(pets, tmp_path):
    image = (pets / "cat" / "0.png").read_bytes()
    path = archive_of(tmp_path / "A.ZIP", {"cat/x.png": image, "dog/y.png": image})
    data = path.read_bytes().replace(b"cat/x.png", b"cat\\x.png")
    path.write_bytes(data)
    source = open_source(DataSettings(source=str(path), size=(4, 6), channels=1))
    assert source.classes == ("cat", "dog") and source[0].image.shape == (1, 4, 6)
