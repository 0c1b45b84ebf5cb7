"""Folders of images in all their forms, and what is said about those of a wrong form."""

import os
import unicodedata
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from ditkit.data import Columns, DataError, Folder
from ditkit.data.folder import count_kinds
from ditkit.data.source import suggest_size
from ditkit.protocols import BadImage, Source


def test_class_folders(pets):
    source = Folder(pets, (10, 12))
    assert isinstance(source, Source)
    assert source.classes == ("cat", "dog") and len(source) == 12
    assert source.labels.tolist() == [0] * 5 + [1] * 7
    item = source[-1]
    assert item.label == 1 and item.caption == "" and item.path == str(pets / "dog" / "small" / "er" / "b.png")
    with Image.open(item.path) as stored:
        assert torch.equal(item.image.permute(1, 2, 0), torch.from_numpy(np.array(stored)))
    with pytest.raises(IndexError):
        source[12]


def test_classes_sort_as_text(tmp_path, save):
    for name in ("10", "9", "Zebra", "ant", "ünïcode", "日本"):
        save(tmp_path / name / "猫 1.png")
    assert Folder(tmp_path, 8).classes == ("10", "9", "Zebra", "ant", "ünïcode", "日本")


def test_flat_folder_is_unlabelled(tmp_path, save):
    for i in range(3):
        save(tmp_path / f"{i}.png", i)
    source = Folder(tmp_path, 8)
    assert source.classes == () and [source[i].label for i in range(3)] == [-1] * 3


def test_greyscale_on_request(tmp_path, save):
    save(tmp_path / "a.png", mode="L")
    assert Folder(tmp_path, 8)[0].image.shape == (3, 8, 8)
    assert Folder(tmp_path, 8, channels=1)[0].image.shape == (1, 8, 8)


def test_linked_folders_are_followed_and_loops_are_not(tmp_path, save):
    save(tmp_path / "store" / "a.png")
    save(tmp_path / "data" / "own" / "b.png")
    os.symlink(tmp_path / "store", tmp_path / "data" / "linked")
    os.symlink(tmp_path / "data", tmp_path / "data" / "own" / "back")
    os.symlink(tmp_path / "data" / "own", tmp_path / "data" / "again")
    assert Folder(tmp_path / "data", 8).files == ["again/b.png", "linked/a.png", "own/b.png"]


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda p, save: None, "no such folder"),
        (lambda p, save: p.write_text("x"), "a file, where a folder"),
        (lambda p, save: p.mkdir(), "it is empty"),
        (
            lambda p, save: ((p / "sub").mkdir(parents=True), (p / "sub/a.npy").touch(), (p / "b.TXT").touch()),
            r"no images.*found 1 \.npy, 1 \.txt|found 1 \.txt, 1 \.npy",
        ),
        (
            lambda p, save: (save(p / "cat/a.png"), save(p / "dog/b.png"), save(p / "loose.png")),
            r"2 class folders mixed with 1 loose images \(such as loose\.png\)",
        ),
        (lambda p, save: (save(p / "train/a.png"), save(p / "Test/b.png")), "splits"),
    ],
    ids=["missing", "file", "empty", "kinds", "mixed", "splits"],
)
def test_wrong_forms_get_one_clear_line(make, message, tmp_path, save):
    path = tmp_path / "data"
    make(path, save)
    with pytest.raises(DataError, match=message) as caught:
        Folder(path, 8)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_not_used_is_said(pets):
    (pets / "readme.md").touch()
    (pets / "cat" / "b.heic").touch()
    (pets / "cat" / "stray.txt").touch()
    (pets / "birds").mkdir()
    notes = "\n".join(Folder(pets, 8).notes)
    assert "1 .md" in notes and "1 .heic" in notes and "1 .txt files are no image's caption" in notes
    assert "folders without images: birds" in notes


def test_no_notes_without_a_cause(pets):
    assert Folder(pets, 8).notes == ()


def test_side_captions(pets):
    for i in range(4):
        (pets / "cat" / f"{i}.txt").write_text(f"  a cat, the {i}th ünï\n", encoding="utf-8")
    source = Folder(pets, 8)
    assert [source[i].caption for i in (0, 3, 4)] == ["a cat, the 0th ünï", "a cat, the 3th ünï", ""]
    assert "8 of 12 images have no caption of their own" in source.notes


