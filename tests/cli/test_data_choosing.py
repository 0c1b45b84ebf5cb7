"""`ditkit data duplicates` and `ditkit data filter`, and a run that trains on what they keep."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def data(tmp_path, pictures, monkeypatch):
    """Class folders of ten pictures, two of them twice, one no picture."""
    root = pictures(tmp_path / "data", n=5)
    for i in range(2):
        (root / "cat" / f"copy{i}.png").write_bytes((root / "cat" / f"00{i}.png").read_bytes())
    (root / "dog" / "bad.png").write_bytes(b"junk")
    monkeypatch.chdir(tmp_path)
    return root


def index(path):
    return json.loads(path.read_text())


def test_duplicates_then_filter_then_train(data, tmp_path, ditkit):
    result = ditkit("data", "duplicates", data)
    assert result.exit_code == 0, result.output
    out = tmp_path / "data.duplicates"
    assert "13: 10 kept, 2 duplicates, 1 cannot be read" in result.stdout
    assert f"data.index={out.name}/index.json" in result.stdout and (out / "clusters.png").is_file()
    clusters = [json.loads(line) for line in (out / "clusters.jsonl").read_text().splitlines()]
    assert [line["kept"] for line in clusters] == ["cat/000.png", "cat/001.png"]
    assert [[m["distance"] for m in line["members"]] for line in clusters] == [[0, 0], [0, 0]]

    words = ["--index", out / "index.json", "--min-side", 20, "--max-pixels", 960]
    result = ditkit("data", "filter", data, *words)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["3", "not", "kept", "by", str(out / "index.json")]
    assert lines[1].split() == ["1", "size", "cannot", "be", "read", "(0", "more)"]
    assert "10 of 13 images stay: data.index.json" in result.stdout
    assert index(tmp_path / "data.index.json")["kept"] == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]

    words = ["--data", data, "--size", 8, "--steps", 1, "training.batch=4", "--device", "cpu"]
    words += ["data.index=data.index.json", "model.depth=1", "model.width=16", "model.heads=1"]
    result = ditkit("train", "digits.sit", *words, "--out", "run")
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert "10" in json.dumps(facts) and "10 of 13 images are used" in (tmp_path / "run" / "log.txt").read_text()


def test_by_meaning_with_keys(data, tmp_path, ditkit):
    words = ["--extractor", "toy", "--cosine", 0.9999, "--linked", "star", "partitions=2", "data.size=16"]
    result = ditkit("data", "duplicates", data, *words, "--out", tmp_path / "found", "--device", "cpu")
    assert result.exit_code == 0, result.output
    found = index(tmp_path / "found" / "index.json")
    assert "toy-extractor" in found["rules"][-1]["rule"] and (tmp_path / "found" / "embeddings.npy").is_file()
    assert found["count"] == len(found["kept"]) <= 10


def test_scores_and_captions_of_a_table(data, tmp_path, ditkit):
    rows = [f"cat/00{i}.png,{'a word or two' if i else ''},{i},{i / 10}" for i in range(5)]
    (data / "metadata.csv").write_text("\n".join(["file_name,text,aesthetic,unsafe", *rows]) + "\n")
    words = ["--min-score", "aesthetic=1", "--max-score", "unsafe=0.3", "--min-words", 2, "--out", tmp_path / "x.json"]
    result = ditkit("data", "filter", data, *words)
    assert result.exit_code == 0, result.output
    assert index(tmp_path / "x.json")["kept"] == [1, 2, 3]
    assert [line.split()[0] for line in result.stdout.splitlines()[:5]] == ["1", "1", "1", "0", "3"]


def test_a_zip_and_a_tar_are_trained_on(data, tmp_path, ditkit):
    import shutil

    shutil.make_archive("pets", "zip", data)
    shutil.make_archive("pets", "tar", data)
    for name in ("pets.zip", "pets.tar"):
        result = ditkit("data", "duplicates", name)
        assert result.exit_code == 0, result.output
        assert "13: 10 kept, 2 duplicates, 1 cannot be read" in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("filter", "scenes", "--min-side", "5"), "there is nothing to choose from"),
        (("duplicates", "scenes"), "there is nothing to choose from"),
        (("filter", "DATA"), "no rule is given"),
        (("filter", "DATA", "--min-score", "aesthetic"), "--min-score aesthetic: COLUMN=VALUE is asked for"),
        (("filter", "DATA", "--min-score", "a=b"), "--min-score a=b: COLUMN=VALUE is asked for"),
        (("filter", "DATA", "--min-score", "a=1"), "come with no table"),
        (("filter", "DATA", "--index", "none.json"), "none.json: cannot be read"),
        (("filter", "DATA", "--min-side", "99999"), "none of the 13 images"),
        (("filter", "DATA", "--min-words", "0"), "min_words"),
        (("filter", "DATA", "--min-side", "5", "--out", "taken"), "exists already"),
        (("filter", "nowhere", "--min-side", "5"), "no such file or folder"),
        (("filter", "DATA", "--min-side", "5", "data.tabel=x"), "tabel"),
        (("duplicates", "DATA", "--linked", "circle"), "linked"),
        (("duplicates", "DATA", "--cosine", "2"), "cosine"),
        (("duplicates", "DATA", "--out", "full"), "exists already"),
        (("duplicates", "DATA", "--extractor", "nothing/of/the/kind"), "extractor"),
        (("duplicates", "nowhere"), "no such file or folder"),
    ],
)
def test_what_is_refused(words, message, data, tmp_path, refused):
    (tmp_path / "taken").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    line = refused("data", *(data if word == "DATA" else word for word in words))
    assert message in line
    assert not list(tmp_path.glob("*.index.json")) and not list(tmp_path.glob("*duplicates*"))


def test_caption_needs_a_place_for_patterns(data, refused):
    assert "captions are written for" in refused("data", "caption", "digits", "--model", "x")
