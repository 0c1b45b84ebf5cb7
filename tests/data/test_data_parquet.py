"""Parquet files of encoded images, as image hubs ship them."""

import io
import itertools
import json
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ditkit.data import Columns, DataError, DataSettings, Loader, Parquet, open_source
from ditkit.protocols import BadImage, Source

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def png(seed, size=(8, 6)):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(seed, size=(8, 6)):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def write(path, images, groups=4, names=None, **columns):
    """A parquet file of structs {bytes, path}, with the hub's class names if given."""
    images = [
        {"bytes": data, "path": f"{i}.png"} if isinstance(data, bytes | None) else data for i, data in enumerate(images)
    ]
    table = pa.table({"image": images, **columns})
    if names:
        about = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(table, path, row_group_size=groups)
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "a.parquet", map(png, range(10)), label=[i % 3 for i in range(10)])


def test_rows(file):
    source = Parquet(file)
    assert isinstance(source, Source) and len(source) == 10
    assert source.size == (6, 8) and source.classes == ("0", "1", "2")
    for i in (9, 0, 4, 3):
        item = source[i]
        assert torch.equal(item.image.permute(1, 2, 0), pixels(i)) and item.label == i % 3
        assert item.path == f"{file}#{i}"


def test_plain_bytes_text_labels_and_captions(tmp_path):
    table = pa.table({"picture": [png(0), png(1)], "label": ["sea", "hill"], "caption": ["wide", None]})
    pq.write_table(table, tmp_path / "a.parquet")
    source = Parquet(tmp_path / "a.parquet", 8)
    assert source.classes == ("hill", "sea") and source.labels.tolist() == [1, 0]
    assert [source[i].caption for i in range(2)] == ["wide", ""]


def test_without_captions_the_columns_are_named(file):
    with pytest.raises(DataError, match=r"has a caption.*data\.text_column \(found: image, label\)"):
        Parquet(file, 8).require_captions()


def test_class_names_of_the_hub(tmp_path):
    path = write(tmp_path / "a.parquet", map(png, range(3)), names=["zebra", "ant", "bee"], label=[0, 2, 0])
    source = Parquet(path, 8)
    assert source.classes == ("zebra", "ant", "bee") and source.labels.tolist() == [0, 2, 0]
    write(path, map(png, range(2)), names=["zebra"], label=[0, 1])
    with pytest.raises(DataError, match="do not fit its 1 class names"):
        Parquet(path, 8)


def test_shards_in_the_order_of_their_names(tmp_path):
    write(tmp_path / "b.parquet", map(png, range(5, 8)), label=[1, 1, 1])
    write(tmp_path / "a.parquet", map(png, range(5)), label=[0] * 5)
    source = open_source(str(tmp_path))
    assert len(source) == 8 and torch.equal(source[6].image.permute(1, 2, 0), pixels(6))
    assert source.name(6) == f"{tmp_path / 'b.parquet'}#1" and source.labels.tolist() == [0] * 5 + [1] * 3
    (tmp_path / "c.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())
    pq.write_table(pa.table({"other": [1]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"c\.parquet: its columns \(other\) are not those of"):
        open_source(str(tmp_path))


def test_row_groups_are_read_when_needed_and_let_go(file, monkeypatch):
    source = Parquet(file, 8)
    assert not source._groups
    source[5]
    assert list(source._groups) == [1]
    monkeypatch.setattr("ditkit.data.parquet.GROUPS_LIMIT", 1)
    source[9]
    assert list(source._groups) == [2]
    assert torch.equal(source[5].image, Parquet(file, 8)[5].image)


def test_copies_for_workers_carry_no_open_file(file):
    source = Parquet(file, 8)
    source[0]
    copy = pickle.loads(pickle.dumps(source))
    assert not copy._files and torch.equal(copy[7].image, source[7].image)
    for a, b in zip(*(itertools.islice(Loader(source, 4, 0, workers=w), 4) for w in (0, 2)), strict=True):
        assert torch.equal(a.images, b.images)


def test_each_process_opens_the_files_for_itself(file, monkeypatch):
    source = Parquet(file, 8)
    mine = source._open_files()
    assert source._open_files() is mine  # once
    monkeypatch.setattr("os.getpid", lambda: -1)  # as after a fork
    assert source._open_files()[0] is not mine[0]


def test_bad_rows_are_reported_and_replaced(tmp_path):
    path = write(tmp_path / "a.parquet", [png(0), b"junk", None, b"", png(4)], label=[0] * 5)
    source = Parquet(path, 8)
    for row, reason in ((1, "known format"), (2, "no image bytes"), (3, "0 bytes")):
        with pytest.raises(BadImage, match=reason) as caught:
            source[row]
        assert caught.value.path == f"{path}#{row}"
    loader = Loader(source, 5, seed=0, workers=1)
    batch = next(iter(loader))
    assert set(batch.indices.tolist()) == {0, 4} and len(loader.rejected) == 3


def test_damaged_row_group_is_not_the_end(tmp_path):
    path = write(tmp_path / "a.parquet", map(png, range(8)), groups=4, label=[0] * 8)
    meta = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[meta.data_page_offset : meta.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    source = Parquet(path, 8)
    assert source[0].label == 0
    with pytest.raises(BadImage, match=r"a\.parquet#5: row group 1 cannot be read"):
        source[5]


@pytest.mark.parametrize(
    "columns,message",
    [
        ({"x": [1]}, "no column of image bytes"),
        ({"a": [b"1"], "b": [b"2"]}, "several columns of image bytes.*data.image_column"),
        ({"image": [b"1"], "label": [None]}, None),
        ({"image": [b"1", b"2"], "label": [None, 1]}, "1 of 2 rows have no label, the first is row 0"),
        ({"image": pa.array([], pa.binary())}, "no rows"),
    ],
)
def test_wrong_columns(columns, message, tmp_path):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    if message is None:
        assert Parquet(tmp_path / "a.parquet", 8).classes == ()
        return
    with pytest.raises(DataError, match=message) as caught:
        Parquet(tmp_path / "a.parquet", 8)
    assert "\n" not in str(caught.value) and "a.parquet" in str(caught.value)


def test_chosen_columns(tmp_path):
    table = pa.table({"a": [b"", b""], "b": [png(1), png(2)], "fine_label": [4, 5]})
    pq.write_table(table, path := tmp_path / "a.parquet")
    source = open_source(DataSettings(source=str(path), image_column="b", label_column="fine_label"))
    assert source.classes == ("4", "5") and source.labels.tolist() == [0, 1]
    assert any("unlabelled: no column 'label'" in note for note in Parquet(path, image_column="b").notes)
    with pytest.raises(DataError, match="no column 'fine_lable'; did you mean 'fine_label'"):
        Parquet(path, image_column="b", columns=Columns("fine_lable"))


def test_not_a_parquet_file(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"a\.parquet: not a readable parquet file"):
        Parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no such file"):
        Parquet(tmp_path / "b.parquet")


def test_missing_extra_names_itself(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"pip install 'ditkit\[data\]'"):
        Parquet(file)


def test_fingerprint(file, tmp_path):
    first = Parquet(file).fingerprint
    (tmp_path / "moved").mkdir()
    moved = file.rename(tmp_path / "moved" / "a.parquet")
    assert Parquet(moved).fingerprint == first != Parquet(moved, 4).fingerprint
    write(moved, map(png, range(10)), label=[(i + 1) % 3 for i in range(10)])
    assert Parquet(moved).fingerprint != first