def test_unreadable_caption_is_reported_not_dropped(pets):
    (pets / "cat" / "0.txt").write_bytes(b"caf\xe9")
    with pytest.raises(BadImage, match=r"0\.png: its caption 0\.txt is not UTF-8"):
        Folder(pets, 8)[0]


def test_table_with_labels_and_texts(tmp_path, save):
    for name in ("x/a.png", "x/b.png", "c.png", "d.png"):
        save(tmp_path / name)
    (tmp_path / "metadata.csv").write_text(
        'file_name,label,text\nx/b.png,10,"b, the second"\n./c.png,9,sea\nx\\a.png,10,a\n', encoding="utf-8"
    )
    source = Folder(tmp_path, 8)
    assert source.files == ["c.png", "x/a.png", "x/b.png"]
    assert source.classes == ("9", "10")  # numbers in numeric order
    assert [(source[i].label, source[i].caption) for i in range(3)] == [(0, "sea"), (1, "a"), (1, "b, the second")]
    assert any("1 images are not listed in metadata.csv" in note for note in source.notes)


def test_jsonl_table_several_captions_of_one_image(tmp_path, save):
    save(tmp_path / "a.png")
    (tmp_path / "captions.jsonl").write_text(
        '{"file_name": "a.png", "caption": "first"}\n\n{"file_name": "a.png", "caption": "second"}\n'
    )
    source = Folder(tmp_path, 8)
    assert len(source) == 1 and source.classes == ()
    assert source[0].caption == "first" and source[0].captions == (("first", "second"), ())


def test_table_of_captions_beside_folders_says_it_is_unlabelled(pets):
    (pets / "metadata.jsonl").write_text('{"file_name": "cat/0.png", "text": "one"}')
    source = Folder(pets, 8)
    assert len(source) == 1 and source.classes == ()
    assert any("unlabelled" in note for note in source.notes)


def test_table_names_in_another_unicode_form(tmp_path, save):
    save(tmp_path / (unicodedata.normalize("NFD", "café") + ".png"))
    (tmp_path / "metadata.csv").write_text(f"file_name,text\n{unicodedata.normalize('NFC', 'café')}.png,hm\n", "utf-8")
    assert Folder(tmp_path, 8)[0].caption == "hm"


def test_missing_listed_file_is_a_bad_image(tmp_path, save):
    save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,x\ngone.png,y\n")
    source = Folder(tmp_path, 8)
    assert len(source) == 2 and "1 files listed in metadata.csv are missing; they go to the reject list" in source.notes
    with pytest.raises(BadImage, match=r"gone\.png"):
        source[1]


def test_tables_about_something_else_are_left_alone(pets):
    (pets / "rejects.jsonl").write_text('{"path": "cat/0.png", "reason": "bad"}\n')
    assert len(Folder(pets, 8)) == 12


def test_which_table(pets):
    for name, label in (("a.csv", "x"), ("b.csv", "y")):
        (pets / name).write_text(f"file_name,kind,text\ncat/0.png,{label},t\n")
    with pytest.raises(DataError, match=r"several tables \(a\.csv, b\.csv\)"):
        Folder(pets, 8)
    assert Folder(pets, 8, table="b.csv", columns=Columns("kind")).classes == ("y",)
    with pytest.raises(DataError, match=r"no column 'b\.cvs'; did you mean 'b\.csv'"):
        Folder(pets, 8, table="b.cvs")
    with pytest.raises(DataError, match="no column 'knd'; did you mean 'kind'"):
        Folder(pets, 8, table="b.csv", columns=Columns("knd"))


