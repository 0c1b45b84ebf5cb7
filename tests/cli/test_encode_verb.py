"""`ditkit encode`: killed and continued, shared by processes and jobs, then trained on and looked at."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WORDS = ("--codec", "toy", "--teacher", "toy", "--size", "16", "shard=8", "batch=4", "features=int8")
TINY = (
    "model.depth=2", "model.width=32", "model.heads=2", "align.depth=1", "training.batch=8", "training.ema=0.5",
    "align.projector_width=16", "sampling.steps=2", "--steps", "2",
)  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory, pictures):
    """120 small pictures in two classes."""
    return pictures(tmp_path_factory.mktemp("data") / "images", n=60, size=(16, 16))


@pytest.fixture(scope="module")
def cache(images, ditkit):
    """Their cache, as one process makes it without a pause."""
    result = ditkit("encode", "repa.sit_s_2", "--data", images, "--out", images.parent / "cache", *WORDS)
    assert result.exit_code == 0, result.output
    assert "next: ditkit train repa.sit_s_2" in result.stdout
    return images.parent / "cache"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_kill_in_the_middle_costs_a_shard_and_the_same_words_go_on(images, cache, tmp_path, own_process, ditkit):
    words = ("encode", "repa.sit_s_2", "--data", images, "--out", tmp_path / "cache", *WORDS, "--device", "cpu")
    running = own_process(*words)
    try:
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline and running.poll() is None:
            if len(list((tmp_path / "cache").glob("shard-*.json"))) >= 2:
                break
            time.sleep(0.001)
    finally:
        running.kill()
        running.communicate()
    there = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("shard-*.safetensors")}
    reports = {path.stem for path in (tmp_path / "cache").glob("shard-*.json")}
    assert reports and not (tmp_path / "cache/manifest.json").exists() and len(there) - len(reports) <= 1
    assert ditkit(*words).exit_code == 0
    assert contents(tmp_path / "cache") == contents(cache)
    for name, when in there.items():
        if Path(name).stem in reports:
            assert (tmp_path / "cache" / name).stat().st_mtime_ns == when, "finished shards are not made again"


def test_two_processes_make_the_same_bytes(images, cache, tmp_path, own_process):
    words = ("encode", "repa.sit_s_2", "--data", images, "--out", tmp_path / "cache", *WORDS, "--processes", "2")
    running = own_process(*words, "data.workers=1")
    out, error = running.communicate(timeout=120)
    assert running.returncode == 0, error
    assert out.count("next: ditkit train") == 1
    assert contents(tmp_path / "cache") == contents(cache)


def test_jobs_by_ranges_and_a_last_call(images, cache, tmp_path, ditkit, refused):
    words = ("encode", "repa.sit_s_2", "--data", images, "--out", tmp_path / "cache", *WORDS)
    result = ditkit(*words, "--shards", "8:15")
    assert result.exit_code == 0 and "shards 0-7 of 15 are missing yet" in result.stdout
    assert "shards 0-7 of 15 are missing" in refused("train", "repa.sit_s_2", "--data", tmp_path / "cache")
    assert ditkit(*words, "--shards", "0:6").exit_code == 0
    for wrong in ("3", "5:2"):  # before anything is opened or written
        new = ("encode", "repa.sit_s_2", "--data", "no such images", "--out", tmp_path / "new", *WORDS)
        assert "write FIRST:END" in refused(*new, "--shards", wrong) and not (tmp_path / "new").exists()
    assert ditkit(*words).exit_code == 0
    assert contents(tmp_path / "cache") == contents(cache)


def test_train_and_doctor_on_a_cache(cache, tmp_path, ditkit, refused):
    fits = ("--codec", "toy", "--teacher", "toy")
    result = ditkit("doctor", "repa.sit_s_2", "--data", cache, *fits, *TINY, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "a cache of 120 images (0 of 120 rejected) in 15 shards" in said
    assert "its features are in the cache" in said and "all 15 shards have the checksums" in said
    result = ditkit("train", "repa.sit_s_2", "--data", cache, *fits, *TINY, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run/samples/0000002.png").is_file()
    assert "this run is set to pixels: give --codec toy" in refused(
        "train", "repa.sit_s_2", "--data", cache, "--codec", "pixels", "--teacher", "toy", *TINY
    )
    refusal = refused("evaluate", tmp_path / "run", "--n", "4", "real=4")
    assert "a cache of latents holds no pictures; name the images" in refusal


def test_codec_and_teacher_refuse_a_cache_before_anything_is_written(cache, tmp_path, refused):
    for words in (("codec", "--data", cache), ("teacher", cache)):
        assert "a cache of latents holds no pictures; name the images" in refused(*words, "--out", tmp_path / "new")
        assert not (tmp_path / "new").exists()


def test_doctor_names_the_damaged_shard(cache, tmp_path, ditkit):
    for path in cache.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    bad = tmp_path / "shard-00003.safetensors"
    data = bytearray(bad.read_bytes())
    data[-20] ^= 1
    bad.write_bytes(data)
    result = ditkit("doctor", "repa.sit_s_2", "--data", tmp_path, "--codec", "toy", "--teacher", "toy", *TINY)
    assert result.exit_code == 1
    assert "shard-00003.safetensors: has another checksum" in " ".join(result.stdout.split())


# A folder of many files: what the verb takes of memory and time. The measurements are printed.
RUN = """
import resource, sys
from ditkit.cli import main
sys.argv = ["ditkit", *sys.argv[1:]]
try:
    main()
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""
MANY = 100_000


