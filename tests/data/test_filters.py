"""Filters: each rule against what it should take, index files and who may use them."""

import json

import numpy as np
import pytest
import torch

from ditkit.data import DataError, DataSettings, Rule, Subset, identity_of, open_source, read_index, write_index
from ditkit.data.filters import FilterSettings, filter_source

SIZES = {
    "a.png": (64, 64),
    "b.png": (32, 64),
    "c.png": (20, 64),
    "d.png": (100, 100),
    "e.png": (64, 30),
    "f.png": (8, 8),
}


@pytest.fixture
def scored(tmp_path, save):
    """Six pictures of several sizes with captions and scores; the score of one is missing; one cannot be read."""
    root = tmp_path / "scored"
    for number, (name, size) in enumerate(SIZES.items()):
        save(root / name, number, size)
    (root / "g.png").write_bytes(b"junk")
    rows = {
        "a.png": ("one", 5.0, 0.1), "b.png": ("a few words more", 4.9, 0.9), "c.png": ("", 7, 0.0),
        "d.png": ("two words", None, 0.5), "e.png": (["x", "quite a long caption it is"], 6, 0.2),
        "f.png": ("one two three", 5.5, 0.3), "g.png": ("of junk", 9, 0.0),
    }  # fmt: skip
    lines = [
        json.dumps({"file_name": name, "text": text, "aesthetic": score, "unsafe": unsafe})
        for name, (text, score, unsafe) in rows.items()
    ]
    (root / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return root


def kept(root, **rules):
    source = open_source(DataSettings(source=str(root), size=8))
    rows, found = filter_source(source, FilterSettings(**rules))
    assert sum(rule.more for rule in found) == len(source) - len(rows)
    return "".join(source.key(row)[0] for row in rows), {rule.rule: rule.takes for rule in found}


@pytest.mark.parametrize(
    ("rules", "stay", "takes"),
    [
        ({"min_side": 30}, "abde", {"size cannot be read": 1, "side below 30": 2}),
        ({"min_pixels": 2048}, "abd", {"size cannot be read": 1, "fewer than 2048 pixels": 3}),
        ({"max_pixels": 4096}, "abcef", {"size cannot be read": 1, "more than 4096 pixels": 1}),
        ({"max_ratio": 2}, "abdf", {"size cannot be read": 1, "sides beyond 2 to 1": 2}),
        ({"at_least": {"aesthetic": 5}}, "acefg", {"no aesthetic": 1, "aesthetic below 5": 1}),
        ({"at_most": {"unsafe": 0.2}}, "aceg", {"unsafe above 0.2": 3}),
        ({"captioned": True}, "abdefg", {"no caption": 1}),
        ({"min_words": 3}, "bef", {"no caption": 1, "captions below 3 words": 3}),
        ({"max_words": 3}, "acdfg", {"captions above 3 words": 2}),
    ],
)
def test_each_rule(rules, stay, takes, scored):
    assert kept(scored, **rules) == (stay, takes)


def test_rules_together_say_what_each_adds(scored):
    stay, takes = kept(scored, min_side=30, at_least={"aesthetic": 5}, at_most={"unsafe": 0.2}, captioned=True)
    assert stay == "ae" and takes["side below 30"] == 2
    source = open_source(DataSettings(source=str(scored), size=8))
    _, rules = filter_source(source, FilterSettings(min_side=30, at_most={"unsafe": 0.2}))
    assert [(rule.rule, rule.takes, rule.more) for rule in rules] == [
        ("unsafe above 0.2", 3, 3), ("size cannot be read", 1, 1), ("side below 30", 2, 1),
    ]  # fmt: skip


def test_several_indexes_at_once(scored, tmp_path):
    source = open_source(DataSettings(source=str(scored), size=8))
    for name, rows in (("x", [0, 1, 2, 3]), ("y", [1, 3, 5])):
        write_index(tmp_path / name, source, "scored", np.array(rows), [Rule("made", 1, 1)])
    stay, takes = kept(scored, indexes=(str(tmp_path / "x"), str(tmp_path / "y")), max_ratio=1.5)
    assert stay == "d" and takes[f"not kept by {tmp_path / 'x'}"] == 3 and takes[f"not kept by {tmp_path / 'y'}"] == 4


def test_what_cannot_be_filtered(scored, pets):
    with pytest.raises(DataError, match="no rule is given"):
        kept(scored)
    with pytest.raises(DataError, match=r"no column 'aesthetics'; did you mean 'aesthetic'"):
        kept(scored, at_least={"aesthetics": 1})
    with pytest.raises(DataError, match=r"column 'text' .*: no value is a number"):
        kept(scored, at_least={"text": 1})
    with pytest.raises(DataError, match="come with no table"):
        kept(pets, at_least={"aesthetic": 1})


def test_index_round_trip_and_use(pets, tmp_path):
    source = open_source(str(pets))
    path = write_index(tmp_path / "i.json", source, "pets", np.array([0, 3, 7, 8, 11]), [Rule("odd", 7, 7)])
    index = read_index(path)
    assert index.kept.tolist() == [0, 3, 7, 8, 11] and index.rules == (Rule("odd", 7, 7),) and index.images == 12
    used = open_source(DataSettings(source=str(pets), size=8, index=str(path)))
    whole = open_source(DataSettings(source=str(pets), size=8))
    assert isinstance(used, Subset) and len(used) == 5 and used.classes == whole.classes
    for i, row in enumerate(index.kept.tolist()):
        assert torch.equal(used[i].image, whole[row].image) and used.key(i) == whole.key(row)
    parts = [open_source(DataSettings(source=str(pets), size=8, index=str(path), split=s)) for s in ("train", "test")]
    assert [len(part) for part in parts] == [4, 1]
    assert {p.key(i) for p in parts for i in range(len(p))} == {used.key(i) for i in range(5)}
    assert len({used.fingerprint, whole.fingerprint, *(part.fingerprint for part in parts)}) == 4


def test_an_index_is_of_pictures_not_of_how_they_are_read(pets, tmp_path):
    path = write_index(tmp_path / "i.json", open_source(str(pets)), "pets", np.arange(4), [])
    (pets / "cat" / "0.txt").write_text("a caption")
    for settings in ({"size": 8}, {"size": 16, "channels": 1}, {"caption": "a {class}"}):
        assert len(open_source(DataSettings(source=str(pets), index=str(path), **settings))) == 4
    moved = pets.rename(pets.parent / "moved")
    assert len(open_source(DataSettings(source=str(moved), index=str(path)))) == 4


@pytest.mark.parametrize("change", ["new", "gone", "other", "changed"])
def test_an_index_of_other_images_is_refused(change, pets, save, tmp_path):
    path = write_index(tmp_path / "i.json", open_source(str(pets)), "pets", np.arange(4), [])
    if change == "new":
        save(pets / "cat" / "new.png")
    if change == "gone":
        (pets / "cat" / "0.png").unlink()
    if change == "changed":
        save(pets / "cat" / "0.png", 5, (13, 11))
    source = "digits" if change == "other" else str(pets)
    with pytest.raises(DataError, match=r"this index is of other images \(12 of 'pets'\)") as caught:
        open_source(DataSettings(source=source, index=str(path)))
    assert "\n" not in str(caught.value)


def test_digits_and_their_parts(tmp_path):
    source = open_source("digits")
    path = write_index(tmp_path / "i.json", source, "digits", np.arange(0, 1797, 2), [])
    assert len(open_source(DataSettings(index=str(path)))) == 899
    assert len(open_source(DataSettings(index=str(path), split="test", size=16))) == 180
    with pytest.raises(DataError, match="there is no index of them"):
        open_source(DataSettings(source="scenes", index=str(path)))
    assert identity_of(source) != identity_of(open_source(DataSettings(split="test")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("junk", "not an index that"),
        ("{}", "not an index that"),
        ('{"kind": "other"}', "not an index that"),
        (None, "cannot be read: No such file"),
        ([3, 2], "its rows are not ascending"),
        ([0, 12], "its rows are not ascending"),
        ([-1], "its rows are not ascending"),
        ([], "its rows are not ascending"),
    ],
)
def test_what_is_no_index(text, message, pets, tmp_path):
    path = tmp_path / "i.json"
    if isinstance(text, str):
        path.write_text(text)
    elif text is not None:
        write_index(path, open_source(str(pets)), "pets", np.arange(3), [])
        path.write_text(json.dumps(json.loads(path.read_text()) | {"kept": text}))
    with pytest.raises(DataError, match=message) as caught:
        open_source(DataSettings(source=str(pets), index=str(path)))
    assert "i.json" in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_kept_is_refused(scored, tmp_path):
    source = open_source(DataSettings(source=str(scored), size=8))
    with pytest.raises(DataError, match="none of the 7 images of x is kept"):
        write_index(tmp_path / "i.json", source, "x", np.array([], dtype=np.int64), [])
