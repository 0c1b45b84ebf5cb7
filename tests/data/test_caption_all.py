"""Synthetic captions of a whole source: all or nothing under the final name, nothing twice after a stop."""

import json

import pytest

from ditkit.data import DataSettings, Folder, Loader, caption_all, open_source, read_rejects


class Author:
    """Says how large a picture is; stops after `last` calls, refuses pictures of the sizes in `refused`."""

    def __init__(self, last=None, refused=(), blank=()):
        self.calls, self.last, self.refused, self.blank = [], last, refused, blank

    def __call__(self, pictures):
        if self.last is not None and len(self.calls) >= self.last:
            raise KeyboardInterrupt
        if bad := [p.size for p in pictures if p.size in self.refused]:
            raise ValueError(f"cannot see\n{bad[0]}")
        self.calls.append([p.size for p in pictures])
        return ["" if p.size in self.blank else f"ünï {p.width} by {p.height}" for p in pictures]


@pytest.fixture
def data(tmp_path, save):
    """Ten pictures of different sizes."""
    for i in range(10):
        save(tmp_path / "data" / "cat" / f"{i}.png", i, (10 + i, 8))
    return tmp_path / "data"


def captions(out):
    return {row["file_name"]: row["synthetic"] for row in map(json.loads, out.read_text("utf-8").splitlines())}


def test_every_image_whole_and_in_order(data):
    out, said = data / "synthetic.jsonl", []
    made = caption_all(Folder(data, 4), Author(), out, author="a", batch=4, progress=lambda *done: said.append(done))
    assert captions(out) == {f"cat/{i}.png": f"ünï {10 + i} by 8" for i in range(10)}
    assert list(captions(out)) == sorted(captions(out)) and made == (10, {}, 0)
    assert said == [(4, 10), (8, 10), (10, 10)]
    assert sorted(p.name for p in data.iterdir()) == ["cat", "synthetic.jsonl"]
    source = open_source(str(data))
    assert source.classes == ("cat",) and source[3].captions == ((), ("ünï 13 by 8",))
    assert set(next(iter(Loader(source, 10, seed=0))).captions) == {f"ünï {10 + i} by 8" for i in range(10)}


def test_an_interrupted_run_goes_on(data, tmp_path):
    out, whole = tmp_path / "new" / "c.jsonl", tmp_path / "whole.jsonl"
    caption_all(Folder(data, 4), Author(), whole, author="a", batch=3)
    with pytest.raises(KeyboardInterrupt):
        caption_all(Folder(data, 4), Author(last=2), out, author="a", batch=3)
    begun = out.with_name(".c.jsonl.begun")
    assert not out.exists() and len(begun.read_text().splitlines()) == 7
    with begun.open("ab") as file:
        file.write(b'{"file_name": "cat/6.png", "synth')  # a line torn by a power cut
    with pytest.raises(ValueError, match="captions begun by a, not by b; remove it"):
        caption_all(Folder(data, 4), Author(), out, author="b")
    author = Author()
    made = caption_all(Folder(data, 4), author, out, author="a", batch=3)
    assert author.calls == [[(16, 8), (17, 8), (18, 8)], [(19, 8)]] and made == (10, {}, 6)
    assert out.read_bytes() == whole.read_bytes() and not begun.exists()
    with pytest.raises(FileExistsError, match="exists already; remove it"):
        caption_all(Folder(data, 4), Author(), out, author="a")


def test_what_cannot_be_captioned_is_listed(data, tmp_path):
    (data / "cat" / "0.png").write_bytes(b"junk")
    source, out = Folder(data, 4), tmp_path / "c.jsonl"
    made = caption_all(source, Author(refused=[(15, 8)], blank=[(18, 8)]), out, author="a", batch=4)
    assert made.rejects == {
        source.name(0): "not a picture in a known format",
        source.name(5): "cannot see (15, 8)",
        source.name(8): "the model wrote an empty caption",
    }
    assert read_rejects(tmp_path / "c.rejects.jsonl") == made.rejects
    assert made.captions == len(captions(out)) == 7 and made.captions + len(made.rejects) == len(source)


def test_an_author_that_refuses_all_is_an_error_not_a_list(data, tmp_path):
    with pytest.raises(ValueError, match="cannot see"):
        caption_all(Folder(data, 4), Author(refused=[(10 + i, 8) for i in range(10)]), tmp_path / "c.jsonl", author="a")
    assert caption_all(Folder(data, 4), Author(), tmp_path / "c.jsonl", author="b").captions == 10, "nothing was begun"
    with pytest.raises(ValueError, match="none of the 10 images could be captioned"):
        caption_all(Folder(data, 4), Author(blank=[(10 + i, 8) for i in range(10)]), tmp_path / "d.jsonl", author="a")
    assert not (tmp_path / "d.jsonl").exists() and not (tmp_path / ".d.jsonl.begun").exists()


def test_rows_of_parquet_files(tmp_path, save):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for name, rows in (("a", range(3)), ("b", range(3, 5))):
        data = [save(tmp_path / "store" / f"{i}.png", i, (10 + i, 8)).read_bytes() for i in rows]
        pq.write_table(pa.table({"image": data, "label": [0] * len(data)}), tmp_path / f"{name}.parquet")
    caption_all(open_source(str(tmp_path)), Author(), tmp_path / "synthetic.jsonl", author="a")
    assert list(captions(tmp_path / "synthetic.jsonl")) == ["a.parquet#0", "a.parquet#1", "a.parquet#2", *(
        f"b.parquet#{i}" for i in range(2)
    )]  # fmt: skip
    source = open_source(DataSettings(source=str(tmp_path), size=8))
    assert [source[i].caption for i in range(5)] == [f"ünï {10 + i} by 8" for i in range(5)]
