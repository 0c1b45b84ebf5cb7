"""The model of many GPUs against cases that can be worked out by hand."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "scaling.py"
_spec = importlib.util.spec_from_file_location("scaling", FILE)
scaling = importlib.util.module_from_spec(_spec)
sys.modules["scaling"] = scaling
_spec.loader.exec_module(scaling)

FAST = scaling.Cluster(inside=1e18, between=1e18, latency=0.0, memory=1e18, jitter=0.0, disk=1e18, storage=1e18)
XL = scaling.Training(gmacs=118.6, parameters=675e6, blocks=28, image_bytes=4e5, batch=32)
COMPUTE = 32 * 6 * 118.6e9 / (989.5e12 * 0.4)


@pytest.mark.parametrize("mode", scaling.MODES)
@pytest.mark.parametrize("gpus", [1, 8, 64, 512])
def test_without_costs_the_step_is_the_compute(mode, gpus):
    step = scaling.simulate(XL, gpus, mode, FAST, steps=5)
    assert step.total == pytest.approx(COMPUTE, rel=1e-6) and step.compute == pytest.approx(COMPUTE)


def test_a_ring_of_one_machine():
    """2 (n - 1) / n times the gradients over the link: the all-reduce of every textbook."""
    c = replace(FAST, inside=350e9)
    assert scaling.all_reduce(4 * 675e6, 8, c) == pytest.approx(2 * 7 / 8 * 2.7e9 / 350e9)
    assert scaling.all_reduce(4 * 675e6, 1, c) == 0


def test_between_machines_each_gpu_carries_its_part():
    """Of 8 GPUs a machine each sends and receives an eighth: 2 (m - 1) / m size / 8 over its own adapter."""
    c = replace(FAST, between=40e9)
    assert scaling.all_reduce(2.7e9, 64, c) == pytest.approx(2 * 7 / 8 * 2.7e9 / 8 / 40e9)


def test_communication_hides_behind_backward_but_for_the_last_block():
    """Exchange of a block faster than its backward: only the last one, of the first block, is left over."""
    block = COMPUTE * 2 / 3 / 28
    assert scaling.timeline(COMPUTE, XL, 0.0, 0.5 * block) == pytest.approx(COMPUTE + 0.5 * block)
    slow = scaling.timeline(COMPUTE, XL, 0.0, 2 * block)  # slower: the first block's backward, then 28 exchanges
    assert slow == pytest.approx(COMPUTE / 3 + block + 28 * 2 * block)


def test_weights_are_gathered_one_block_ahead():
    """Of 56 gathers slower than any work, none is hidden but by itself: they follow each other, then the last work."""
    block = COMPUTE / 3 / 28
    slow = scaling.timeline(COMPUTE, XL, 10 * block, 0.0)
    assert slow == pytest.approx(56 * 10 * block + 2 * block, rel=0.02)
    assert scaling.timeline(COMPUTE, XL, 0.5 * block, 0.0) == pytest.approx(COMPUTE + 0.5 * block)  # only the first


def test_the_slowest_of_many_is_waited_for():
    c = replace(FAST, jitter=0.02)
    means = [scaling.simulate(XL, n, "ddp", c, steps=2000).waiting / COMPUTE for n in (1, 8, 512)]
    drawn = np.random.default_rng(1).standard_normal((4000, 512)).max(1).mean()
    assert abs(means[0]) < 0.002 and means[0] < means[1] < means[2] == pytest.approx(0.02 * drawn, rel=0.03)


def test_input_bounds_the_rate():
    """A machine of 8 reads 8 x 32 images a step: twice too slow a disk makes steps of twice the length."""
    disk = 8 * 32 * 4e5 / (2 * COMPUTE)
    step = scaling.simulate(XL, 8, "ddp", replace(FAST, disk=disk), steps=200)
    assert step.total == pytest.approx(2 * COMPUTE, rel=0.02)
    shared = replace(XL, local=False)
    assert scaling.simulate(shared, 512, "ddp", replace(FAST, storage=64 * disk), steps=200).total == pytest.approx(
        2 * COMPUTE, rel=0.02
    )


def test_youngs_interval_is_the_best():
    t, c = replace(XL, asynchronous=False), scaling.Cluster()
    interval, share = scaling.goodput(t, 512, c)
    wait, between = scaling.saving(t, 512, c)[0], 3600 * c.failure / 512
    tried = [1 - (wait / i + (i / 2 + c.restart) / between) for i in np.geomspace(interval / 10, interval * 10, 201)]
    assert share == pytest.approx(max(tried), abs=1e-6)
    assert scaling.goodput(XL, 512, c)[1] > share  # in the background less is lost


def test_more_of_everything_costs_more():
    c = scaling.Cluster()
    steps = [scaling.simulate(XL, n, "ddp", c).total for n in (1, 8, 64, 512)]
    assert steps == sorted(steps)
    sharded, copied = (scaling.simulate(XL, 64, mode, c) for mode in ("fsdp", "ddp"))
    assert sharded.update < copied.update / 32


def test_the_script_prints_and_writes(tmp_path, capsys):
    out, plot = tmp_path / "scale.json", tmp_path / "scale.png"
    words = ["sit.s_2", "--gpus", "1", "8", "64", "--steps", "20", "--out", str(out), "--plot", str(plot)]
    rows = scaling.main(words)
    assert "predicted, not measured" in capsys.readouterr().out and plot.stat().st_size > 5000
    assert [(r["gpus"], r["mode"]) for r in rows] == [
        (1, "ddp"), (8, "ddp"), (8, "fsdp"), (64, "ddp"), (64, "fsdp"), (64, "hybrid")
    ]  # fmt: skip
    assert json.loads(out.read_text())["predicted"] == json.loads(json.dumps(rows))
    with pytest.raises(SystemExit):
        scaling.main(words)
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        scaling.main(["--gpus", "12"])
    assert "no whole machines" in capsys.readouterr().err
