"""Tiny recipes on the digits: the first losses are golden, and resume, workers and precision hold on the real parts."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from ditkit.align import Aligner, AlignSettings, compute_targets
from ditkit.data import Digits, Loader, to_float
from ditkit.diffusion import Flow, ImprovedDDPM, LogitNormal
from ditkit.models import DDTSettings, DiTSettings, build_model
from ditkit.pretrained.toy import ToyExtractor
from ditkit.protocols import Condition
from ditkit.training import Interrupted, Job, TrainSettings, fit, list_steps
from ditkit.training.checkpoint import read_tensors

SMALL = DiTSettings(depth=2, width=32, heads=2, patch=2, channels=1, size=(8, 8), num_classes=10)
SMALL_DDT = DDTSettings(
    encoder_blocks=1, decoder_blocks=1, width=32, heads=2, patch=2, channels=1, size=(8, 8), num_classes=10
)
RECIPES = {
    "sit": dict(objective=Flow()),
    "repa": dict(objective=Flow(), align=AlignSettings(depth=1, projector_width=32, stop_step=5)),
    "dit": dict(objective=ImprovedDDPM(), variance="learned", time_scale=999.0),
    "ddt": dict(
        network=SMALL_DDT, objective=Flow(density=LogitNormal()), betas=(0.9, 0.95),
        align=AlignSettings(depth=1, projector_width=32, projector_init="torch", stop_step=5),
    ),
}  # fmt: skip
# (loss, gradient norm) of the first six steps; the alignment's stop shows at the last
GOLDEN = {
    "sit": [
        (1.691601, 2.068082),
        (1.738204, 1.643633),
        (1.723741, 1.659409),
        (1.654761, 1.46228),
        (1.579959, 1.162212),
        (1.707148, 1.204059),
    ],
    "repa": [
        (1.706275, 2.183892),
        (1.740492, 1.779024),
        (1.693774, 1.752237),
        (1.589134, 1.530937),
        (1.470691, 1.230198),
        (1.707073, 1.222171),
    ],
    "dit": [
        (0.9307233, 1.300626),
        (1.042477, 1.395835),
        (0.9847994, 1.608368),
        (1.100558, 1.214706),
        (0.9343872, 1.351188),
        (0.8471894, 1.55938),
    ],
    "ddt": [
        (1.671541, 1.879346),
        (1.68891, 1.974931),
        (1.672524, 1.730986),
        (1.598793, 1.769782),
        (1.526117, 1.493895),
        (1.669375, 1.619399),
    ],
}


@pytest.fixture(scope="module")
def digits():
    return Digits("train")


def job_of(name: str, folder, source, *, workers: int = 0, **settings) -> Job:
    recipe = dict(RECIPES[name])
    objective, align = recipe.pop("objective"), recipe.pop("align", None)
    network, betas = recipe.pop("network", SMALL), recipe.pop("betas", (0.9, 0.999))
    chosen = TrainSettings(**dict(steps=6, batch=16, lr=2e-3, ema=0.9, log_every=1, betas=betas) | settings)
    teacher = ToyExtractor(width=8)
    return Job(
        model=build_model(network.model_copy(update=recipe), generator=torch.Generator().manual_seed(0)),
        objective=objective,
        encode=lambda images, noise: to_float(images),
        batches=lambda start: iter(Loader(source, chosen.batch, 0, start_step=start, workers=workers, flip=True)),
        condition=lambda batch: Condition(label=batch.labels),
        settings=chosen,
        folder=folder,
        aligner=align and Aligner(align, 32, [8], generator=torch.Generator().manual_seed(1)),
        targets=align and (lambda images: compute_targets([teacher], images, (4, 4))),
        check_latents=False,
    )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", RECIPES)
def test_first_losses(name, threads, digits, tmp_path):
    torch.set_num_threads(threads)
    seen = []
    fit(job_of(name, tmp_path, digits), on_step=lambda step, values: seen.append((values["loss"], values["grad_norm"])))
    for got, want in zip(seen, GOLDEN[name], strict=True):
        assert got == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("name", ["repa", "ddt"])
def test_an_interrupted_run_on_real_parts_is_exact(name, digits, tmp_path, same):
    settings = dict(save_every=2, keep_last=9, accumulate=3, clip=0.5, warmup=4)
    fit(job_of(name, tmp_path / "unbroken", digits, **settings))
    for at in (3, 5):
        with pytest.raises(Interrupted):
            fit(job_of(name, tmp_path / "broken", digits, **settings), on_step=_interrupt(at))
    fit(job_of(name, tmp_path / "broken", digits, workers=1, **settings))
    assert list_steps(tmp_path / "broken") == [2, 3, 4, 5, 6]
    for file in ("model", "ema", "align", "align_ema", "optimizer"):
        same(read_tensors(tmp_path / "broken", 6, file), read_tensors(tmp_path / "unbroken", 6, file))


def _interrupt(at: int):
    return lambda step, values: os.kill(os.getpid(), signal.SIGINT) if step == at else None


@pytest.mark.parametrize("name", ["repa", "ddt"])
def test_bf16_stays_close_and_keeps_float32_losses(name, digits, tmp_path):
    """bfloat16 has 8 bits: a few parts in a thousand on the loss, none on what is stored."""
    losses = {}
    for precision in ("fp32", "bf16"):
        seen = losses[precision] = []
        state = fit(
            job_of(name, tmp_path / precision, digits, precision=precision),
            on_step=lambda step, values, seen=seen: seen.append(values["loss"]),
        )
        assert {p.dtype for p in state.parameters} == {torch.float32}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=1e-2) and losses["bf16"] != losses["fp32"]


@pytest.mark.parametrize("name", [pytest.param("repa", marks=pytest.mark.long), "ddt"])
def test_compiled_blocks_have_the_same_losses(name, digits, tmp_path):
    seen = []
    job = job_of(name, tmp_path, digits, compile=True, backend="aot_eager")
    fit(job, on_step=lambda step, values: seen.append((values["loss"], values["grad_norm"])))
    for got, want in zip(seen, GOLDEN[name], strict=True):
        assert got == pytest.approx(want, rel=1e-4)
    assert not [key for key in job.model.state_dict() if "_orig_mod" in key]


def test_it_learns_the_digits(digits, tmp_path):
    """40 steps of the tiny network take the velocity loss well below the predict-nothing level."""
    seen = []
    fit(job_of("sit", tmp_path, digits, steps=40, lr=5e-3), on_step=lambda step, values: seen.append(values["loss"]))
    assert sum(seen[-5:]) < 0.7 * sum(seen[:5])
