"""Pairs of images with a winner: Pick-a-Pic's parquet, our parquet and JSONL, ties, unusable images."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from ditkit.data import DataError, DataSettings, Loader, Pairs, open_source, read_rejects
from ditkit.protocols import BadImage


def png(level: int, size=(8, 8)) -> bytes:
    """A picture of one grey level."""
    file = io.BytesIO()
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(file, "png")
    return file.getvalue()


def write(path, columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.fixture
def picked(tmp_path):
    """Six pairs as Pick-a-Pic has them: grey levels 10 row, 10 row + 1; winner first, second, tie, unknown, ..."""
    columns = {
        "jpg_0": [png(10 * i) for i in range(6)],
        "jpg_1": [png(10 * i + 1) for i in range(6)],
        "label_0": pyarrow.array([1.0, 0.0, 0.5, None, 0, 1]),
        "caption": [f"number {i}" for i in range(6)],
        "are_different": [True] * 6,
    }
    return write(tmp_path / "picked.parquet", columns)


def levels(item):
    return item.image[::3, 0, 0].tolist()


def test_the_winner_comes_first_and_ties_are_counted(picked):
    source = Pairs(picked)
    assert [levels(source[i]) for i in range(len(source))] == [[0, 1], [11, 10], [41, 40], [50, 51]]
    assert [source[i].caption for i in range(4)] == ["number 0", "number 1", "number 4", "number 5"]
    assert source[0].image.shape == (6, 8, 8) and source[0].image.dtype == torch.uint8
    assert (source.channels, source.classes, source.size, source[1].label) == (3, (), (8, 8), -1)
    assert source.notes[0] == (
        "6 pairs of images: 4 with a winner, 2 without one (label_0 is neither 0 nor 1), which are left out"
    )
    assert source.name(2) == f"{picked}#4"


def test_winners_alone_for_plain_fine_tuning(picked):
    source = open_source(DataSettings(source=str(picked), pairs="winners"))
    assert [levels(source[i]) for i in range(len(source))] == [[0], [11], [41], [50]]
    assert source[0].image.shape == (3, 8, 8)
    assert source.fingerprint == open_source(DataSettings(source=str(picked), pairs="both")).fingerprint


def test_winner_and_loser_columns_and_jsonl_give_the_same_pairs(tmp_path):
    table = write(tmp_path / "a.parquet", {"winner": [png(1), png(3)], "loser": [png(2), png(4)], "prompt": ["a", "b"]})
    (tmp_path / "images").mkdir()
    for level in range(1, 5):
        (tmp_path / "images" / f"{level}.png").write_bytes(png(level))
    rows = [
        {"winner": "images/1.png", "loser": "images/2.png", "prompt": "a"},
        {"winner": "images/3.png", "loser": "images/4.png", "prompt": "b"},
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    labelled = [{"image_0": "images/1.png", "image_1": "images/2.png", "label_0": 1, "prompt": "a"}]
    labelled += [{"image_0": "images/4.png", "image_1": "images/3.png", "label_0": 0, "prompt": "b"}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, labelled)))
    for file in (table, tmp_path / "b.jsonl", tmp_path / "c.jsonl"):
        source = open_source(DataSettings(source=str(file), pairs="both"), captioned=True)
        assert [(levels(item), item.caption) for item in source] == [([1, 2], "a"), ([3, 4], "b")]


def test_both_images_are_brought_to_one_size(tmp_path):
    file = write(tmp_path / "a.parquet", {"winner": [png(1, (16, 12))], "loser": [png(2, (9, 30))], "caption": ["x"]})
    assert Pairs(file, 8)[0].image.shape == (6, 8, 8)
    assert Pairs(file, 8, channels=1)[0].image.shape == (2, 8, 8)


def test_an_unusable_half_makes_the_pair_unusable_and_the_count_is_whole(tmp_path):
    wins, loses = [png(1), png(3), b"no", png(7)], [png(2), b"", png(6), None]
    columns = {"winner": wins, "loser": loses, "label_0": [1, 1, 1, 1], "caption": ["a", "b", "c", "d"]}
    source = Pairs(write(tmp_path / "a.parquet", columns), 8)
    usable, bad = [], []
    for i in range(len(source)):
        try:
            usable.append(source[i])
        except BadImage as error:
            bad.append(error.reason)
    assert len(usable) + len(bad) == 4
    assert bad == ["the file is empty (0 bytes)", "not a picture in a known format", "the row holds no image bytes"]
    loader = Loader(source, 4, 0, rejects=tmp_path / "rejects.jsonl", flip=True)
    batch = next(iter(loader))
    assert batch.images.shape == (4, 6, 8, 8) and set(batch.captions) == {"a"}
    assert len(read_rejects(tmp_path / "rejects.jsonl")) == 3


def test_pairs_split_pickle_and_stay_in_memory(picked):
    parts = [open_source(DataSettings(source=str(picked), pairs="both", split=s)) for s in ("train", "test")]
    assert sorted(item.caption for part in parts for item in part) == [f"number {i}" for i in (0, 1, 4, 5)]
    assert all(item.image.shape == (6, 8, 8) for part in parts for item in part)
    again = pickle.loads(pickle.dumps(parts[0]))
    assert torch.equal(again[0].image, parts[0][0].image) and again.fingerprint == parts[0].fingerprint
    assert parts[0][0] is parts[0][0], "kept in memory"


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"image": [png(1)], "caption": ["a"]}, "no two columns of images .*found: image, caption"),
        ({"jpg_0": [png(1)], "jpg_1": [png(2)], "caption": ["a"]}, "no column 'label_0' that says who wins"),
        ({"jpg_0": [png(1)], "jpg_1": [png(2)], "label_0": [0.5]}, "none of its 1 pairs has a winner"),
    ],
)
def test_what_is_no_table_of_pairs_is_refused(tmp_path, columns, match):
    with pytest.raises(DataError, match=match):
        Pairs(write(tmp_path / "a.parquet", columns))


def test_a_jsonl_file_may_name_files_elsewhere(tmp_path):
    """Absolute, or beside its folder; the fingerprint tells them apart."""
    (tmp_path / "table").mkdir()
    for i, name in enumerate(("table/a.png", "b.png")):
        (tmp_path / name).write_bytes(png(i))
    table, seen = tmp_path / "table" / "a.jsonl", set()
    for loser in (str(tmp_path / "b.png"), "../b.png", "a.png"):
        table.write_text(json.dumps({"winner": "a.png", "loser": loser}))
        source = Pairs(table)
        assert levels(source[0]) == [0, 1 if "b" in Path(loser).name else 0]
        seen.add(source.fingerprint)
    assert len(seen) == 2


def test_a_jsonl_line_without_its_files_is_named(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"winner": "a.png", "loser": "b.png"}\n{"winner": "a.png"}')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: no file under 'loser'"):
        Pairs(file, 8)
    file.write_text('{"winner": "a.png", "loser": "b.png"}')
    with pytest.raises(BadImage, match=r"a\.png: cannot be read: No such file"):
        Pairs(file, 8)[0]
    with pytest.raises(DataError, match="has a caption"):
        open_source(DataSettings(source=str(file), pairs="both", size=8), captioned=True)
    file.write_text("")
    with pytest.raises(DataError, match="no rows"):
        Pairs(file)
    with pytest.raises(DataError, match="'scenes' holds no pairs"):
        open_source(DataSettings(source="scenes", pairs="both"))
