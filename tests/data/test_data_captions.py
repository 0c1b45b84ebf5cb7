"""Several captions of an image, original and synthetic, from everywhere they may stand; and which one a visit shows."""

import itertools
import json
from collections import Counter

import pytest

from ditkit.data import DataError, DataSettings, Digits, Folder, Loader, Parquet, open_source
from ditkit.data.mixing import class_captions, draw_captions
from ditkit.protocols import BadImage, Captions, Item

BOTH = Item(None, -1, "a", "x", Captions(("a", "b"), ("s", "t", "u")))


def shown(item, n, share, seed=0, start=0):
    return draw_captions([item] * n, seed, start, share)


def visits(source, steps, **settings):
    batches = itertools.islice(Loader(source, 4, seed=3, **settings), steps)
    return [(int(i), text) for batch in batches for i, text in zip(batch.indices, batch.captions, strict=True)]


# the draw


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_shares_of_kinds_and_of_captions(share):
    n = 20_000
    counts = Counter(shown(BOTH, n, share))
    for texts, part in ((BOTH.captions.original, 1 - share), (BOTH.captions.synthetic, share)):
        for text in texts:
            expected = n * part / len(texts)
            assert abs(counts[text] - expected) < 5 * expected**0.5


@pytest.mark.parametrize("share,pool", [(0.0, "ab"), (1.0, "stu")])
def test_one_kind_alone(share, pool):
    assert set(shown(BOTH, 500, share)) == set(pool)


@pytest.mark.parametrize(
    "captions,pool", [(Captions(("a",)), {"a"}), (Captions((), ("s",)), {"s"}), (Captions(), {"?"})]
)
def test_an_image_with_one_kind_shows_that(captions, pool):
    assert set(shown(Item(None, -1, "?", "x", captions), 100, 0.5)) == pool


def test_the_draw_is_of_seed_and_position_alone():
    whole = shown(BOTH, 100, 0.5)
    assert whole[37:60] == shown(BOTH, 23, 0.5, start=37)
    assert whole != shown(BOTH, 100, 0.5, seed=1)


# where captions stand


@pytest.fixture
def captioned(tmp_path, save):
    """Three pictures: two original lines and one synthetic; original only; synthetic only."""
    root = tmp_path / "data"
    for name in "abc":
        save(root / f"{name}.png", ord(name))
    (root / "a.txt").write_text("first\n\n second ünï \n", encoding="utf-8")
    (root / "a.synthetic.txt").write_text("made\n")
    (root / "b.txt").write_text("only\n")
    (root / "c.synthetic.txt").write_text("made of c\n")
    return root


EXPECTED = [(("first", "second ünï"), ("made",)), (("only",), ()), ((), ("made of c",))]
NOTE = "captions: 1 images have original and synthetic ones, 1 only original and 1 only synthetic ones"


def test_side_files(captioned):
    source = Folder(captioned, 8)
    assert [source[i].captions for i in range(3)] == EXPECTED
    assert [source[i].caption for i in range(3)] == ["first", "only", "made of c"]
    assert any(note.startswith(NOTE) for note in source.notes)
    assert not any("no image's caption" in note for note in source.notes)


def test_lists_in_a_table(tmp_path, save):
    rows = [{"file_name": f"{n}.png", "text": EXPECTED[i][0], "llava": EXPECTED[i][1]} for i, n in enumerate("abc")]
    for name in "abc":
        save(tmp_path / f"{name}.png")
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source(DataSettings(source=str(tmp_path), size=8, synthetic_column="llava"))
    assert [source[i].captions for i in range(3)] == EXPECTED
    assert any(note.startswith(NOTE) for note in source.notes)
    assert Folder(tmp_path, 8)[0].captions.synthetic == ()  # the column has no usual name
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": {"raw": "x"}}')
    with pytest.raises(DataError, match=r"metadata\.jsonl, line 1: dict where a text"):
        Folder(tmp_path, 8)