@pytest.mark.parametrize(
    "name,text,message",
    [
        ("metadata.csv", "", "no rows"),
        ("metadata.csv", "file_name,label\n", "no rows"),
        ("metadata.csv", "name,label\ncat/0.png,x\n", "no column 'file_name'.*found: label, name"),
        ("metadata.csv", "file_name,size\ncat/0.png,x\n", "neither a 'label' nor a 'text'"),
        ("metadata.csv", "file_name,text\ncat/0.png,one, two\n", "line 2: 2 columns expected; quote"),
        ("metadata.csv", "file_name,label,text\ncat/0.png,x\n", "line 2: 3 columns expected"),
        ("metadata.csv", "file_name,label\n,x\n", "line 2: no file_name"),
        (
            "metadata.csv",
            "file_name,label\ncat/0.png,x\ncat/1.png,\n",
            r"1 of 2 rows have no label, the first is cat/1",
        ),
        ("metadata.csv", "file_name,label\nnope.png,x\n", "none of the files it lists"),
        ("metadata.jsonl", '{"file_name": "cat/0.png", "label": 1}\n{oops\n', "line 2: not JSON"),
        ("metadata.jsonl", '["cat/0.png"]\n', "line 1: not a JSON object"),
    ],
)
def test_bad_tables_get_one_clear_line(name, text, message, pets):
    (pets / name).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        Folder(pets, 8)
    assert "\n" not in str(caught.value)


def test_table_not_in_utf8(pets):
    (pets / "metadata.csv").write_bytes("file_name,text\ncat/0.png,café\n".encode("latin-1"))
    with pytest.raises(DataError, match="UTF-8"):
        Folder(pets, 8)


def test_column_without_a_table(pets):
    with pytest.raises(DataError, match="no CSV or JSONL table"):
        Folder(pets, 8, columns=Columns("kind"))


def test_size_from_the_data(tmp_path, save):
    for i in range(3):
        save(tmp_path / f"{i}.png", i, (40, 24))
    source = Folder(tmp_path)
    assert source.size == (24, 40) and "size 24x40" in source.notes[-1] and "--size" in source.notes[-1]
    save(tmp_path / "other.png", 9, (24, 30))
    save(tmp_path / "odd.png", 9, (90, 91))
    (tmp_path / "broken.png").write_bytes(b"no")
    assert Folder(tmp_path).size == (24, 24)
    assert Folder(tmp_path, multiple=16).size == (16, 16)
    assert Folder(tmp_path, (10, 14)).size == (10, 14)


@pytest.mark.parametrize(
    "shapes,multiple,want",
    [
        ({(500, 375): 10}, None, (256, 256)),
        ({(200, 300): 10}, None, (192, 288)),
        ({(24, 40): 1}, None, (24, 40)),
        ({(500, 375): 10, (375, 500): 9}, None, (256, 256)),
        ({(28, 28): 4}, None, (28, 28)),
        ({(29, 29): 4}, None, (28, 28)),
        ({(1, 1): 4}, None, (2, 2)),
        ({(100, 70): 2, (70, 90): 2, (64, 64): 3}, None, (64, 64)),
        ({(70, 70): 1, (71, 90): 1}, 8, (64, 64)),
    ],
)
def test_suggested_sizes(shapes, multiple, want):
    size, note = suggest_size(Counter(shapes), multiple)
    assert size == want and f"{want[0]}x{want[1]}" in note


def test_where_most_short_sides_differ_the_median_decides():
    shapes = Counter({(49, 60): 9, **{(side, 200): 1 for side in range(60, 171)}})
    size, note = suggest_size(shapes, 2)
    assert size == (110, 110) and "120 pictures looked at have short sides of 49 to 170, median 110;" in note


def test_all_unreadable_is_one_error_when_a_size_is_needed(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"0\.png.*none of the images"):
        Folder(tmp_path)


def test_fingerprint(pets, tmp_path, save):
    first = Folder(pets, 8).fingerprint
    assert first == Folder(pets, 8).fingerprint
    moved = pets.rename(tmp_path / "elsewhere")
    os.utime(moved / "cat" / "0.png", (1, 1))
    assert Folder(moved, 8).fingerprint == first  # neither the place nor the dates
    assert Folder(moved, 10).fingerprint != first
    assert Folder(moved, 8, channels=1).fingerprint != first
    (moved / "cat" / "0.txt").write_text("caption")
    captioned = Folder(moved, 8).fingerprint
    assert captioned != first
    save(moved / "cat" / "1.png", 1, (13, 10))
    assert Folder(moved, 8).fingerprint != captioned
    (moved / "dog" / "0.png").rename(moved / "cat" / "9.png")
    assert len({Folder(moved, 8).fingerprint, captioned, first}) == 3


def test_count_kinds_is_short():
    assert count_kinds(Counter({f".{c}": i for i, c in enumerate("abcdefg", 1)})).endswith(", 3 .c, ...")
