"""Jobs that write one cache at once, are killed, or find its manifest damaged: nothing is lost or stays behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditkit.data import DataError, open_source
from ditkit.data.cache_drafts import OLD, clear_drafts, draft_path, machine, place
from ditkit.data.cache_format import Stored, shard_name
from ditkit.data.cache_write import Draft
from ditkit.recipes.choose import choose
from ditkit.recipes.encode import Encoding, encode, encode_shards, open_encoding

CPU = torch.device("cpu")


def images(folder: Path, n: int = 12) -> Path:
    folder.mkdir()
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder


def opened(data: Path, out: Path, shards: range | None = None) -> Encoding:
    ours = choose("repa.sit_s_2", data=str(data), codec="toy", teachers=["none"])
    return open_encoding(ours, out, CPU, Stored(shard=4, batch=2, dtype="fp32"), shards=shards)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("drafts")
    encode(opened(images(root / "images"), root / "cache"))
    return root / "cache"


@pytest.fixture
def own(made, tmp_path) -> Path:
    (tmp_path / "own").mkdir()
    for path in made.iterdir():
        (tmp_path / "own" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "own"


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


# ------------------------------------------------------------------------------------------------ drafts


def test_drafts_of_dead_processes_alone_are_cleared(tmp_path, dead):
    host, other = machine(), "0" * 8
    gone = [f".shard-00001.safetensors.{host}-{dead}-ab.part", f".manifest.json.{host}-{dead}-ab.part",
            f".shard-00001.json.{host}-{dead}-ab.part", f".plan.json.{other}-1-old.part"]  # fmt: skip
    stay = [f".shard-00002.safetensors.{host}-{os.getpid()}-ab.part", f".shard-00003.json.{other}-{dead}-ab.part",
            f".mine.json.{host}-{dead}-ab.part"]  # fmt: skip
    for name in (*gone, *stay):
        (tmp_path / name).write_bytes(b"x")
    long_ago = time.time() - OLD - 60
    os.utime(tmp_path / gone[-1], (long_ago, long_ago))
    clear_drafts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stay)
    assert draft_path(tmp_path / "plan.json").name.startswith(f".plan.json.{host}-{os.getpid()}-")


def test_a_call_that_begins_frees_what_killed_jobs_had_taken(made, tmp_path, dead):
    encoding = opened(made.parent / "images", tmp_path / "cache")
    for name in ("shard-00000.safetensors", "plan.json"):
        (tmp_path / f"cache/.{name}.{machine()}-{dead}-ab.part").write_bytes(bytes(1000))
    opened(made.parent / "images", tmp_path / "cache")
    assert sorted(path.name for path in encoding.folder.iterdir()) == ["plan.json"]


def test_a_job_that_composes_leaves_the_drafts_of_others_at_work(made, tmp_path):
    """A second job writes a shard while the first finishes everything; both end well."""
    encoding = opened(made.parent / "images", tmp_path / "cache")
    slow = Draft(encoding.folder, encoding.plan, 1, [b"{}\n"] * 4, 0)
    encode(encoding)
    assert slow.path.exists()
    slow.drop()
    assert contents(tmp_path / "cache") == contents(made)


def test_a_draft_that_vanished_is_no_error_where_its_shard_is_whole(made, own, tmp_path):
    encoding = opened(made.parent / "images", own)
    slow = Draft(own, encoding.plan, 1, [b"{}\n"] * 4, 0)
    slow.path.unlink()
    slow.finish({"usable": 4}, [], "plan")
    assert contents(own) == contents(made) and slow.file == -1
    lonely = opened(made.parent / "images", tmp_path / "cache")
    slow = Draft(lonely.folder, lonely.plan, 1, [b"{}\n"] * 4, 0)
    slow.path.unlink()
    with pytest.raises(DataError, match="cannot be written: No such file"):
        slow.finish({"usable": 4}, [], "plan")
    slow.drop()


# ------------------------------------------------------------------------------------------------ the first one


def test_of_two_that_begin_at_once_the_first_one_stays(tmp_path, monkeypatch):
    """The other one came between the look and the writing: the look says that nothing is there."""
    (tmp_path / "plan.json").write_bytes(b"first")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", lambda self, **_: False)
        place(tmp_path / "plan.json", b"second", first=True)
    assert contents(tmp_path) == {"plan.json": b"first"}
    place(tmp_path / "new.json", b"new", first=True)
    place(tmp_path / "plan.json", b"third")
    assert contents(tmp_path) == {"new.json": b"new", "plan.json": b"third"}


def test_file_systems_without_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for data in (b"first", b"second"):
        place(tmp_path / "plan.json", data, first=True)
    assert contents(tmp_path) == {"plan.json": b"first"}


# ------------------------------------------------------------------------------------------------ the manifest


@pytest.mark.parametrize("lost", ["cut", "gone", "fields", "gone with plan", "old"])
def test_a_damaged_manifest_is_made_again_byte_for_byte(lost, made, own):
    path = own / "manifest.json"
    text = path.read_bytes()
    when = (own / shard_name(0)).stat().st_mtime_ns
    if lost == "cut":
        path.write_bytes(text[: len(text) // 2])
    elif lost == "fields":
        path.write_bytes(text.replace(b'"counts"', b'"sums"'))
    elif lost == "old":  # a cache of nothing but its manifest: what else belongs to it is made
        for report in (*own.glob("shard-*.json"), own / "plan.json"):
            report.unlink()
    else:
        path.unlink()
    if lost == "gone with plan":
        (own / "plan.json").unlink()
    if lost in ("cut", "gone"):
        with pytest.raises(DataError, match=r"manifest\.json is (damaged|missing); `ditkit encode` .* mends it"):
            open_source(str(own))
    if lost == "fields":
        with pytest.raises(DataError, match=r"not readable as a cache's.* mends it"):
            open_source(str(own))
    encode(opened(made.parent / "images", own))
    assert contents(own) == contents(made) and (own / shard_name(0)).stat().st_mtime_ns == when
    assert len(open_source(str(own))) == 12


def test_a_newer_manifest_is_not_overwritten(made, own):
    path = own / "manifest.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(DataError, match="a cache of version 2"):
        opened(made.parent / "images", own)


# ------------------------------------------------------------------------------------------------ ranges of shards


def test_a_range_of_no_shards_is_refused_before_anything_is_written(made, tmp_path):
    for shards in (range(3, 5), range(2, 2)):
        with pytest.raises(ValueError, match=r"there are 3 shards, 0:3$"):
            opened(made.parent / "images", tmp_path / "cache", shards)
    assert not (tmp_path / "cache").exists()


def test_a_range_that_ends_beyond_the_last_shard_is_cut_with_a_note(made, tmp_path):
    encoding = opened(made.parent / "images", tmp_path / "cache", range(1, 99))
    assert encoding.notes[-1] == "--shards 1:99: there are 3 shards, 0:3; this job makes 1:3"
    assert encode(encoding, range(1, 99)) is None
    assert sorted(path.name for path in encoding.folder.glob("*.safetensors")) == [shard_name(1), shard_name(2)]


# ------------------------------------------------------------------------------------------------ numbers


def test_images_of_no_finite_numbers_are_listed_by_path(made, tmp_path, monkeypatch):
    encoding = opened(made.parent / "images", tmp_path / "cache")
    look = encoding.networks.look

    def blow_up(seen):
        moments, features = look(seen)
        moments[-1] = float("nan")
        return moments, features

    monkeypatch.setattr(encoding.networks, "look", blow_up)
    encode_shards(encoding, [0], lambda done: None)
    report = (tmp_path / "cache/shard-00000.json").read_text()
    assert "codec or teacher make no finite numbers of it" in report
    assert all(str(made.parent / f"images/00{i}.png") in report for i in (1, 3)) and "image 1" not in report
