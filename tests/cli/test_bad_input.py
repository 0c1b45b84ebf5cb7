"""Bad input: one line on stderr that begins with "ditkit:", exit code 2, no traceback, nothing written."""

from __future__ import annotations

import pytest

PLAIN = ("--codec", "pixels", "--teacher", "none")


@pytest.fixture
def home(tmp_path, monkeypatch, pictures):
    """The working folder: data/ with pictures, empty/, notes/ (no pictures), picture.png, table.csv, file."""
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "data", n=2)
    for name in ("empty", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes" / "a.docx").write_text("x")
    (tmp_path / "data" / "cat" / "000.png").rename(tmp_path / "picture.png")
    (tmp_path / "file").write_text("x")
    (tmp_path / "wide.csv").write_text("a,b\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("this is no picture")
    return tmp_path


DATA = {
    "missing folder": ("nowhere", "'nowhere': no such file or folder"),
    "nearly the right word": ("digit", "did you mean 'digits'?"),
    "empty folder": ("empty", "no images in this folder (it is empty)"),
    "folder of something else": ("notes", "found 1 .docx"),
    "one picture": ("picture.png", "a single image"),
    "a file": ("file", "this is a file"),
    "a table": ("wide.csv", "data.table names it"),
    "only broken pictures": ("broken", "none of the images looked at can be read"),
}


@pytest.mark.parametrize("verb", ["train", "teacher"])
@pytest.mark.parametrize("data, said", DATA.values(), ids=DATA)
def test_data_that_is_none(home, refused, verb, data, said):
    words = ("train", "repa.sit_s_2", "--data", data, *PLAIN) if verb == "train" else ("teacher", data)
    assert said in refused(*words)
    assert not (home / "runs").exists()


RECIPES = {
    "unknown recipe": (("repa.sit_s_3",), "did you mean 'repa.sit_s_2'"),
    "unknown key": (("repa.sit_s_2", "training.lrr=1"), "training.lrr: unknown key; did you mean 'training.lr'?"),
    "unknown part": (("repa.sit_s_2", "trainin.lr=1"), "did you mean 'training'"),
    "unknown kind": (("repa.sit_s_2", "adapter=lore"), "adapter: no kind 'lore'; did you mean 'lora'?"),
    "unknown encoder": (
        ("t2i.digits", "--text", "nonsense"),
        "neither toy, toy-sd3, clip, sd3, clip:SOURCE or sd3:SOURCE",
    ),
    "wrong type": (("repa.sit_s_2", "training.steps=many"), "training.steps: input should be a valid integer"),
    "out of range": (("repa.sit_s_2", "training.lr=-1"), "training.lr: input should be greater than 0"),
    "no value": (("repa.sit_s_2", "training.lr"), "an override is written key=value"),
    "file that is not there": (("mine.yaml",), "mine.yaml: no such settings file"),
    "no recipe": ((), "Missing argument"),
    "unknown option": (("repa.sit_s_2", "--colour", "red"), "--colour"),
    "steps": (("repa.sit_s_2", "--steps", "0"), "--steps"),
    "size": (("repa.sit_s_2", "--size", "big"), "size 'big': write one side (256) or height x width"),
    "size of nothing": (("repa.sit_s_2", "--size", "0x8"), "size '0x8'"),
    "steps said twice": (("repa.sit_s_2", "--steps", "3", "training.steps=5"), "--steps 3 and training.steps=5 contra"),
    "codec said twice": (("repa.sit_s_2", "codec=kl"), "--codec pixels and codec=kl contradict"),
    "size said twice": (
        ("repa.sit_s_2", "--size", "32", "data.size=[32,48]"),
        "--size 32 and data.size=[32,48] contra",
    ),
    "device": (("repa.sit_s_2", "--device", "toaster"), "device 'toaster' cannot be used"),
    "teacher without use": (("sit.xl_2_256", "--teacher", "digits"), "--teacher has no use"),
    "teacher that is not there": (("repa.sit_s_2", "--teacher", "./gone"), "./gone"),
    "no patch": (("repa.sit_s_2", "--size", "257"), "choose --size"),
}


@pytest.mark.parametrize("verb", ["train", "doctor"])
@pytest.mark.parametrize("words, said", RECIPES.values(), ids=RECIPES)
def test_recipes_and_options(home, refused, ditkit, verb, words, said):
    plain = () if "--teacher" in words else ("--teacher", "none")
    words = (verb, *words, "--data", "data", "--codec", "pixels", *plain)
    if verb == "doctor" and ("257" in words or "./gone" in words):
        result = ditkit(*words)
        assert result.exit_code == 1 and said in result.stdout
    else:
        assert said in refused(*words)
    assert not (home / "runs").exists()


@pytest.mark.parametrize("out", ["file", "file/run"])
@pytest.mark.parametrize("verb", ["train", "teacher"])
def test_a_file_in_the_way(home, refused, verb, out):
    words = ("train", "repa.sit_s_2", "--data", "data", *PLAIN) if verb == "train" else ("teacher", "data")
    assert "file is a file; name another" in refused(*words, "--out", out)
    assert (home / "file").read_text() == "x"


def test_a_folder_that_holds_something_else_is_not_taken_for_a_run(home, refused):
    line = refused("train", "repa.sit_s_2", "--data", "data", *PLAIN, "--out", "data")
    assert "holds something that is no run" in line
    assert sorted(p.name for p in (home / "data").iterdir()) == ["cat", "dog"]


@pytest.mark.parametrize("verb", ["shw", "trian"])
def test_unknown_verb_is_answered_with_the_nearest(refused, verb):
    assert "Did you mean" in refused(verb)


@pytest.mark.parametrize("words, said", [(("batc=4",), "'batch'"), (("network.depht=2",), "network.depth")])
def test_teacher_settings(home, refused, words, said):
    assert said in refused("teacher", "data", *words)
    assert not (home / "runs").exists()


def test_a_settings_file_with_an_unknown_key(home, refused):
    (home / "mine.yaml").write_text("base: repa.sit_s_2\ntraining: {stepps: 3}\n")
    assert "training.stepps: unknown key; did you mean 'training.steps'?" in refused("train", "mine.yaml")


def test_a_foreign_error_is_one_line_and_the_traceback_can_be_had(home, ditkit, refused, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr("ditkit.recipes.run.prepare", broken)
    assert refused("train", "digits.sit") == "ditkit: RuntimeError: first line"
    monkeypatch.setenv("DITKIT_TRACEBACK", "1")
    assert isinstance(ditkit("train", "digits.sit").exception, RuntimeError)
