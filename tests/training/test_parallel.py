"""Two processes over gloo train as one does: gradients, order, averages, what they decide and where they stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import team

from ditkit.ranks import ALONE
from ditkit.training import read, read_metrics

KINDS = ("ddp", "fsdp")


@pytest.fixture(scope="module")
def crew(tmp_path_factory):
    """Two processes that do what they are asked."""
    crew = team.Crew(2, tmp_path_factory.mktemp("crew"))
    yield crew
    crew.close()


def close(found: dict, wanted: dict, most: float) -> None:
    """Every tensor within `most` of the wanted one, relative to its norm; the same names."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        error = (found[name].double() - value.double()).norm() / value.double().norm().clamp_min(1e-30)
        assert error <= most, f"{name}: {error:.2g}"


def same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("net", ["", "dit", "ddt", "mmdit"])
def test_gradients_are_those_of_one_process(crew, tmp_path, net, kind):
    """Network and projectors, every family; also in pieces, where gradients are exchanged once."""
    asked = {"folder": str(tmp_path), "batch": 8, "net": net}
    one = team.gradients(ALONE, **asked)
    assert all(v.abs().max() > 0 for v in one.values()), "a gradient that is 0 would show nothing"
    for more in ({}, {"accumulate": 2}, {"micro_batch": 3}) if net != "ddt" else ({},):
        two = crew("gradients", **asked, **more, parallel={"kind": kind})
        same(*two)
        close(two[0], one, 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clipped_gradient_is_clipped_by_the_whole_norm(crew, tmp_path, kind):
    asked = {"folder": str(tmp_path), "batch": 8, "clip": 0.5}
    one, two = team.gradients(ALONE, **asked), crew("gradients", **asked, parallel={"kind": kind})
    assert one["norm"] > 1
    same(*two)
    close(two[0], one, 1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("net", ["dit", "mmdit"])
def test_blocks_computed_again_give_the_same_bits(crew, tmp_path, net, kind):
    asked = {"folder": str(tmp_path), "batch": 8, "net": net, "parallel": {"kind": kind}}
    same(crew("gradients", **asked)[0], crew("gradients", **asked, checkpointing=True)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_blocks(crew, tmp_path, kind):
    """The compiler sees the blocks after they are cut; its eager backend changes no number."""
    asked = {"folder": str(tmp_path), "batch": 8, "net": "dit", "parallel": {"kind": kind}}
    same(crew("gradients", **asked)[0], crew("gradients", **asked, compile=True, backend="eager")[0])


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"kind": "fsdp"},
        *(
            pytest.param({"kind": "fsdp", **more}, marks=pytest.mark.long)
            for more in ({"reshard": False}, {"shards": 1})
        ),
    ],
)
def test_a_run_is_that_of_one_process(crew, tmp_path, more):
    """Order exactly; weights, moments and averages within rounding; past the step where alignment stops; one row each.

    Scores are the first process's, and others are not asked.
    """
    asked = {"batch": 8, "stop": 7, "validate": True, "validate_on": "both", "ema_also": [0.5], "ema_power": [0.1]}
    one = team.train(ALONE, folder=str(tmp_path / "one"), **asked)
    two = crew("train", folder=str(tmp_path / "two"), **asked, parallel=more)
    same(two[0]["weights"], two[1]["weights"])
    close(two[0]["weights"], one["weights"], 2e-6)
    order = [[x for part in two for x in part["seen"][step][1]] for step in range(12)]
    assert order == [images for _, images in one["seen"]]
    assert (one["scored"], two[0]["scored"], two[1]["scored"]) == ([6, 12], [6, 12], [])
    rows = [read_metrics(tmp_path / name) for name in ("one", "two")]
    assert [row.keys() for row in rows[0]] == [row.keys() for row in rows[1]]
    for a, b in zip(*rows, strict=True):
        for name in a:
            if not name.startswith(("seconds", "images_per_s", "memory")):
                assert b[name] == pytest.approx(a[name], rel=1e-5, abs=1e-7), name
    assert torch.equal(read(tmp_path / "two", weights="ema")["enter.weight"], two[0]["weights"]["ema.enter.weight"])


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_sees_a_number_that_is_not_finite_and_all_skip_the_step(crew, tmp_path, kind):
    two = crew("poisoned", folder=str(tmp_path), at=3, batch=8, parallel={"kind": kind})
    assert [part["skipped"] for part in two] == [1, 1]
    same(two[0]["weights"], two[1]["weights"])
    assert all(v.isfinite().all() for v in two[0]["weights"].values())
    assert any("step 3 skipped" in line for line in two[0]["said"])