def test_a_table_of_synthetic_captions_leaves_classes_and_side_files_alone(pets):
    (pets / "cat" / "0.txt").write_text("own")
    (pets / "cat" / "0.synthetic.txt").write_text("beside")
    (pets / "synthetic.jsonl").write_text('{"file_name": "cat/0.png", "synthetic": "of a table"}\n')
    (pets / "other.csv").write_text("file_name,synthetic\ncat/0.png,of another\ncat/gone.png,lost\n")
    source = Folder(pets, 8)
    assert source.classes == ("cat", "dog") and len(source) == 12
    assert source[0].captions == (("own",), ("of another", "of a table"))
    assert "1 synthetic captions are of images that are not there" in source.notes
    elsewhere = pets.parent / "elsewhere.jsonl"
    elsewhere.write_text('{"file_name": "cat/0.png", "mine": "x"}\n')
    named = DataSettings(source=str(pets), size=8, synthetic_table=str(elsewhere), synthetic_column="mine")
    assert open_source(named)[0].captions == (("own",), ("x",))
    with pytest.raises(DataError, match=r"none\.jsonl: no such table of synthetic captions"):
        Folder(pets, 8, synthetic_table="none.jsonl")


def test_coco(tmp_path, save):
    for name in ("1.png", "2.png", "3.png"):
        save(tmp_path / "train2014" / name)
    tree = {
        "images": [{"id": 7, "file_name": "2.png"}, {"id": 4, "file_name": "1.png"}],
        "annotations": [
            {"image_id": 4, "caption": "one\n"}, {"image_id": 7, "caption": "two"}, {"image_id": 4, "caption": "eins"}
        ],
    }  # fmt: skip
    table = tmp_path / "annotations" / "captions_train2014.json"
    table.parent.mkdir()
    table.write_text(json.dumps(tree))
    source = Folder(tmp_path / "train2014", 8, table=str(table))
    assert source.files == ["1.png", "2.png"]
    assert [source[i].captions.original for i in range(2)] == [("one", "eins"), ("two",)]
    table.write_text(json.dumps(tree | {"images": []}))
    with pytest.raises(DataError, match=r"captions_train2014\.json: no COCO captions"):
        Folder(tmp_path / "train2014", 8, table=str(table))


def test_parquet_columns_and_the_table_beside(tmp_path, save):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    data = [save(tmp_path / "store" / f"{i}.png", i).read_bytes() for i in range(3)]
    text, made = (list(column) for column in zip(*EXPECTED, strict=True))
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": data, "caption": text, "synthetic": made}), path, row_group_size=2)
    source = Parquet(path, 8)
    assert [source[i].captions for i in range(3)] == EXPECTED
    assert any(note.startswith(NOTE) for note in source.notes)
    pq.write_table(pa.table({"image": data}), path)
    beside = tmp_path / "a.synthetic.jsonl"
    beside.write_text('{"file_name": "a.parquet#1", "synthetic": "middle"}\n')
    for place in (path, tmp_path):
        assert [open_source(str(place))[i].caption for i in range(3)] == ["", "middle", ""]
    assert not any("a.synthetic" in note or "entries beside" in note for note in open_source(str(path)).notes)


def test_parquet_captions_that_are_no_text_are_rejected_and_the_rest_is_used(tmp_path, save):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    data = [save(tmp_path / "store" / f"{i}.png", i).read_bytes() for i in range(3)]
    raw = pa.array([b"good", b"caf\xe9", b"fine"]).cast(pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 3, raw.buffers())  # what a careless writer stores
    pq.write_table(pa.table({"image": data, "text": texts}), tmp_path / "a.parquet")
    source = Parquet(tmp_path / "a.parquet", 8)
    loader = Loader(source, 3, seed=0)
    batch = next(iter(loader))
    assert set(batch.captions) == {"good", "fine"}
    assert loader.rejected == {source.name(1): "its caption is not UTF-8 text (byte 3)"}


