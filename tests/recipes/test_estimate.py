"""What a run is predicted to take: memory against what a process really held, time and disk by arithmetic."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ditkit.analysis.cost import cost
from ditkit.recipes import recipe
from ditkit.recipes.alive import Alive, training_pass
from ditkit.recipes.benches.products import training_flops
from ditkit.recipes.benches.random_job import teacher_widths
from ditkit.recipes.estimate import CPU_GMACS, Rate, assumed_rate, cache_bytes, estimate, fits, measured_rate
from ditkit.recipes.memory import RESERVE, Frozen, Memory, shards_of, training_memory

CPU = torch.device("cpu")
SMALL = recipe("sit.s_2").with_({"model.depth": 4, "training.batch": 8, "training.precision": "fp32"})
BOUND = 0.3  # of the measured peak
ROOT = Path(__file__).parents[2]


def measured(name: str, changes: dict) -> int:
    """Bytes that a process of its own held for a few steps, over those of a tiny network's."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("peak.py")), name, json.dumps(changes)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def holds(name: str, changes: dict) -> None:
    chosen = recipe(name).with_(changes)
    predicted, real = training_memory(chosen, teacher_widths(chosen), Frozen()).total, measured(name, changes)
    print(f"{name} {changes}: predicted {predicted / 2**20:.0f} MiB, measured {real / 2**20:.0f} MiB")
    assert abs(predicted - real) < BOUND * real


@pytest.mark.long
def test_memory_against_a_measured_peak():
    holds("sit.s_2", {"model.depth": 3, "training.batch": 4, "training.precision": "fp32"})


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sit.s_2", {"training.batch": 4}),
        ("sit.s_2", {"training.batch": 8}),
        ("sit.s_2", {"training.batch": 8, "model.checkpointing": True}),
        ("sit.s_2", {"training.batch": 8, "training.accumulate": 2}),
        ("sit.s_2", {"training.batch": 16, "model.depth": 4}),
        ("repa.sit_s_2", {"training.batch": 4, "training.precision": "fp32"}),
        ("t2i.digits", {"training.batch": 32, "model.width": 128, "model.depth": 4}),
    ],
)
def test_memory_against_measured_peaks(name, changes):
    holds(name, changes)


def test_what_is_alive_is_counted_once_and_until_it_is_gone():
    with Alive() as alive:
        a = torch.empty(1000)
        assert alive.now == 4000
        b = a.view(10, 100)[2:]
        c = torch.empty(500)
        assert alive.now == 6000, "a view holds nothing of its own"
        del a, c
        assert alive.now == 4000 and alive.most == 6000, "the view keeps the storage"
        del b
        assert alive.now == 0
        with alive.above() as before:
            d = torch.empty(10)
            assert before == 0 and alive.most == 40
        del d


def test_a_pass_grows_with_its_rows_and_knows_its_weights():
    passed = training_pass(SMALL, 4)
    twice = training_pass(SMALL, 8)
    assert passed.weights == passed.trained == 4 * cost(SMALL.model).trainable
    assert twice.forward == pytest.approx(2 * passed.forward, rel=0.02)
    again = training_pass(SMALL, 4, again=True)
    assert again.peak == pytest.approx(passed.forward + passed.trained, rel=0.1), "gradients of the piece before"
    assert passed.peak < again.peak


@pytest.mark.parametrize(
    ("changes", "less"),
    [
        ({"model.checkpointing": True}, 0.45),
        ({"training.precision": "bf16"}, 0.9),
        ({"training.accumulate": 4}, 0.9),
    ],
)
def test_what_saves_memory_is_seen(changes, less):
    plain, saving = (training_memory(one, (), Frozen()).working for one in (SMALL, SMALL.with_(changes)))
    assert saving < less * plain


def test_the_state_is_what_the_trainer_holds():
    memory = training_memory(SMALL, (), Frozen(weights=5))
    assert memory.moments == 2 * memory.weights and memory.averages == memory.weights
    assert memory.checkpoint == memory.state == 4 * memory.weights
    assert memory.total == pytest.approx((1 + RESERVE) * (memory.state + memory.working + 5), abs=1)
    more = training_memory(SMALL.with_({"training.ema_also": (0.99,), "training.ema_power": (0.05, 0.1)}), (), Frozen())
    assert more.averages == 4 * memory.averages and more.checkpoint == memory.checkpoint + 3 * memory.averages
    muon = training_memory(SMALL.with_({"training.muon": {}}), (), Frozen())
    assert memory.weights < muon.moments < 1.2 * memory.weights, "one number of a matrix, and they are nearly all"


def test_encoding_is_over_when_the_network_runs():
    few = Memory(1, 1, 1, 100, 0, Frozen(10, 40), 0)
    assert few.tensors == 3 + 10 + 100
    assert Memory(1, 1, 1, 100, 0, Frozen(10, 400), 0).tensors == 3 + 10 + 400


