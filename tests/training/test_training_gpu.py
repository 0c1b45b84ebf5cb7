"""The same run on an accelerator (make test-gpu)."""

from __future__ import annotations

import pytest
import torch

from ditkit.training import fit, read_metrics

pytestmark = pytest.mark.gpu


def on_gpu(toy, folder, **settings):
    job = toy.make_job(folder, job=dict(device="cuda"), **settings)
    job.model.cuda()
    job.aligner.cuda()
    return job


def test_losses_are_those_of_the_cpu(toy, tmp_path):
    fit(toy.make_job(tmp_path / "cpu", log_every=1))
    fit(on_gpu(toy, tmp_path / "gpu", log_every=1))
    for cpu, gpu in zip(read_metrics(tmp_path / "cpu"), read_metrics(tmp_path / "gpu"), strict=True):
        assert gpu["loss"] == pytest.approx(cpu["loss"], rel=1e-4)
        assert gpu["grad_norm"] == pytest.approx(cpu["grad_norm"], rel=1e-3)
        assert gpu["memory_gib"] > 0


def test_a_gpu_run_resumes(toy, tmp_path):
    whole = fit(on_gpu(toy, tmp_path / "whole"))
    fit(on_gpu(toy, tmp_path / "parts", steps=5))
    parts = fit(on_gpu(toy, tmp_path / "parts"))
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [dict(precision="bf16"), dict(tf32=True), dict(compile=True)])
def test_fast_paths_stay_close(options, toy, tmp_path):
    plain, fast = (
        fit(on_gpu(toy, tmp_path / "plain", log_every=1)),
        fit(on_gpu(toy, tmp_path / "fast", log_every=1, **options)),
    )
    losses = [[row["loss"] for row in read_metrics(tmp_path / name)] for name in ("plain", "fast")]
    assert losses[1] == pytest.approx(losses[0], rel=3e-2)
    assert {p.dtype for p in fast.parameters} == {torch.float32} and plain.step == fast.step