# in training


@pytest.mark.parametrize("settings", [{"workers": 2}, {"start_step": 5}])
def test_visits_are_the_same_on_resume_and_in_workers(captioned, settings):
    source = Folder(captioned, 8)
    whole = visits(source, 9)
    assert whole[4 * settings.get("start_step", 0) :] == visits(source, 9 - settings.get("start_step", 0), **settings)
    assert {text for i, text in whole if i == 0} == {"first", "second ünï", "made"}
    assert {text for i, text in whole if i == 2} == {"made of c"}
    assert "made" not in {text for _, text in visits(source, 9, synthetic_share=0)}


def test_ranks_draw_what_the_whole_batch_draws(captioned):
    source = Folder(captioned, 8)
    parts = [visits(source, 5, rank=rank, world=2) for rank in range(2)]
    joined = [pair for k in range(0, 10, 2) for part in parts for pair in part[k : k + 2]]
    assert joined == visits(source, 5)


def test_captions_from_class_names():
    assert class_captions("a photo of a {class}", "tench, Tinca tinca").original == (
        "a photo of a tench",
        "a photo of a Tinca tinca",
    )
    assert class_captions("a {class}", "golden_retriever").first == "a golden retriever"
    assert class_captions("a {class}", None) == Captions() and class_captions("a pet", None).first == "a pet"


def test_a_template_for_images_without_a_caption(pets):
    (pets / "cat" / "0.txt").write_text("own")
    settings = DataSettings(source=str(pets), size=8, caption="a photo of a {class}")
    source = open_source(settings)
    assert [source[i].caption for i in (0, 1, 11)] == ["own", "a photo of a cat", "a photo of a dog"]
    assert any("such as 'a photo of a cat'" in note for note in source.notes)
    assert source.fingerprint != open_source(settings.model_copy(update={"caption": None})).fingerprint
    half = open_source(settings.model_copy(update={"split": "test"}))
    assert {half[i].caption for i in range(len(half))} <= {"own", "a photo of a cat", "a photo of a dog"}
    assert open_source(DataSettings(caption="a {class}"))[3].caption == f"a {Digits()[3].label}"


def test_a_template_needs_classes(captioned):
    with pytest.raises(DataError, match="made from class names, but the images have no classes"):
        open_source(DataSettings(source=str(captioned), caption="a {class}"))
    assert open_source(DataSettings(source=str(captioned), caption="a pet"))[2].captions.original == ("a pet",)
    for bad in ("a {label}", "{", " "):
        with pytest.raises(ValueError, match="whose only placeholder is"):
            DataSettings(caption=bad)


def test_images_without_a_caption_are_rejected_where_captions_are_asked_for(captioned, tmp_path):
    (captioned / "b.txt").write_text(" \n")
    (captioned / "c.synthetic.txt").write_bytes(b"caf\xe9")
    source = open_source(DataSettings(source=str(captioned), size=8), captioned=True)
    loader = Loader(source, 3, seed=0, rejects=tmp_path / "r.jsonl")
    batch = next(iter(loader))
    assert set(batch.indices.tolist()) == {0}
    assert "it has no caption" in loader.rejected[source.name(1)]
    assert "its caption c.synthetic.txt is not UTF-8" in loader.rejected[source.name(2)]
    assert len(set(batch.indices.tolist())) + len(loader.rejected) == len(source)
    with pytest.raises(BadImage, match="no caption"):
        source[1]
    assert open_source(DataSettings(source=str(captioned), size=8))[1].caption == ""


def test_no_captions_at_all_is_one_clear_line(pets):
    with pytest.raises(DataError, match=r"none of the 12 images looked at has a caption.*data\.caption=") as caught:
        open_source(str(pets), captioned=True)
    assert "\n" not in str(caught.value)
    assert open_source(DataSettings(source=str(pets), caption="a {class}"), captioned=True)[0].caption == "a cat"
