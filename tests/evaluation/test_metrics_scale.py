"""Minutes: how fast the Frechet distance is, and how much memory large sets take."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def measure(folder: Path, *words: str) -> dict:
    """The results of the benchmark in a process of its own, on one thread."""
    out = folder / "out.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "metrics.py"), *words, "--threads", "1", "--out", str(out)]
    alone = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True, env={**os.environ, **alone})
    return json.loads(out.read_text())["results"]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_frechet_is_four_times_as_fast_as_sqrtm(tmp_path):
    """By processor time, so that a busy machine does not count."""
    found = measure(tmp_path, "frechet", "--width", "2048")
    full, deficient = found["well_conditioned"], found["rank_deficient"]
    assert full["ratio_of_processor_time"] >= 4 and deficient["ratio_of_processor_time"] >= 4
    assert full["ours"]["value"] == pytest.approx(full["sqrtm"]["value"], rel=1e-6)
    assert math.isfinite(deficient["ours"]["value"]) and deficient["ours"]["value"] > 0


@pytest.mark.long
@pytest.mark.timeout(900)
def test_memory_grows_with_the_samples_not_with_their_pairs(tmp_path):
    """20,000 samples: a matrix of their distances alone is 1,526 MiB, a mask of it 381."""
    small, large = (measure(tmp_path, "scale", "--width", "64", "--samples", n, "--limits") for n in ("5000", "20000"))
    assert large["all_distances_mib"] > 1500
    assert large["peak_mib"] - small["peak_mib"] < 150
    assert 0 < large["precision_recall"]["value"][1] <= 1