def test_shards_divide_what_stays():
    whole = training_memory(SMALL, (), Frozen(), 4)
    fsdp = SMALL.with_({"training.parallel.kind": "fsdp"})
    cut = training_memory(fsdp, (), Frozen(), 4)
    assert cut.state == pytest.approx(whole.state / 4) and cut.checkpoint == whole.checkpoint
    assert 0 < cut.gathered < whole.weights
    eager = training_memory(fsdp.with_({"training.parallel.reshard": False}), (), Frozen(), 4)
    assert eager.gathered == whole.weights
    assert shards_of(fsdp.training, 1) == shards_of(SMALL.training, 8) == 1
    assert shards_of(fsdp.with_({"training.parallel.shards": 2}).training, 8) == 2


# ---------------------------------------------------------------------------------------------------- time


def test_time_and_disk_by_arithmetic():
    small = SMALL.with_({"training.steps": 1000, "training.keep_last": 2, "training.keep_every": 250})
    found = estimate(small, Rate(2.0, "so said"), processes=2, images=100, from_cache=True)
    assert found.flops == training_flops(small.model)
    assert found.images_a_second == pytest.approx(2 * 2e12 / found.flops)
    assert found.seconds == pytest.approx(8000 / found.images_a_second)
    assert found.device_hours == pytest.approx(2 * found.seconds / 3600)
    assert found.disk == (2 + 1 + 4) * found.memory.checkpoint
    assert found.how == "so said" and found.memory.frozen == Frozen()
    assert found.cache == 100 * 2 * 2 * 4 * 32 * 32, "mean and deviation in half precision"
    assert any("no time for communication" in line for line in found.assumed)
    online = estimate(small, Rate(2.0, ""), processes=2)
    assert online.memory.frozen.weights == 4 * 83_653_863 and online.cache is None
    with pytest.raises(ValueError, match="batch=8 does not divide over 3"):
        estimate(small, Rate(1.0, ""), processes=3)


def test_teachers_that_are_asked_take_time():
    repa = recipe("repa.sit_s_2").with_({"training.batch": 4})
    asked, stored = (estimate(repa, Rate(1.0, ""), from_cache=cached) for cached in (False, True))
    base = 2 * 256 * 12 * 768**2 * 12
    assert asked.seconds / stored.seconds == pytest.approx((asked.flops + base) / asked.flops)
    tokens = 2 * 256 * 768 + 4 * 768
    assert cache_bytes(repa, (768,)) == 2 * 2 * 4 * 32 * 32 + tokens


def test_rates(tmp_path):
    fast = recipe("sit.xl_2_256").with_({"training.precision": "bf16", "training.compile": True})
    rate = assumed_rate(fast, CPU, "NVIDIA H200")
    assert rate.tflops == pytest.approx(0.35 * 989.5) and "35 % of 989.5" in rate.how
    assert assumed_rate(fast.with_({"training.compile": False}), CPU, "H200").tflops == pytest.approx(0.2 * 989.5)
    assert assumed_rate(fast, CPU, "A100", share=0.5).tflops == pytest.approx(156.0)
    here = assumed_rate(SMALL, CPU)
    assert here.tflops == pytest.approx(2 * CPU_GMACS * torch.get_num_threads() / 1000) and "assumed" in here.how
    with pytest.raises(ValueError, match="no peak is known"):
        assumed_rate(SMALL, CPU, "Some card")
    file = tmp_path / "bench.json"
    arm = {"tflops_a_second": 0.25, "settings": {"precision": "fp32"}}
    facts = {"recipe": "sit.s_2", "environment": {"device": "cpu"}, "settings": {"batch": 16}}
    file.write_text(json.dumps({**facts, "results": {"arms": {"chosen": arm}}}))
    found = measured_rate(file, fast)
    assert found.tflops == 0.25 and found.how == (
        "measured: 0.25 TFLOP/s, sit.s_2 on cpu, fp32, batch 16 (this run is bf16)"
    )
    for text in ("[]", '{"results": {}}', "no json"):
        file.write_text(text)
        with pytest.raises(ValueError, match="is no result of `ditkit bench train`"):
            measured_rate(file, SMALL)
    with pytest.raises(ValueError, match="No such file"):
        measured_rate(tmp_path / "none.json", SMALL)


def test_what_fits():
    memory = Memory(10, 0, 0, 10, 0, Frozen(), 0)
    assert fits(memory, 100) is True and fits(memory, 24) is False and fits(memory, None) is None


def test_the_published_xl_at_256():
    """REPA's XL, batch 256: weights, moments and average are 16 bytes a number; the rest is what a pass holds."""
    xl = recipe("sit.xl_2_256").with_({"model.depth": 2, "training.precision": "bf16"})
    memory = training_memory(xl, (), Frozen(), 64)
    assert memory.state == 4 * memory.weights and memory.working > 0
