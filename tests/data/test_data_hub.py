"""Data sets of the `datasets` package, without a network; that items equal other sources' is in test_sources_alike."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from ditkit.data import Columns, DataError, DataSettings, Hub, Parquet, open_source
from ditkit.protocols import BadImage

datasets = pytest.importorskip("datasets")


def png(seed=0, size=(12, 10)):
    content = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def rows(count=6, **columns):
    """A data set of `count` pictures, cats and dogs by turns, with columns of texts, lists of them or numbers."""
    text = datasets.Value("string")
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    table = {"image": [{"bytes": png(i), "path": None} for i in range(count)], "label": [i % 2 for i in range(count)]}
    kinds = {list: datasets.Sequence(text), float: datasets.Value("float64"), str: text}
    features |= {name: kinds[type(values[0])] for name, values in columns.items()}
    return datasets.Dataset.from_dict(table | columns, datasets.Features(features))


@pytest.fixture
def saved(tmp_path):
    rows().save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=rows(6), test=rows(4)).save_to_disk(tmp_path / "two")
    datasets.DatasetDict(a=rows(3), b=rows(2)).save_to_disk(tmp_path / "odd")
    return tmp_path


def test_saved_sets_and_their_parts(saved):
    one = open_source(str(saved / "one"))
    assert isinstance(one, Hub) and len(one) == 6 and one.classes == ("cat", "dog") and one.size == (10, 12)
    assert one.name(3) == f"{saved / 'one'}/train#3" and one[3].label == 1
    assert len(open_source(str(saved / "two"))) == 6
    assert len(open_source(DataSettings(source=str(saved / "two"), part="test"))) == 4
    assert len(open_source(DataSettings(source=str(saved / "two"), part="test", split="test"))) == 1
    with pytest.raises(DataError, match=r"several parts \(a, b\); name one by data\.part"):
        open_source(str(saved / "odd"))
    with pytest.raises(DataError, match=r"\(parts\): no column 'tets'|no part 'tets'|did you mean 'test'"):
        open_source(DataSettings(source=str(saved / "two"), part="tets"))


def test_arrow_files_as_the_package_keeps_them(saved, tmp_path):
    folder = tmp_path / "kept"
    folder.mkdir()
    for number, file in enumerate(sorted((saved / "two" / "train").glob("*.arrow"))):
        (folder / f"pets-train-{number:05d}-of-00001.arrow").write_bytes(file.read_bytes())
    source = open_source(str(folder))
    assert len(source) == 6 and source.part == "train" and source[5].image.shape == (3, 10, 12)


def test_captions_scores_and_columns(tmp_path):
    texts = [f"picture {i}" for i in range(6)]
    several = [[f"s{i}", "t"] for i in range(6)]
    scores = [0.5 * i for i in range(6)]
    rows(text=texts, synthetic=several, aesthetic=scores, alt=texts[::-1]).save_to_disk(tmp_path / "x")
    source = Hub(str(tmp_path / "x"), 8)
    assert source.captions(2) == (("picture 2",), ("s2", "t")) and source.column("aesthetic")[3] == 1.5
    assert Hub(str(tmp_path / "x"), 8, columns=Columns(text="alt"))[0].captions.original == ("picture 5",)
    with pytest.raises(DataError, match=r"no column 'x'"):
        source.column("x")
    table = tmp_path / "made.jsonl"
    table.write_text('{"file_name": "train#1", "synthetic": "beside"}\n')
    assert Hub(str(tmp_path / "x"), 8, synthetic_table=str(table)).captions(1).synthetic == ("beside",)


def test_a_selection_of_rows_is_kept(tmp_path):
    rows().select([4, 1]).save_to_disk(tmp_path / "x")
    source = Hub(str(tmp_path / "x"))
    assert [source.label for source in (source[0], source[1])] == [0, 1]
    assert np.array_equal(source[0].image.permute(1, 2, 0).numpy(), np.array(Image.open(io.BytesIO(png(4)))))


def test_images_in_files_and_rows_without_one(tmp_path):
    (tmp_path / "a.png").write_bytes(png(3))
    images = [{"bytes": None, "path": str(tmp_path / "a.png")}, None]
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": images}, features).save_to_disk(tmp_path / "x")
    source = Hub(str(tmp_path / "x"), 8)
    assert source[0].image.shape == (3, 8, 8) and any("unlabelled" in note for note in source.notes)
    with pytest.raises(BadImage, match="the row holds no image bytes"):
        source[1]


def test_columns_of_bytes_and_of_none(tmp_path):
    datasets.Dataset.from_dict({"data": [png(0), png(1)], "n": [1, 2]}).save_to_disk(tmp_path / "bytes")
    assert len(Hub(str(tmp_path / "bytes"))) == 2
    datasets.Dataset.from_dict({"n": [1, 2]}).save_to_disk(tmp_path / "none")
    with pytest.raises(DataError, match=r"no column of images \(n: Value\); name one by data\.image_column"):
        Hub(str(tmp_path / "none"))
    rows(0).save_to_disk(tmp_path / "empty")
    with pytest.raises(DataError, match=r"no rows in its part 'train'|cannot be had"):
        Hub(str(tmp_path / "empty"))


def test_snapshots_are_read_as_parquet(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("a data set")
    for part, count in (("train", 3), ("test", 2)):
        rows(count).to_parquet(tmp_path / "data" / f"{part}-00000-of-00001.parquet")
    source = open_source(str(tmp_path))
    assert isinstance(source, Parquet) and len(source) == 3 and source.classes == ("cat", "dog")
    assert len(open_source(DataSettings(source=str(tmp_path), part="test"))) == 2


def test_hub_ids(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "repo").mkdir()
    rows(5).to_parquet(tmp_path / "repo" / "train.parquet")
    source = open_source(f"hub:{tmp_path / 'repo'}")
    assert isinstance(source, Hub) and len(source) == 5 and source.classes == ("cat", "dog")
    line = r"^data 'hub:no/such_data': cannot be had \([^\n]+\); without a network give"
    with pytest.raises(DataError, match=line) as caught:
        open_source("hub:no/such_data")
    assert "\n" not in str(caught.value)


def test_parts_are_for_hub_data_sets(tmp_path):
    (tmp_path / "a.zip").touch()
    with pytest.raises(DataError, match=r"data\.part=test is for data sets of a hub"):
        open_source(DataSettings(source=str(tmp_path / "a.zip"), part="test"))


def test_a_damaged_folder_is_one_line(saved):
    for file in (saved / "one").glob("*.arrow"):
        file.write_bytes(b"junk")
    with pytest.raises(DataError, match=r"cannot be had \([^\n]+\)$"):
        open_source(str(saved / "one"))


def test_without_the_package_the_extra_is_named(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'ditkit\[data\]'"):
        open_source(str(saved / "one"))
