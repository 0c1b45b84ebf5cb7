"""`ditkit analyze` with the looks at space, frequency, paths and attention: files, report and two runs side by side."""

from __future__ import annotations

import json
import shutil

import pytest

NAMES = ("spatial", "maps", "spectrum", "path", "attention")
TITLES = ("Spatial structure", "Feature maps", "Frequency content", "Sampling paths", "Attention")
LOOKS = ["n=10", "t=0.2,0.5", "--images", 6, "--shown", 2]
QUICK = [*LOOKS, "--paths", 2, "--fine", 8, "--counts", "1,2"]


@pytest.fixture(scope="module")
def runs(tiny_run, tiny_ddt, tmp_path_factory):
    """Copies of two tiny runs, which grow files."""
    home = tmp_path_factory.mktemp("looked-at")
    return [shutil.copytree(run, home / name) for name, run in (("sit", tiny_run), ("ddt", tiny_ddt))]


@pytest.mark.long
def test_all_of_them_and_side_by_side(ditkit, runs, tmp_path):
    done = ditkit("analyze", "all", runs[0], "--only", ",".join(NAMES), *QUICK)
    assert done.exit_code == 0, done.output
    page = (runs[0] / "report.html").read_text()
    for name, title in zip(NAMES, TITLES, strict=True):
        told = json.loads((runs[0] / "analysis" / f"{name}.json").read_text())
        assert told["said"] and all(line in done.stdout for line in told["said"]) and f">{title}</h2>" in page
    assert (runs[0] / "analysis" / "maps-t-0.2.png").is_file()

    only = ("--only", "maps,spectrum")
    done = ditkit("analyze", "compare", *runs, *only, *LOOKS, "--out", tmp_path / "both.html")
    assert done.exit_code == 0, done.output
    both = (tmp_path / "both.html").read_text()
    assert all(f">{title}</h2>" in both for title in TITLES[1:3]) and "ddt: samples" in both
    assert all(f"{name}: at t = 0.5, the share of power" in done.stdout for name in ("sit", "ddt"))


def test_each_has_help_and_says_what_is_wrong_in_a_line(ditkit, refused, runs):
    for name in NAMES:
        done = ditkit("analyze", name, "--help")
        assert done.exit_code == 0 and f"ditkit analyze {name} runs/repa" in " ".join(done.stdout.split())
    told = refused("analyze", "spatial", runs[1], "n=4", "--blocks", 9)
    assert "blocks=9: blocks of this model count from 1 to 3" in told
    assert "counts 99: give numbers of steps" in refused("analyze", "path", runs[1], "n=4", "--counts", 99, "fine=16")
