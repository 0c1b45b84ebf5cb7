"""One door to all sources, the settings behind it, and the scan of a source before a run."""

import pytest
import torch
from pydantic import ValidationError

from ditkit.data import DataError, DataSettings, Digits, Folder, Subset, open_source, scan


def test_words_and_settings_open_the_same():
    assert isinstance(open_source("digits"), Digits)
    assert open_source("digits").fingerprint == open_source(DataSettings()).fingerprint
    source = open_source(DataSettings(source="digits", split="test", size=16, channels=3))
    assert len(source) == 360 and source[0].image.shape == (3, 16, 16)


def test_folder(pets):
    source = open_source(pets)
    assert isinstance(source, Folder) and source.size == (10, 12) and source.channels == 3
    assert open_source(DataSettings(source=str(pets), size=(4, 6), channels=1))[0].image.shape == (1, 4, 6)
    assert open_source(str(pets), multiple=8).size == (8, 8)


def test_split_of_a_folder(pets):
    parts = [open_source(DataSettings(source=str(pets), split=split, size=8)) for split in ("train", "test")]
    assert [len(part) for part in parts] == [9, 3] and all(isinstance(part, Subset) for part in parts)
    whole = Folder(pets, 8)
    names = sorted(part.name(i) for part in parts for i in range(len(part)))
    assert names == sorted(whole.name(i) for i in range(12))
    assert parts[1].classes == ("cat", "dog") and set(parts[1].labels.tolist()) == {0, 1}
    assert len({parts[0].fingerprint, parts[1].fingerprint, whole.fingerprint}) == 3
    item = parts[1][0]
    assert torch.equal(item.image, whole[whole.files.index(item.path.removeprefix(f"{pets}/"))].image)


def test_home_folder_is_understood(pets, monkeypatch):
    monkeypatch.setenv("HOME", str(pets.parent))
    assert len(open_source("~/pets")) == 12


@pytest.mark.parametrize(
    "name,message",
    [
        ("digitz", "no such file or folder; did you mean 'digits'"),
        ("/no/where", "no such file or folder; give 'digits', a folder"),
        ("a.png", "this is a single image"),
        ("a.zip", "not a readable zip archive"),
        ("a.tar", "an empty file"),
        ("a.tar.gz", "no random access: unpack it"),
        ("/no/where.tar", "no such file or folder"),
        ("a.bin", "this is a file"),
    ],
)
def test_wrong_names_get_one_clear_line(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name.startswith("a."):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=message) as caught:
        open_source(name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_cache_setting(pets, monkeypatch):
    reads = []
    original = Folder.picture
    monkeypatch.setattr(Folder, "picture", lambda self, i: reads.append(i) or original(self, i))
    for cache, expected in ((False, 2), (True, 1), (None, 1)):
        reads.clear()
        source = open_source(DataSettings(source=str(pets), size=8, cache=cache))
        assert torch.equal(source[3].image, source[3].image) and len(reads) == expected
    monkeypatch.setattr("ditkit.data.open.CACHE_LIMIT", 12 * 3 * 8 * 8 - 1)
    reads.clear()
    source = open_source(DataSettings(source=str(pets), size=8))
    assert source[3].label == source[3].label and len(reads) == 2


@pytest.mark.parametrize("bad", [{"size": 0}, {"size": (8, -1)}, {"channels": 2}, {"workers": -1}, {"sorce": "x"}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValidationError):
        DataSettings(**bad)


def test_settings_survive_json():
    settings = DataSettings(source="x", size=(24, 40), split="train", flip=True)
    assert DataSettings.model_validate_json(settings.model_dump_json()) == settings
    assert (settings.shape(), DataSettings(size=8).shape(), DataSettings().shape()) == ((24, 40), (8, 8), None)


def test_scan(pets, save):
    (pets / "cat" / "0.png").write_bytes(b"no picture")
    (pets / "cat" / "1.txt").write_text("one")
    save(pets / "dog" / "0.png", 0, (30, 20))
    (pets / "birds").mkdir()
    (pets / "birds" / "1.jpg").touch()
    calls = []
    found = scan(Folder(pets, 8), lambda done, total: calls.append((done, total)))
    assert (found.images, found.usable, found.captions) == (13, 11, 1)
    assert found.classes == {"birds": 0, "cat": 4, "dog": 7} and found.sizes == {(10, 12): 10, (20, 30): 1}
    assert set(found.rejects) == {str(pets / "cat" / "0.png"), str(pets / "birds" / "1.jpg")}
    assert calls == [(13, 13)]
    text = "\n".join(found.lines())
    assert "13 images, 11 usable" in text and "10x12 (10), 20x30 (1)" in text and "class 'birds' has no usable" in text
    assert f"unusable: {pets / 'birds' / '1.jpg'}: the file is empty" in text


def test_scan_of_nothing_usable_still_reports(tmp_path):
    for i in range(300):  # more than one block
        (tmp_path / f"{i}.png").touch()
    found = scan(Folder(tmp_path, 8))
    assert found.usable == 0 and len(found.rejects) == 300 and not found.sizes


@pytest.mark.parametrize("source", ["digits", "nowhere"])
def test_sizes_that_nothing_reaches(source):
    with pytest.raises(DataError, match=r"size 100000x100000 is out of reach"):
        open_source(DataSettings(source=source, size=100_000))