@pytest.mark.long
@pytest.mark.timeout(5400)
def test_a_hundred_thousand_images_in_flat_memory_and_a_kill_costs_a_shard(tmp_path):
    made = time.monotonic()
    many(tmp_path / "images", MANY)
    encoded = time.monotonic()
    print(f"{MANY:,} JPEGs made in {encoded - made:.0f} s")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}

    def start(data: Path, out: Path, log: Path) -> subprocess.Popen:
        words = ["encode", "repa.sit_s_2", "--data", data, "--out", out, "--codec", "pixels", "--teacher", "none"]
        command = [sys.executable, "-c", RUN, *map(str, words), "mirror=false", "data.workers=2", "--device", "cpu"]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log.open("w"))

    few = tmp_path / "few"
    many(few, 4096 * 2)
    small = start(few, tmp_path / "small", tmp_path / "small.log")
    assert small.wait(600) == 0
    running = start(tmp_path / "images", tmp_path / "cache", tmp_path / "first.log")
    while running.poll() is None and len(list((tmp_path / "cache").glob("shard-*.json"))) < 20:
        time.sleep(0.05)
    running.kill()
    running.wait()
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("shard-*.safetensors")}
    assert len(list((tmp_path / "cache").glob(".shard-*.part"))) <= 1, "one shard at most was being written"
    reported = len(list((tmp_path / "cache").glob("shard-*.json")))
    assert len(done) - reported <= 1
    again = start(tmp_path / "images", tmp_path / "cache", tmp_path / "second.log")
    assert again.wait(1800) == 0, (tmp_path / "second.log").read_text()[-2000:]
    manifest = json.loads((tmp_path / "cache/manifest.json").read_text())
    assert manifest["counts"] == {"items": MANY, "usable": MANY, "rejects": 0, "captioned": 0}
    remade = [n for n, when in done.items() if (tmp_path / "cache" / n).stat().st_mtime_ns != when]
    assert len(remade) <= 1, "the kill cost one shard at most"
    peaks = [peak(tmp_path / name) for name in ("small.log", "second.log")]
    size = sum(path.stat().st_size for path in (tmp_path / "cache").iterdir())
    print(f"encoded in {time.monotonic() - encoded:.0f} s with a kill, {size / 2**20:,.0f} MiB; peak memory "
          f"{peaks[1] / 1024:.0f} MiB, of {8192:,} images {peaks[0] / 1024:.0f} MiB")  # fmt: skip
    assert peaks[1] - peaks[0] < 150 * 1024, "KiB: names and labels of the files, nothing of their pixels"
    assert "images: " in (tmp_path / "second.log").read_text(), "progress is said where there is no terminal"


def peak(log: Path) -> int:
    """Peak memory of the process, KiB."""
    return int(log.read_text().rsplit("peak ", 1)[1].split()[0])


def many(folder: Path, n: int, different: int = 2000) -> None:
    """n JPEGs of 64x64 in ten classes, each a file of its own; of so many different pictures."""
    rng = np.random.default_rng(0)
    for c in range(10):
        (folder / f"{c}").mkdir(parents=True)
    kept = []
    for _ in range(min(n, different)):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((64, 64)).save(file, "jpeg", quality=85)
        kept.append(file.getvalue())
    for i in range(n):
        (folder / f"{i % 10}" / f"{i:06d}.jpg").write_bytes(kept[i % len(kept)])
