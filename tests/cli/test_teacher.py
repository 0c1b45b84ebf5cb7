"""`ditkit teacher`: a teacher on one's own images, its honest report, and nothing half written."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from ditkit.cli.teacher import PROBES, table, way_on
from ditkit.pretrained import SelfTaught
from ditkit.recipes.teach import SEEN, UNSEEN

TINY = ("network.width=16", "network.depth=1", "batch=16")


@pytest.fixture(scope="module")
def made(tmp_path_factory, ditkit):
    """A tiny teacher of the digits that saw four fifths of them."""
    out = tmp_path_factory.mktemp("teacher") / "digits"
    result = ditkit("teacher", "digits", "--out", out, "--steps", 3, "--hold-out", *TINY)
    assert result.exit_code == 0, result.output
    return out, result


def test_writes_a_teacher_that_loads(made):
    out, _ = made
    teacher = SelfTaught.load(out)
    assert (teacher.width, teacher.facts["steps"], teacher.facts["images"]) == (16, 3, 1437)
    assert sorted(p.name for p in out.iterdir()) == ["model.safetensors", "probe.json", "teacher.json"]


def test_reports_teacher_untrained_and_pixels(made):
    out, result = made
    found = json.loads((out / "probe.json").read_text())
    for probe in PROBES:
        scores = found["scores"][probe]
        assert set(scores) == {"teacher", "random_init", "pixels"}
        assert scores["pixels"]["mean"] > 0.8, "raw pixels are strong on digits"
        assert 0 <= scores["teacher"]["mean"] <= 1 and scores["teacher"]["error"] >= 0
    assert (found["protocol"]["train"], found["protocol"]["test"]) == (1437, 360)
    assert "raw pixels" in result.stdout and "360 images of 10 classes tested" in result.stdout
    if "not clearly better" in result.stdout:
        assert f"next: train it longer: ditkit teacher digits --steps 12 --out {out}-longer" in result.stdout
    else:
        assert f"--data digits --codec pixels --teacher {out}" in result.stdout, "the next command"


def test_says_what_the_teacher_has_seen(made, tmp_path, pictures, ditkit):
    assert UNSEEN in made[1].stdout
    data = pictures(tmp_path / "data", n=26, size=(8, 8))
    result = ditkit("teacher", data, "--out", tmp_path / "teacher", "--steps", 2, *TINY)
    assert result.exit_code == 0, result.output
    assert SEEN in result.stdout
    assert SelfTaught.load(tmp_path / "teacher").facts["images"] == 52


def test_a_teacher_that_learned_nothing_is_told_so():
    scores = {who: {"mean": 0.5, "error": 0.1} for who in ("teacher", "random_init", "pixels")}
    gain = {"mean": 0.01, "error": 0.02, "standard_errors": 0.5}
    protocol = {"test": 9, "classes": 3, "train": 40, "draws": 5, "seen": SEEN}
    found = {"scores": dict.fromkeys(PROBES, scores), "gains": dict.fromkeys(PROBES, gain), "protocol": protocol}
    assert "not clearly better than untrained" in table(found)
    found["gains"] = {**found["gains"], "knn": {"mean": 0.2, "error": 0.01, "standard_errors": 20.0}}
    assert "not clearly better" not in table(found)


def test_the_next_command_carries_the_size_and_follows_the_probe():
    use = way_on("images", "32x48", Path("t"), 500, better=True)
    assert use == "ditkit train repa.sit_s_2 --data images --size 32x48 --codec pixels --teacher t"
    longer = way_on("images", "32x48", Path("t"), 500, better=False)
    assert "ditkit teacher images --size 32x48 --steps 2000 --out t-longer" in longer


def test_steps_said_twice(tmp_path, refused):
    line = refused("teacher", "digits", "--out", tmp_path / "t", "--steps", 3, "steps=4")
    assert "--steps 3 and steps=4 contradict each other" in line


@pytest.mark.parametrize("classes, said", [(("",), "no labels"), (("cat",), "one"), (("a", "b"), "too few")])
def test_data_that_cannot_be_probed_still_give_a_teacher(tmp_path, pictures, ditkit, classes, said):
    data = pictures(tmp_path / "data", classes, n=6, size=(8, 12))
    bad = next(data.rglob("*.png"))
    bad.write_bytes(bad.read_bytes()[:100])
    result = ditkit("teacher", data, "--out", tmp_path / "teacher", "--steps", 2, *TINY)
    assert result.exit_code == 0, result.output
    assert "no probe" in result.stdout and said in result.stdout
    assert not (tmp_path / "teacher" / "probe.json").exists()
    teacher = SelfTaught.load(tmp_path / "teacher")
    assert [reject[0] for reject in teacher.facts["rejects"]] == [str(bad)]
    assert f"left out: {bad}" in result.stderr


def test_never_writes_over_anything(made, refused):
    before = (made[0] / "teacher.json").read_bytes()
    assert "exists already" in refused("teacher", "digits", "--out", made[0])
    assert (made[0] / "teacher.json").read_bytes() == before


def test_the_same_seed_gives_the_same_teacher(tmp_path, pictures, ditkit):
    data = pictures(tmp_path / "data", n=6, size=(8, 8))
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert ditkit("teacher", data, "--out", tmp_path / name, "--steps", 2, "--seed", seed, *TINY).exit_code == 0
    a, b, c = (SelfTaught.load(tmp_path / name).id for name in "abc")
    assert a == b != c


@pytest.mark.long
def test_ctrl_c_leaves_nothing(tmp_path, pictures, own_process):
    data = pictures(tmp_path / "data", n=4, size=(8, 8))
    process = own_process("teacher", data, "--out", tmp_path / "teacher", "--steps", 1_000_000, *TINY)
    seen = process.stderr.readline() + process.stderr.readline()
    assert "training a teacher" in seen
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in error and "ditkit: interrupted" in error
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
