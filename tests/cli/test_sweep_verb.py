"""`ditkit sweep` and `--processes`: what is printed and written; what is refused before an image is made."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from ditkit.cli import processes
from ditkit.cli.processes import take_processes

SMALL = ("--n", 24, "--data", "digits", "--real", 60, "classifier.steps=5")


def test_a_sweep_prints_its_points_the_best_and_where_all_is(ditkit, tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    result = ditkit("sweep", run, "--guidance", "1,2", "--steps", "2,3", "--out", tmp_path / "sweep", *SMALL)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split()[:4] == ["guidance", "interval", "steps", "evaluations"]
    assert [line.split()[:3] for line in lines[1:5]] == [
        ["1", "2", "2"],
        ["2", "2", "4"],
        ["1", "3", "3"],
        ["2", "3", "6"],
    ]
    assert any(line.startswith("Fréchet distance in classifier: best with ") for line in lines)
    assert f"page       {tmp_path / 'sweep' / 'sweep.html'}" in lines
    assert len(json.loads((tmp_path / "sweep" / "sweep.json").read_text())["points"]) == 4
    assert "<svg" in (tmp_path / "sweep" / "sweep.html").read_text()


BAD = [
    (["--guidance", "1,x"], "guidance '1,x': give numbers with commas"),
    (["--steps", "10,0"], "steps '0': give a whole number above 0"),
    (["--seeds", "0"], "seeds '0': give a whole number above 0"),
    (["--n", "many"], "n 'many': give a whole number above 0"),
    (["--interval", "0.9,0.5"], "0 <= LOW < HIGH <= 1"),
    (["--solver", "huen"], "did you mean 'heun'?"),
    (["--data", "/nowhere"], "/nowhere"),
    (["--extractor", "/nowhere/teacher"], "/nowhere/teacher"),
    (["--out", "/dev/null/x"], "cannot write to /dev/null/x"),
    (["--processes", "two"], "--processes 'two': give the number of processes"),
]


@pytest.mark.parametrize(("words", "says"), BAD)
def test_bad_input_is_one_line_before_an_image_is_made(refused, tiny_run, words, says):
    before = sorted((tiny_run / "samples").rglob("*"))
    assert says in refused("sweep", tiny_run, *words)
    assert sorted((tiny_run / "samples").rglob("*")) == before


def test_the_number_of_processes_is_taken_out_of_the_words(monkeypatch, refused, tiny_run):
    assert take_processes(["run", "--n", "5"]) == (1, ["run", "--n", "5"])
    assert take_processes(["run", "--processes", "3", "n=5"]) == (3, ["run", "n=5"])
    assert take_processes(["--processes=2"]) == (2, [])
    for words in (["--processes"], ["--processes", "0"], ["--processes=-1"]):
        with pytest.raises(ValueError, match="give the number of processes"):
            take_processes(words)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "under torchrun" in refused("sample", tiny_run, "--processes", 2)


def test_processes_are_those_of_one_job_and_a_killed_one_ends_the_others(monkeypatch, capfd, tmp_path):
    """The launcher itself, on a stand-in for Python that tells its place and waits."""
    stand_in = tmp_path / "python"
    stand_in.write_text(
        f'#!/bin/sh\necho "$RANK $WORLD_SIZE $LOCAL_RANK $4 ${{DITKIT_RENDEZVOUS%%:*}}" > {tmp_path}/$RANK\n'
        "case $4 in kill$RANK) kill -9 $$;; fail$RANK) exit 3;; fine) exit 0;; esac\nexec sleep 60\n"
    )
    stand_in.chmod(0o755)
    monkeypatch.setattr(processes.sys, "executable", str(stand_in))
    assert processes.start(["sample", "fine"], 3) == 0
    assert [(tmp_path / str(r)).read_text() for r in range(3)] == [f"{r} 3 {r} fine file\n" for r in range(3)]
    start = time.monotonic()
    assert processes.start(["sample", "kill1"], 3) == 137
    assert capfd.readouterr().err == "ditkit: process 1 of 0 to 2 was killed (SIGKILL)\n"
    assert processes.start(["sample", "fail2"], 3) == 3
    assert capfd.readouterr().err == "", "it has said why itself"
    assert time.monotonic() - start < 20


def test_no_more_processes_start_than_there_are_batches(monkeypatch, ditkit, tiny_run, tmp_path):
    started = []
    monkeypatch.setattr(processes, "start", lambda words, count, patience: started.append(count) or 0)
    out = ("--out", tmp_path / "out", "steps=2")
    result = ditkit("sample", tiny_run, "--n", 40, "--processes", 64, *out)
    assert result.exit_code == 0 and started == [] and len(list((tmp_path / "out").glob("0*.png"))) == 40
    assert (
        "--processes 64: 40 images are 1 batch of chunk=64, so 63 would be idle and 1 of them starts" in result.stderr
    )
    assert "4 of them start;" in ditkit("sample", tiny_run, "--exact", "--processes", 9, *out).stderr
    assert "idle" not in ditkit("sweep", tiny_run, "chunk=8", "--n", 17, "--processes", 3, *out).stderr
    assert "2 batches of chunk=500" in ditkit("evaluate", tiny_run, "chunk=500", "--processes", 3).stderr
    assert started == [4, 3, 2]
    assert processes.batches({"keys": ["prompt=a"]}, 64) is None and processes.batches({"classes": "1,2"}, 64)[0] == 1


def test_a_process_ends_with_the_one_that_started_it(tmp_path):
    """The launcher may be killed outright: the others are then nobody's."""
    child = "import os; from ditkit.cli.processes import follow; follow(os.getppid()); print(os.getpid(), flush=True); "
    child += "import time; time.sleep(60)"
    launcher = subprocess.Popen(
        ["sh", "-c", '"$0" -c "$1" & wait', sys.executable, child], stdout=subprocess.PIPE, text=True
    )
    assert int(launcher.stdout.readline()) > 1
    launcher.kill()
    launcher.wait()
    deadline = time.monotonic() + 10
    assert launcher.stdout.read() == "", "its pipe ends when it does"
    assert time.monotonic() < deadline


@pytest.mark.long
def test_three_processes_sample_like_one_and_go_on_after_a_kill(own_process, ditkit, tiny_run, tmp_path):
    words = ["sample", tiny_run, "--n", 90, "--chunk", 4, "--steps", 40, "--out", tmp_path / "out"]
    process = own_process(*words, "--processes", 3)
    while len(list((tmp_path / "out").glob("0*.png"))) < 12:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130 and len(list((tmp_path / "out").glob("0*.png"))) < 90
    process = own_process(*words, "--processes", 2)
    stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == 0, stderr
    assert stdout.count("archive") == 1
    assert ditkit(*words[:-1], tmp_path / "one").exit_code == 0
    files = [{p.name: p.read_bytes() for p in (tmp_path / f).iterdir()} for f in ("out", "one")]
    assert files[0] == files[1] and len(files[0]) == 92 and os.listdir(tmp_path / "one")