@pytest.mark.parametrize("more", [{"kind": "ddp"}, {"kind": "fsdp"}, {"kind": "fsdp", "checkpoint": "sharded"}])
def test_one_process_fails_and_all_roll_back(crew, tmp_path, more):
    """To one step, with one set of new draws: as the one process that does the same alone."""
    asked = dict(bad=[6, 7, 8], batch=8, max_nonfinite=3, save_every=5, keep_last=9, save_async=True)
    parallel = {"parallel": {"kind": more["kind"]}, "checkpoint": more.get("checkpoint", "whole")}
    one = team.rolled_back(ALONE, folder=str(tmp_path / "one"), **asked)
    two = crew("rolled_back", folder=str(tmp_path / "two"), **asked, **parallel)
    assert [(part["attempt"], part["step"]) for part in (one, *two)] == 3 * [(1, 12)]
    assert any("Rolled back to the checkpoint of step 5 (1 of 2)" in line for line in two[0]["said"])
    same(two[0]["weights"], two[1]["weights"])
    close(two[0]["weights"], one["weights"], 1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_one_stops_all_at_one_step_with_the_state_saved(crew, tmp_path, kind, number, code):
    asked = {"folder": str(tmp_path), "batch": 8, "parallel": {"kind": kind}}
    two = crew("stopped", at=4, signal=int(number), **asked)
    assert two[0] == two[1] and two[0][0] in (4, 5) and two[0][2] == code, two
    assert (tmp_path / "checkpoints" / f"{two[0][0]:07d}").is_dir()
    assert crew("train", **asked)[0]["step"] == 12


def test_half_precision_of_blocks_in_shards(crew, tmp_path):
    """Blocks hold bfloat16 while they run; stored weights, averages and t are float32; sums by setting."""
    asked = {"folder": str(tmp_path), "batch": 8, "precision": "bf16", "validate": True, "validate_on": "both"}
    one = team.halves(ALONE, **asked)
    assert one["types"] == {"t": "torch.float32", "block": "torch.float32", "average": "torch.float32"}
    for reduce in ("fp32", "bf16"):
        two = crew("halves", **asked, parallel={"kind": "fsdp", "reduce": reduce})
        assert two[0]["types"] == {
            "t": "torch.float32", "block": "torch.bfloat16", "stored": "torch.float32", "average": "torch.float32"
        }  # fmt: skip
        assert two[0]["losses"] == two[1]["losses"] == pytest.approx(one["losses"], rel=0.01)
        assert two[0]["row"] == two[1]["row"] == pytest.approx(one["row"], rel=0.01)
        assert two[0]["losses"][-1] != two[0]["losses"][0]


@pytest.mark.long
def test_four_processes_in_two_copies_of_two_shards(tmp_path):
    crew = team.Crew(4, tmp_path / "crew")
    try:
        asked = {"folder": str(tmp_path / "g"), "batch": 8, "net": "dit"}
        one = team.gradients(ALONE, **asked)
        run = {"batch": 8, "stop": 7}
        alone = team.train(ALONE, folder=str(tmp_path / "one"), **run)
        for parallel in ({"kind": "fsdp", "shards": 2}, {"kind": "fsdp"}, {"kind": "ddp"}):
            for more in ({}, {"accumulate": 2}):
                found = crew("gradients", **asked, **more, parallel=parallel)
                same(found[0], found[3])
                close(found[0], one, 1e-6)
            folder = str(tmp_path / f"{parallel}")
            four = crew("train", folder=folder, **run, parallel=parallel, checkpoint="sharded")
            same(four[0]["weights"], four[3]["weights"])
            close(four[0]["weights"], alone["weights"], 2e-6)
            assert team.train(ALONE, folder=folder, **run, steps=14)["step"] == 14
    finally:
        crew.close()


@pytest.mark.long
def test_shards_that_do_not_fit_are_told_once_before_anything_is_written(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[3]); import team; from ditkit.ranks import Ranks, together\n"
        "with together(Ranks(int(sys.argv[1]), 2)) as ranks: team.train(ranks, sys.argv[2] + '/run', batch=8, "
        "parallel={'kind': 'fsdp', 'shards': 3})"
    )
    own = os.environ | {"OMP_NUM_THREADS": "1", "DITKIT_RENDEZVOUS": (tmp_path / "meeting").as_uri()}
    command, more = [sys.executable, "-c", code], {"env": own, "stderr": subprocess.PIPE, "text": True}
    place = [tmp_path, Path(__file__).parent]
    running = [subprocess.Popen([*command, str(i), *place], **more) for i in range(2)]
    said = [process.communicate(timeout=60)[1] for process in running]
    assert "ValueError: training.parallel.shards=3 does not divide 2 processes" in said[0] and "shards" not in said[1]
    assert not (tmp_path / "run").exists()
